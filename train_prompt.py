"""Stage 2: choose or learn prompts, fine-tune the generator under frozen CLIP, and write better CAMs."""
import argparse
import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clipwsss.cams.cam_files import check_cam, list_cams, read_cam
from clipwsss.cams.generator import load_generator
from clipwsss.cams.maps import MapGenerator, finished_cams, write_cams
from clipwsss.clip import CLIP
from clipwsss.datasets import Batch, TagDataset
from clipwsss.datasets.base import whole_image
from clipwsss.datasets.loaders import make_loader, size_loader
from clipwsss.datasets.transforms import square_transform
from clipwsss.errors import InputError, run_script
from clipwsss.files import save_network, write_json
from clipwsss.generator_options import crop_loader, generator_flags, generator_settings, open_validation
from clipwsss.guidance.choices import WordChoices, read_choices, select_words
from clipwsss.guidance.losses import (PROMPT_EPSILON, Adapter, background_prompt_loss, class_prompt_loss,
                                      guided_loss)
from clipwsss.guidance.method_flags import loss_flags, prompt_flags
from clipwsss.guidance.prompts import LearnedPrompt, read_learned, save_learned
from clipwsss.guidance.regions import Regions, cam_file_regions, generator_regions, load_clip
from clipwsss.guidance.words import Words, encode_words, load_words, read_words
from clipwsss.options import (COMMAND_LINE, open_dataset, open_scored, parse, script_parser,
                              start_run, training_flags, training_settings)
from clipwsss.presets import find_block
from clipwsss.report.best_epoch import BestEpoch, cam_miou
from clipwsss.report.page import write_report
from clipwsss.report.scoring import print_cam_curve
from clipwsss.run import Run
from clipwsss.training import (Training, compile_networks, fit, pick_device, refuse_lone_values,
                               seed_everything, use_bf16)


def get_parser() -> argparse.ArgumentParser:
    """The flags; presets.py has the values of each --method and --dataset, and a flag replaces one."""
    parser = script_parser(__doc__, "python train_prompt.py --dataset voc12 --data-root VOCdevkit/VOC2012 "
                           "--method pole", ("method", "template", "synonyms", "init", "cams", "clip"))
    prompt_flags(parser)
    loss_flags(parser)
    training_flags(parser)
    generator_flags(parser)
    return parser


def check_flags(args: argparse.Namespace) -> None:
    """InputError for flags that do not fit together, where one would be ignored or mean something else."""
    given = {name for name, source in args.set_by.items() if source == COMMAND_LINE}
    choices = {"generator": args.generator, "method": args.method}
    usual = find_block("train_prompt", args.dataset, args.preset, choices)["background_prompt"]
    if args.background_prompt not in (usual, "none"):
        needed = ["w_suppress", "suppress_threshold", "suppress_reduction"]
        if args.background_prompt == "learned" and not args.background_prompts:
            needed.append("prompt_epochs")
        missing = [f"--{name.replace('_', '-')}" for name in needed if name not in given]
        if missing:
            raise InputError(f"--background-prompt {args.background_prompt}: --method {args.method} has "
                             f"settings for {usual!r} only; give {', '.join(missing)} too (SETTINGS.md has "
                             "those of CLIMS for list and of SemPLeS for learned)")
    if "joint" in given and args.joint and (args.class_prompt != "learned" or args.prompts):
        raise InputError("--joint: only class prompts that learn can learn together with the generator; use "
                         "--class-prompt learned without --prompts")
    if args.prompts and args.class_prompt == "name":
        raise InputError("--prompts: --class-prompt name takes no prompts of an earlier run; use word or "
                         "learned")
    if args.reselect_every and args.class_prompt != "word":
        raise InputError(f"--reselect-every: --class-prompt {args.class_prompt} chooses no words; use word")
    if args.background_prompts and args.background_prompt == "none":
        raise InputError("--background-prompts: --background-prompt none repels nothing; use learned or list")
    if args.background_words and args.background_prompt != "list":
        raise InputError(f"--background-words: --background-prompt {args.background_prompt} takes no words; "
                         "use list")
    learns_alone = args.class_prompt == "learned" and not args.joint
    if args.prompts_only and args.class_prompt != "word" and not learns_alone \
            and args.background_prompt != "learned":
        raise InputError("--prompts-only: there is no prompt to choose or learn; use --class-prompt word, "
                         "--class-prompt learned --no-joint or --background-prompt learned")
    if args.class_prompt != "learned" or args.prompts:
        args.joint = False


def open_inputs(args: argparse.Namespace) -> tuple:
    """Open and check all that is read: data, scored data, words, CLIP, generator, validation data.

    Generator and validation data may be None. Fills in the default folders of --init and --cams.
    """
    device = pick_device(args.device)
    dataset = open_dataset(args)
    scored = open_scored(args, dataset)
    listed = read_words(args.background_words) if args.background_words else None
    words = load_words(args.dataset, dataset.classes, dataset.synonyms, args.synonyms, args.n_synonyms,
                       args.person, listed)
    if args.class_prompt == "word" and all(len(row) == 1 for row in words.candidates):
        print("--class-prompt word: no class has synonyms, so that its own name is the only candidate. For "
              f"candidates: python -m clipwsss.guidance.propose --classes {args.data_root}/classes.txt "
              "--words WORDS --out synonyms.json, and then --synonyms synonyms.json")
    baseline = args.runs / args.dataset / "train_cam"
    generator = None
    if not args.prompts_only:
        args.init = args.init or baseline / "generator.pt"
        generator = load_generator(args.init, dataset.classes, args.generator, dataset.category_ids,
                                   **generator_settings(args))
        if args.tune != "all":
            generator.learn_only(args.tune)
        generator.to(device, memory_format=torch.channels_last)
    validation = open_validation(args)
    clip = load_clip(args.clip, device, args.clip_cache)
    if args.prompts_only or (args.class_prompt == "word" and not args.prompts):
        args.cams = args.cams or baseline / "cams"
        absent = set(dataset.names) - set(list_cams(args.cams))
        if absent:
            raise InputError(f"{args.cams}: image {min(absent)} has no CAM file, and neither have "
                             f"{len(absent) - 1} others")
    if args.prompts_only:
        for index, name in enumerate(dataset.names):
            tags = dataset.labels[index].nonzero()[:, 0].tolist()
            check_cam(read_cam(args.cams, name), args.cams / name, dataset.sizes[index],
                      len(dataset.classes), tags)
    if args.compile:
        networks = [clip.visual] if generator is None else [generator, clip.visual]
        compile_networks(*networks)
    return dataset, scored, words, clip, generator, validation


def start_adapters(clip: CLIP, kind: str) -> nn.ModuleList:
    """POLE's adapters of image and text features (eqs. 7-8), which change nothing if `kind` is none."""
    width = clip.text_projection.shape[1]
    return nn.ModuleList([Adapter(width, kind), Adapter(width, kind)]).to(clip.text_projection.device)


def start_class_prompt(args: argparse.Namespace, clip: CLIP,
                       words: Words) -> tuple[WordChoices | None, LearnedPrompt | None, Tensor | None]:
    """The class prompt before training: (POLE's choices, None, None), (None, vectors to learn, None) or
    (None, None, text [K,D])."""
    if args.class_prompt == "word":
        choices = WordChoices(clip, args.template, words.candidates)
        if args.prompts:
            choices.take_table(read_choices(args.prompts), words.classes)
        return choices, None, None
    if args.class_prompt == "learned" and args.prompts:
        _, text = read_learned(args.prompts, clip, len(words.names))
        return None, None, text
    if args.class_prompt == "learned":
        return None, LearnedPrompt(clip, args.template, words.names, args.prompt_start), None
    return None, None, encode_words(clip, args.template, words.names)


def start_background_prompt(args: argparse.Namespace, clip: CLIP,
                            words: Words) -> tuple[LearnedPrompt | None, Tensor | None]:
    """The background prompt before training: (vectors to learn, None) or (None, the M texts of each class,
    [K,M,D])."""
    stored = None
    if args.background_prompts:
        _, stored = read_learned(args.background_prompts, clip, len(words.names))
    if args.background_prompt == "learned" and stored is None:
        vectors = LearnedPrompt(clip, args.background_template, words.names, args.prompt_start,
                                "--background-template")
        return vectors, None
    if args.background_prompt == "learned":
        return None, stored[:, None]
    listed = words.background if args.background_prompt == "list" else []
    text = encode_words(clip, "a photo of {}.", listed).expand(len(words.names), -1, -1)
    if stored is not None:
        text = torch.cat([text, stored[:, None]], dim=1)
    return None, text


def make_loaders(args: argparse.Namespace, dataset: TagDataset, clip: CLIP,
                 generator: MapGenerator | None) -> tuple[DataLoader | None, DataLoader]:
    """The batches that the generator learns from, None without one, and those that prompts learn from."""
    batch_size = args.prompt_batch_size or args.batch_size
    if generator is None:
        whole_images = dataset.with_transform(square_transform(clip.input_resolution), masks=False)
        return None, make_loader(whole_images, batch_size, args.workers, seed=args.seed, drop_last=True)
    multiple = generator.input_multiple
    crops = crop_loader(args, dataset, args.batch_size, multiple)
    refuse_lone_values(generator, "classify", crops, args.crop_size, args.sync_bn)
    return crops, crop_loader(args, dataset, batch_size, multiple, args.prompt_augment)


def learn_class_prompt(args: argparse.Namespace, run: Run, loader: DataLoader, prompt: LearnedPrompt,
                       clip: CLIP, see: Callable[[Batch], Regions]) -> Tensor:
    """Learn class prompts with the generator fixed (POLE eq. 5) and save them: texts [K,D]."""
    weights = {"fg": args.w_fg, "bg": args.w_bg}

    def loss(batch: Batch) -> dict[str, tuple]:
        return class_prompt_loss(see(batch), prompt(clip), weights)

    fit(run, loader, loss, {"prompt": prompt}, [{"params": [prompt.vectors]}],
        training_settings(args, "class_prompts", epochs=args.prompt_epochs, lr=args.prompt_lr,
                          optimizer="adamw"))
    save_learned(prompt, clip, run.out / "class_prompts.pt")
    return prompt(clip).detach()


def learn_background(args: argparse.Namespace, run: Run, loader: DataLoader, prompt: LearnedPrompt,
                     clip: CLIP, words: Words, see: Callable[[Batch], Regions]) -> Tensor:
    """Learn SemPLeS' background prompts with the generator fixed (eq. 2) and save them: texts [K,1,D]."""
    class_text = encode_words(clip, "a photo of {}.", words.names)

    def loss(batch: Batch) -> dict[str, tuple]:
        return background_prompt_loss(see(batch), prompt(clip), class_text, args.w_prompt_image,
                                      args.w_prompt_class, args.prompt_repulsion)

    fit(run, loader, loss, {"prompt": prompt}, [{"params": [prompt.vectors]}],
        training_settings(args, "background_prompts", epochs=args.prompt_epochs, lr=args.prompt_lr,
                          optimizer="adamw"))
    save_learned(prompt, clip, run.out / "background_prompts.pt")
    return prompt(clip).detach()[:, None]


def save_choices(run: Run, choices: WordChoices, classes: list[str]) -> None:
    """Write prompts.json and print how often each class's own name was chosen."""
    table = choices.table(classes)
    path = run.out / "prompts.json"
    write_json(table, path)
    shares = []
    for label in classes:
        entries = [rows[label] for rows in table.values() if label in rows]
        own = sum(entry["word"] == next(iter(entry["similarity"])) for entry in entries)
        if entries:
            shares.append(f"{label} {100 * own / len(entries):.0f}%")
    print(f"own name chosen: {', '.join(shares)} (all choices: {path})")


def class_features(args: argparse.Namespace, choices: WordChoices | None, vectors: LearnedPrompt | None,
                   text: Tensor | None, clip: CLIP, regions: Regions, epoch: int) -> Tensor:
    """Text features [N,D] of the class prompts of N pairs of image and class."""
    if choices is not None:
        if args.reselect_every and epoch % args.reselect_every == 0:
            choices.measure(regions.names, regions.classes, regions.foreground)
        return choices.chosen_text(regions.names, regions.classes)
    if text is None:  # vectors that learn together with the generator
        text = vectors(clip)
    return text[regions.classes]


def tune(args: argparse.Namespace, run: Run, loader: DataLoader, loss: Callable[[Batch], dict],
         modules: dict[str, nn.Module], choices: WordChoices | None, training: Training,
         validation: TagDataset | None) -> None:
    """Fine-tune the generator among `modules`, with adapters and a class prompt that is learned jointly.

    choices: POLE's words, which may change in every epoch. validation: the split of --keep-best.
    """
    generator = modules["generator"]
    groups = generator.parameter_groups(training.lr, args.head_ratio)
    groups.append({"params": list(modules["adapters"].parameters()), "lr": args.adapter_lr or training.lr})
    if "class_prompt" in modules:
        groups.append({"params": [modules["class_prompt"].vectors], "lr": args.prompt_lr})
    chooses_again = choices is not None and args.reselect_every > 0
    if not chooses_again and validation is None:
        fit(run, loader, loss, modules, groups, training)
        return

    best = BestEpoch()
    kept = {}  # beside the modules in each checkpoint
    if chooses_again:
        kept["choices"] = choices
    if validation is not None:
        kept["best"] = best

    def after_epoch(epoch: int) -> None:
        if chooses_again:
            choices.share()
        if validation is not None:
            miou = cam_miou(generator, validation, args.cam_batch_size, args.workers)
            best.consider(epoch, generator, miou)

    fit(run, loader, loss, modules, groups, training, after_epoch, kept)
    if validation is not None:
        best.restore(generator)


def finish(args: argparse.Namespace, run: Run, dataset: TagDataset, scored: TagDataset,
           generator: MapGenerator, choices: WordChoices | None, class_vectors: LearnedPrompt | None,
           clip: CLIP) -> None:
    """Write the generator, the prompts that changed with it, its CAMs, their scores and the report."""
    save_network(generator, "generator", generator.config, run.out / "generator.pt")
    if choices is not None:
        save_choices(run, choices, dataset.classes)
    if args.joint:
        save_learned(class_vectors, clip, run.out / "class_prompts.pt")
    cams = run.out / "cams"
    finished = finished_cams(dataset, cams, args.cam_format) if args.resume else set()
    whole_images = dataset.with_transform(whole_image, masks=False)
    loader = size_loader(whole_images, args.cam_batch_size, args.workers, finished)
    write_cams(generator, loader, cams, args.scales, args.flip, args.cam_format, args.test_precision)
    run.result(**print_cam_curve(scored, cams))
    write_report(run.out, "train_prompt", scored, cams=cams)


def main(argv: list[str] | None = None) -> int:
    """The stages of POLE and SemPLeS in the papers' order; with --prompts-only, those of prompts alone."""
    args = parse(get_parser(), argv, "train_prompt")
    check_flags(args)
    dataset, scored, words, clip, generator, validation = open_inputs(args)
    device = clip.text_projection.device
    loader, prompt_loader = make_loaders(args, dataset, clip, generator)
    seed_everything(args.seed)  # random starts are drawn in one order, so that a resumed run draws the same
    adapters = start_adapters(clip, args.adapter)
    choices, class_vectors, class_text = start_class_prompt(args, clip, words)
    background_vectors, background = start_background_prompt(args, clip, words)
    run = start_run(args, dataset, init=args.init, cams=args.cams, prompts=args.prompts, clip=args.clip,
                    background_prompts=args.background_prompts, synonyms=args.synonyms,
                    background_words=args.background_words)
    print(f"{args.dataset} {args.split}: {len(dataset)} images; {args.method}: class prompt "
          f"{args.class_prompt}, background prompt {args.background_prompt}; writing {run.out}")

    @torch.no_grad()
    def see(batch: Batch) -> Regions:
        """The regions of a batch that prompts learn from; the generator is fixed."""
        if generator is None:
            return cam_file_regions(clip, args.cams, batch, device, resized=True, view=args.clip_view)
        return generator_regions(generator.eval(), clip, batch, args.map_scale, PROMPT_EPSILON,
                                 args.clip_view)

    def guide(repelled: Tensor, training: Training) -> None:
        """Train the generator; repelled [K,M,D] are the texts that each class's foreground repels."""
        weights = {"fg": args.w_fg, "bg": args.w_bg, "suppress": args.w_suppress, "area": args.w_area}

        def loss(batch: Batch) -> dict[str, tuple]:
            regions = generator_regions(generator, clip, batch, args.map_scale, view=args.clip_view)
            text = class_features(args, choices, class_vectors, class_text, clip, regions,
                                  loader.sampler.epoch)
            return guided_loss(regions, text, repelled[regions.classes], adapters, weights,
                               args.suppress_threshold, args.suppress_reduction, args.area_over)

        modules = {"generator": generator, "adapters": adapters}
        if args.joint:
            modules["class_prompt"] = class_vectors
        tune(args, run, loader, loss, modules, choices, training, validation)

    # Class prompts: a word for each image and class (POLE eq. 6), or vectors that are learned in advance.
    if choices is not None:
        if not args.prompts:
            select_words(clip, dataset, args.cams, choices, args.cam_batch_size, args.workers)
        save_choices(run, choices, dataset.classes)
    if class_vectors is not None and not args.joint:
        class_text = learn_class_prompt(args, run, prompt_loader, class_vectors, clip, see)
    # SemPLeS stage a: the generator learns to match the class prompts, and nothing is suppressed.
    if generator is not None:
        if args.restart:
            start = copy.deepcopy(generator.state_dict())
        if device.type == "cuda" and use_bf16(args.precision, device):
            clip.visual.bfloat16()  # it is frozen, and autocast would cast it in every step
        if args.match_epochs:
            nothing = encode_words(clip, "{}", []).expand(len(words.names), -1, -1)
            match_lr = args.match_lr or args.lr
            guide(nothing, training_settings(args, "match", epochs=args.match_epochs, lr=match_lr))
    # SemPLeS stage b: background prompts learn (eq. 2), and the generator is fixed.
    if background_vectors is not None:
        background = learn_background(args, run, prompt_loader, background_vectors, clip, words, see)
    if generator is None:
        run.result(**print_cam_curve(scored, args.cams))
        return 0
    # SemPLeS stage c, and all of CLIMS and POLE: guidance with suppression.
    if args.restart:
        generator.load_state_dict(start)
    guide(background, training_settings(args, "guide"))
    finish(args, run, dataset, scored, generator, choices, class_vectors, clip)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
