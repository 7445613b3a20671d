"""Stage 2: choose or learn prompts, fine-tune the generator under frozen CLIP, and write better CAMs."""
import argparse
import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clipwsss.cams.cam_files import list_cams, read_own_cam
from clipwsss.cams.clip_maps import write_clip_maps
from clipwsss.cams.generator import load_generator
from clipwsss.cams.maps import MapGenerator, write_cams
from clipwsss.cams.mean import MEANS, write_mean_cams
from clipwsss.clip import CLIP
from clipwsss.datasets import Batch, TagDataset
from clipwsss.datasets.loaders import make_loader
from clipwsss.datasets.transforms import square_transform
from clipwsss.errors import InputError, run_script
from clipwsss.files import save_network
from clipwsss.generator_options import (cam_loader, crop_loader, generator_flags, generator_settings,
                                        open_validation)
from clipwsss.guidance.choices import WordChoices, save_choices, select_words
from clipwsss.guidance.losses import (PROMPT_EPSILON, background_prompt_loss, class_prompt_loss,
                                      guided_loss)
from clipwsss.guidance.prompts import LearnedPrompt, save_learned
from clipwsss.guidance.regions import Regions, cam_file_regions, generator_regions, load_clip
from clipwsss.guidance.words import Words, background_texts, encode_words, load_words, read_words
from clipwsss.options import (drops_rest, first_command, open_dataset, open_scored, parse,
                              say_absent_classes, script_parser, start_run, training_flags,
                              training_settings)
from clipwsss.prompt_options import (CLIP_CAMS, background_prompt_learns, check_flags, check_texts,
                                     class_prompt_learns_first, loss_flags, map_words, missing_generator,
                                     prompt_flags, start_adapters, start_prompts)
from clipwsss.report.best_epoch import BestEpoch
from clipwsss.report.contrast import ALONE_ADVICE, WORDS_ADVICE, contrast_notes
from clipwsss.report.page import write_report
from clipwsss.report.scoring import print_cam_curve
from clipwsss.run import Run, notes_of
from clipwsss.training import (Training, compile_networks, fit, pick_device, refuse_lone_values,
                               seed_everything, use_bf16)


def get_parser() -> argparse.ArgumentParser:
    """The flags; presets/ has the values of each --method and --dataset, and a flag replaces one."""
    parser = script_parser(__doc__, "python train_prompt.py --dataset voc12 --data-root VOCdevkit/VOC2012 "
                           "--method pole", ("method", "template", "synonyms", "init", "cams", "clip"))
    prompt_flags(parser)
    loss_flags(parser)
    training_flags(parser)
    generator_flags(parser)
    return parser


def open_inputs(args: argparse.Namespace) -> tuple:
    """Open and check all that is read: data, scored data, words, CLIP, generator, validation data.

    Generator and validation data may be None. Fills in the default folders of --init and --cams.
    """
    device = pick_device(args.device)
    dataset = open_dataset(args)
    say_absent_classes(args, dataset)
    scored = open_scored(args, dataset)
    listed = read_words(args.background_words) if args.background_words else None
    if "list" not in args.background_prompt:
        listed = []
    words = load_words(args.dataset, dataset.classes, dataset.synonyms, args.synonyms, args.n_synonyms,
                       args.person, listed)
    if args.class_prompt == "word" and all(len(row) == 1 for row in words.candidates):
        print("--class-prompt word: no class has synonyms, so that its own name is the only candidate. For "
              f"candidates: python -m clipwsss.guidance.propose --classes {args.data_root}/classes.txt "
              "--words WORDS --out synonyms.json, and then --synonyms synonyms.json")
    baseline = args.runs / args.dataset / "train_cam"
    generator = None
    if args.maps != "clip":
        if args.init is None:
            args.init = baseline / "generator.pt"
            if not args.init.is_file():
                raise InputError(missing_generator(args, baseline))
        generator = load_generator(args.init, dataset.classes, args.generator, dataset.category_ids,
                                   **generator_settings(args))
        if args.tune != "all":
            generator.learn_only(args.tune)
        generator.to(device, memory_format=torch.channels_last)
    validation = open_validation(args)
    try:
        clip = load_clip(args.clip, device, args.clip_cache, args.clip_model)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; or go on without CLIP: make_pseudo.py takes train_cam.py's CAMs "
                                "where this script has not run") from error
    check_texts(args, clip, words)
    chooses = args.class_prompt == "word" and not args.prompts
    learns = class_prompt_learns_first(args) or background_prompt_learns(args)
    learns_by_files = args.maps != "generator" and learns
    needs_cams = chooses or learns_by_files
    if needs_cams and args.cams is None:
        args.cams = baseline / "cams"
        if not args.cams.is_dir():
            if args.maps != "clip":
                raise InputError(f"{args.cams}: no such folder of CAM files; "
                                 f"{first_command(args, 'train_cam')}")
            print(f"train_cam.py has not run: CLIP's own maps of the class names stand in for {args.cams}")
            args.cams = CLIP_CAMS
    if needs_cams and args.cams != CLIP_CAMS:
        absent = set(dataset.names) - set(list_cams(args.cams))
        if absent:
            raise InputError(f"{args.cams}: image {min(absent)} has no CAM file, and neither have "
                             f"{len(absent) - 1} others")
        for index in range(len(dataset)):
            read_own_cam(dataset, args.cams, index)
    if args.compile:
        networks = [clip.visual] if generator is None else [generator, clip.visual]
        compile_networks(*networks)
    return dataset, scored, words, clip, generator, validation


def make_loaders(args: argparse.Namespace, dataset: TagDataset, clip: CLIP,
                 generator: MapGenerator | None) -> tuple[DataLoader | None, DataLoader]:
    """The batches that the generator learns from, None without one, and those that prompts learn from."""
    loader = None
    if generator is not None:
        loader = crop_loader(args, dataset, args.batch_size, generator.input_multiple)
        refuse_lone_values(generator, "classify", loader, args.crop_size, args.sync_bn)
    batch_size = args.prompt_batch_size or args.batch_size
    if args.maps == "generator":
        return loader, crop_loader(args, dataset, batch_size, generator.input_multiple, args.prompt_augment)
    whole_images = dataset.with_transform(square_transform(clip.input_resolution), masks=False)
    return loader, make_loader(whole_images, batch_size, args.workers, seed=args.seed,
                               drop_last=drops_rest(args, len(dataset), batch_size))


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


def write_own_cams(args: argparse.Namespace, dataset: TagDataset, clip: CLIP, words: Words,
                   choices: WordChoices | None, text: Tensor | None, learned: Tensor, folder: Path) -> None:
    """Write the CAM file of each image with CLIP's own maps (see clip_maps.py).

    The text of a class is POLE's word (`choices`), a learned prompt (`text` [K,D]) or else its name. Its
    backgrounds are the list, where that is used, and its learned prompts [K,L,D].
    """
    names, listed = map_words(args, words)
    backgrounds = background_texts(clip, args.map_template, listed, learned)
    if choices is not None:
        in_maps = WordChoices(clip, args.map_template, words.candidates)
        in_maps.similarities = choices.similarities
        text_of = in_maps.chosen_text
    else:
        if text is None or args.class_prompt == "name":
            text = encode_words(clip, args.map_template, names)

        def text_of(images: Sequence[str], classes: Tensor) -> Tensor:
            return text[classes]

    write_clip_maps(clip, cam_loader(args, dataset, folder), folder, text_of, backgrounds, args.box,
                    args.cam_format, args.test_precision)


def write_maps(args: argparse.Namespace, dataset: TagDataset, clip: CLIP, generator: MapGenerator | None,
               words: Words, choices: WordChoices | None, text: Tensor | None, learned: Tensor) -> list[str]:
    """Write the run's CAM files: the generator's maps, CLIP's own, or a mean (--maps).

    Returns the notes of the run that made the generator of --init, and `contrast_notes`.
    """
    cams = args.out / "cams"
    notes = []
    if args.maps != "clip":
        of_generator = cams if args.maps == "generator" else args.out / "generator_cams"
        write_cams(generator, cam_loader(args, dataset, of_generator), of_generator, args.scales, args.flip,
                   args.cam_format, args.test_precision)
        notes = notes_of(Path(args.init).parent)
    if args.maps != "generator":
        of_clip = cams if args.maps == "clip" else args.out / "clip_cams"
        write_own_cams(args, dataset, clip, words, choices, text, learned, of_clip)
        advice = ALONE_ADVICE if args.background_prompt == "none" else WORDS_ADVICE
        notes = notes + contrast_notes(dataset, of_clip, advice)
    if args.maps in MEANS:
        write_mean_cams(dataset, [of_generator, of_clip], cams, args.maps, args.cam_format)
    return notes


def seen_regions(args: argparse.Namespace, cams: Path, generator: MapGenerator | None, clip: CLIP,
                 batch: Batch) -> Regions:
    """The regions of a batch that prompts learn from: by the generator, which is fixed, or by CAM files."""
    with torch.no_grad():
        if args.maps != "generator":
            return cam_file_regions(clip, cams, batch, clip.text_projection.device, resized=True,
                                    view=args.clip_view)
        return generator_regions(generator.eval(), clip, batch, args.map_scale, PROMPT_EPSILON,
                                 args.clip_view)


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
    kept = {}  # beside the modules in each checkpoint; choices that are kept are shared by all processes
    if choices is not None and args.reselect_every > 0:
        kept["choices"] = choices
    if validation is None:
        fit(run, loader, loss, modules, groups, training, kept=kept)
        return
    best = BestEpoch(generator, validation, args.cam_batch_size, args.workers)
    fit(run, loader, loss, modules, groups, training, best.consider, {**kept, "best": best})
    best.restore()


def save_generator(args: argparse.Namespace, generator: MapGenerator, choices: WordChoices | None,
                   class_vectors: LearnedPrompt | None, classes: list[str], clip: CLIP) -> None:
    """Save the tuned generator, and the class prompts that changed with it."""
    save_network(generator, "generator", generator.config, args.out / "generator.pt")
    if choices is not None:
        save_choices(choices, classes, args.out / "prompts.json")
    if args.joint:
        save_learned(class_vectors, clip, args.out / "class_prompts.pt")


def main(argv: list[str] | None = None) -> int:
    """The stages of POLE and SemPLeS in the papers' order; with --maps clip, those without a generator."""
    args = parse(get_parser(), argv, "train_prompt")
    check_flags(args)
    dataset, scored, words, clip, generator, validation = open_inputs(args)
    device = clip.text_projection.device
    loader, prompt_loader = make_loaders(args, dataset, clip, generator)
    seed_everything(args.seed)  # random starts are drawn in one order, so that a resumed run draws the same
    adapters = start_adapters(clip, args.adapter)
    choices, class_vectors, class_text, background_vectors, learned = start_prompts(args, clip, words)
    cams = args.cams if args.cams != CLIP_CAMS else None
    run = start_run(args, dataset, init=args.init, cams=cams, prompts=args.prompts, clip=args.clip,
                    background_prompts=args.background_prompts, synonyms=args.synonyms,
                    background_words=args.background_words, best_images=args.best_images)
    print(f"{args.dataset} {args.split}: {len(dataset)} images; {args.method}: class prompt "
          f"{args.class_prompt}, background prompt {args.background_prompt}; writing {run.out}")

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

    # The maps by which words are chosen; with --cams clip, CLIP's own maps of the class names.
    if args.cams == CLIP_CAMS:
        cams = run.out / "first_cams"
        write_own_cams(args, dataset, clip, words, None, None, learned, cams)
    see = partial(seen_regions, args, cams, generator, clip)
    # Class prompts: a word for each image and class (POLE eq. 6), or vectors that are learned in advance.
    if choices is not None:
        if not args.prompts:
            select_words(clip, dataset, cams, choices, args.cam_batch_size, args.workers)
        save_choices(choices, dataset.classes, run.out / "prompts.json")
    if class_vectors is not None and not args.joint:
        class_text = learn_class_prompt(args, run, prompt_loader, class_vectors, clip, see)
    # SemPLeS stage a: the generator learns to match the class prompts, and nothing is suppressed.
    if generator is not None:
        if args.restart:
            start = copy.deepcopy(generator.state_dict())
        if device.type == "cuda" and args.maps == "generator" and use_bf16(args.precision, device):
            clip.visual.bfloat16()  # it is frozen, and autocast would cast it in every step
        if args.match_epochs:
            match_lr = args.match_lr or args.lr
            guide(learned[:, :0], training_settings(args, "match", epochs=args.match_epochs, lr=match_lr))
    # SemPLeS stage b: background prompts learn (eq. 2), and the generator is fixed.
    if background_vectors is not None:
        learned = learn_background(args, run, prompt_loader, background_vectors, clip, words, see)
    # SemPLeS stage c, and all of CLIMS and POLE: guidance with suppression.
    if generator is not None:
        if args.restart:
            generator.load_state_dict(start)
        background = background_texts(clip, "a photo of {}.", words.background, learned)
        guide(background, training_settings(args, "guide"))
        save_generator(args, generator, choices, class_vectors, dataset.classes, clip)
        if args.joint:
            class_text = class_vectors(clip).detach()
    notes = write_maps(args, dataset, clip, generator, words, choices, class_text, learned)
    run.result(**print_cam_curve(scored, run.out / "cams"), notes=notes)
    write_report(run.out, "train_prompt", scored, cams=run.out / "cams")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
