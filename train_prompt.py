"""Stage 2: select or learn prompts, fine-tune the generator under frozen CLIP, write better CAMs."""
import argparse
import copy
import signal
from functools import partial
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # until `run_script`, Ctrl-C ends this without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch
from torch import nn
from torch.utils.data import DataLoader

from clipwsss.cams.generator import load_generator, save_generator
from clipwsss.cams.maps import cam_loader, finished_cams, write_cams
from clipwsss.clip import CLIP
from clipwsss.datasets import TagDataset
from clipwsss.datasets.loaders import make_loader, size_loader
from clipwsss.datasets.transforms import AUGMENTS, square_transform
from clipwsss.errors import input_errors, run_script
from clipwsss.files import write_json
from clipwsss.flags import real, whole
from clipwsss.guidance.adapters import ADAPTERS, Adapter
from clipwsss.guidance.given import GivenGuide, cam_regions, check_cams
from clipwsss.guidance.kinds import BACKGROUND_PROMPTS, CLASS_PROMPTS, PromptSettings
from clipwsss.guidance.prompts import (STARTS, LearnedPrompt, Prompt, ReadPrompt, SelectedPrompt,
                                       encode_words)
from clipwsss.guidance.regions import load_clip
from clipwsss.guidance.selection import own_name_shares
from clipwsss.guidance.steps import (Guide, LearnBackgroundStep, LearnClassStep, LearnStep, PromptWeights,
                                     TuneStep)
from clipwsss.guidance.words import Words, load_words, read_words
from clipwsss.options import (cam_settings, crop_loader, open_dataset, generator_flags, generator_settings, parse, open_scored,
                              script_parser, stage_folder, start_run, training_flags, training_settings)
from clipwsss.report.best import BestEpoch
from clipwsss.report.page import StageOutputs, write_report
from clipwsss.report.scoring import print_cam_curve
from clipwsss.run import Run
from clipwsss.training import Training, compile_networks, fit, pick_device, seed_everything, use_bf16

METHODS = ("clims", "pole", "semples", "manual", "coop", "target", "defo", "both")


def get_parser() -> argparse.ArgumentParser:
    """Flags; --method and --dataset fill them with the paper's values, an explicit flag wins."""
    parser = script_parser(__doc__, "python train_prompt.py --dataset voc12 --data-root VOCdevkit/VOC2012 "
                           "--method pole", ("method", "template", "synonyms", "init", "cams", "clip"))
    add = parser.add_argument_group("method and prompts").add_argument
    add("--method", choices=METHODS, default="pole", help="preset of everything below")
    add("--class-prompt", choices=tuple(CLASS_PROMPTS), default="name",
        help="what stands for a class: its name, POLE's selected word, vectors learned as --template says")
    add("--background-prompt", choices=tuple(BACKGROUND_PROMPTS), default="none",
        help="what the foreground must not resemble: nothing, CLIMS' word list, SemPLeS' learned prompts, "
        "the words of the list that these are nearest to (read)")
    add("--background-words", type=Path, help="file of words for list and read instead of CLIMS', one a line")
    add("--template", default="a photo of {}.", help="class prompt: {} the name; learned vectors: [S*n] "
        "shared, [C*n] each class's own, [S:words] and [C:words] those that start from words")
    add("--background-template", default="[C*30]", help="the same of a learned background prompt")
    add("--prompt-start", choices=tuple(STARTS), default="normal", help="draw that other vectors start from")
    add("--synonyms", type=Path, help="JSON of candidates (class -> list of words), or a built-in list "
        "(voc12: chatgpt, chatgpt-long, bnc, news, wikipedia; toy: mixed)")
    add("--n-synonyms", type=whole(0), help="use only the first N synonyms (POLE Fig. 3)")
    add("--person", metavar="WORD", help="prompt name of the class person (default: the data set's, player)")
    add("--reselect-every", type=whole(0), default=0, help="choose words with the current generator in "
        "epochs 0, N, 2N, ...; 0 keeps the baseline CAMs' words")
    add("--joint", action=argparse.BooleanOptionalAction, default=False,
        help="learn class prompts with the generator, as POLE's variants do")
    add("--adapter", choices=ADAPTERS, default="none", help="POLE's adapters, eqs. 7-8")
    add = parser.add_argument_group("inputs").add_argument
    add("--init", type=Path, help="generator to start from (default: train_cam's)")
    add("--cams", type=Path, help="baseline CAMs that words are selected from (default: train_cam's)")
    add("--prompts", type=Path, help="class prompts of an earlier run (prompts.json or class_prompts.pt)")
    add("--background-prompts", type=Path, help="background_prompts.pt of an earlier run instead of "
        "learning; with --background-prompt list beside the list")
    add("--prompts-only", action="store_true",
        help="select or learn prompts from --cams, whatever made them: no generator is read or tuned")
    add("--clip", default="ViT-B/32", help="published name or file")
    add("--clip-cache", type=Path, help="folder of CLIP weights (default: the torch hub folder)")
    loss_flags(parser)
    training_flags(parser, batch_size=16, epochs=15, lr=2.5e-4, optimizer="sgd", schedule="poly",
                   weight_decay=1e-4, momentum=0.0, crop_size=512)
    add = parser.add_argument_group("stages before guidance").add_argument
    add("--match-epochs", type=whole(0), default=0, help="generator epochs without suppression (SemPLeS a)")
    add("--match-lr", type=real(0, 100), help="their learning rate (default: --lr)")
    add("--restart", action=argparse.BooleanOptionalAction, default=False,
        help="guidance starts again from the generator before matching (SemPLeS' release)")
    add("--prompt-epochs", type=whole(0), default=0, help="epochs of prompts, the generator fixed")
    add("--prompt-lr", type=real(0, 100), default=5e-4, help="learning rate of prompts (AdamW)")
    add("--prompt-batch-size", type=whole(1, 65536),
        help="images in a step that learns prompts (default: --batch-size)")
    add("--prompt-augment", choices=AUGMENTS, help="their crops (default: --augment)")
    add("--adapter-lr", type=real(0, 100), help="learning rate of adapters (default: --lr)")
    generator_flags(parser, frozen_bn=False, freeze_stages=1)
    parser.add_argument("--tune", choices=("all", "head", "fusion"), default="all",
                        help="what of a weaktr generator learns: its 3x3 convolution and attention fusion "
                        "(head, as SemPLeS' release), the fusion alone")
    add("--keep-best", metavar="SPLIT", help="keep the epoch of best CAM mIoU on this split's masks, as "
        "SemPLeS' release does; else the last one is kept and no mask is seen")
    return parser


def loss_flags(parser: argparse.ArgumentParser) -> None:
    """What guidance and prompt learning reward."""
    add = parser.add_argument_group("losses").add_argument
    add("--map-scale", choices=("sigmoid", "minmax"), default="sigmoid",
        help="how a map becomes P: CLIMS' and POLE's sigmoid, or SemPLeS' release: by its extremes")
    add("--w-fg", type=real(0), default=10.0, help="weight of foreground matching (alpha)")
    add("--w-bg", type=real(0), default=24.0, help="weight of background repelling (beta, lambda_b)")
    add("--w-suppress", type=real(0), default=1.0, help="weight of background suppression (CBS, lambda)")
    add("--w-area", type=real(0), default=0.2, help="weight of the area term (REG)")
    add("--w-prompt-image", type=real(0), default=1.0, help="prompt-I, eq. 2: attract them to (1 - P)X")
    add("--w-prompt-class", type=real(0), default=0.02,
        help="SemPLeS' lambda_T, eq. 2: repel background prompts from the class")
    add("--prompt-repulsion", choices=("paper", "release"), default="paper",
        help="prompt-T by -log(1 - s), as SemPLeS' paper has it, or by +log s, as its release")
    add("--suppress-threshold", type=real(-1, 1), default=0.0, help="similarity above which suppression acts")
    add("--suppress-reduction", choices=("sum", "mean"), default="mean", help="over pairs")
    add("--area-over", choices=("all", "present"), default="all", help="classes the area term is over")


def learn(args: argparse.Namespace, run: Run, loader: DataLoader, label: str, step: LearnStep) -> None:
    """Learn a prompt's vectors with the generator fixed, and save them as LABEL.pt."""
    if isinstance(step.guide, Guide):
        step.guide.generator.eval()
    groups = [{"params": [step.prompt.vectors]}]
    fit(run, loader, step, {"prompt": step.prompt}, groups,
        training_settings(args, label, epochs=args.prompt_epochs, lr=args.prompt_lr, optimizer="adamw"))
    step.prompt.save(run.path(f"{label}.pt"))


def tune(args: argparse.Namespace, run: Run, loader: DataLoader, step: TuneStep, training: Training,
         best: nn.Module) -> None:
    """Fine-tune the generator (with adapters, and class prompts when joint) under CLIP."""
    modules = {"generator": step.guide.generator, "adapters": nn.ModuleList(step.adapters),
               "class_prompt": step.class_prompt}

    def after_epoch(epoch):
        if isinstance(step.class_prompt, SelectedPrompt):
            step.class_prompt.share_choices()
        if args.keep_best:
            best.end_epoch(epoch)
    groups = step.guide.generator.parameter_groups(training.lr, args.head_ratio)
    for name, rate in (("adapters", args.adapter_lr or training.lr), ("class_prompt", args.prompt_lr)):
        groups.append({"params": [p for p in modules[name].parameters() if p.requires_grad], "lr": rate})
    def loss(batch):
        step.class_prompt.start_epoch(loader.sampler.epoch)
        return step(batch)

    fit(run, loader, loss, modules, groups, training, after_epoch, {"best": best})
    if args.keep_best:
        best.restore()


def keep_choices(prompt: Prompt, run: Run, classes: list[str]) -> None:
    """Write words that were selected or read; print how often each class's own name was selected."""
    if isinstance(prompt, SelectedPrompt):
        table, path = prompt.report(classes), run.path("prompts.json")
        write_json(table, path)
        print(f"own name chosen: {own_name_shares(table, classes)} (all choices: {path})")
    if isinstance(prompt, ReadPrompt):
        write_json(dict(zip(classes, prompt.read)), run.path("background_words.json"))
        print("backgrounds read:", ", ".join(map(": ".join, zip(classes, prompt.read))))


class Texts(NamedTuple):
    """What stands for classes and backgrounds, and the adapters of images and texts."""
    words: Words
    adapters: tuple[nn.Module, nn.Module]
    class_prompt: Prompt
    background_prompt: Prompt


def texts_of(args: argparse.Namespace, words: Words, clip: CLIP) -> Texts:
    """Everything that draws its start, in one order, so that a resumed run draws the same."""
    seed_everything(args.seed)
    width, device = clip.text_projection.shape[1], clip.text_projection.device
    adapters = tuple(Adapter(width, args.adapter).to(device) for _ in ("images", "texts"))
    class_prompt = CLASS_PROMPTS[args.class_prompt](clip, words, PromptSettings(
        args.template, args.prompt_start, args.prompts, args.reselect_every, args.joint))
    background_prompt = BACKGROUND_PROMPTS[args.background_prompt](clip, words, PromptSettings(
        args.background_template, args.prompt_start, args.background_prompts))
    return Texts(words, adapters, class_prompt, background_prompt)


def ready_class_prompt(args: argparse.Namespace, run: Run, dataset: TagDataset, guide: Guide | GivenGuide,
                       texts: Texts, loader: DataLoader) -> None:
    """Choose the class prompt's words by the baseline CAMs or learn its vectors, as it asks."""
    device, weights = guide.clip.text_projection.device, {"fg": args.w_fg, "bg": args.w_bg}
    whole_images = size_loader(dataset, args.cam_batch_size, args.workers)
    texts.class_prompt.make_ready(
        partial(cam_regions, guide.clip, dataset, baseline_cams(args), device, whole_images),
        lambda prompt: learn(args, run, loader, "class_prompts", LearnClassStep(guide, prompt, weights)))
    keep_choices(texts.class_prompt, run, dataset.classes)


def ready_background_prompt(args: argparse.Namespace, run: Run, guide: Guide | GivenGuide, texts: Texts,
                            loader: DataLoader) -> None:
    """Learn the background prompt (SemPLeS eq. 2) where it asks for it."""
    learning = partial(LearnBackgroundStep, guide, repulsion=args.prompt_repulsion,
                       class_text=encode_words(guide.clip, "a photo of {}.", texts.words.names),
                       weights=PromptWeights(args.w_prompt_image, args.w_prompt_class))
    texts.background_prompt.make_ready(
        None, lambda prompt: learn(args, run, loader, "background_prompts", learning(prompt=prompt)))
    keep_choices(texts.background_prompt, run, texts.words.classes)


def learn_prompts(args: argparse.Namespace, run: Run, dataset: TagDataset, guide: GivenGuide,
                  texts: Texts) -> None:
    """Choose or learn prompts by given CAM files, without a generator."""
    whole = dataset.with_transform(square_transform(guide.clip.input_resolution), masks=False)
    loader = make_loader(whole, args.prompt_batch_size or args.batch_size, args.workers, seed=args.seed,
                         drop_last=True)
    ready_class_prompt(args, run, dataset, guide, texts, loader)
    ready_background_prompt(args, run, guide, texts, loader)


class Loaders(NamedTuple):
    """Batches that the generator learns from, and those that prompts do."""
    guided: DataLoader
    prompts: DataLoader


def guide_generator(args: argparse.Namespace, run: Run, dataset: TagDataset, guide: Guide, texts: Texts,
                    loaders: Loaders, best: nn.Module) -> None:
    """Match, learn, guide: the paper's stages, in their order."""
    clip, generator = guide.clip, guide.generator
    words, adapters, class_prompt, background_prompt = texts
    weights = {"fg": args.w_fg, "bg": args.w_bg, "suppress": args.w_suppress, "area": args.w_area}

    ready_class_prompt(args, run, dataset, guide, texts, loaders.prompts)
    if guide.device.type == "cuda" and use_bf16(args.precision, guide.device):
        clip.visual.bfloat16()  # frozen: what autocast would cast in every step

    nothing = BACKGROUND_PROMPTS["none"](clip, words, PromptSettings())
    tuning = TuneStep(guide, class_prompt, nothing, adapters, weights,
                      args.suppress_threshold, args.suppress_reduction, args.area_over)
    start = copy.deepcopy(generator.state_dict())
    if args.match_epochs:
        tune(args, run, loaders.guided, tuning,
             training_settings(args, "match", epochs=args.match_epochs, lr=args.match_lr or args.lr), best)

    ready_background_prompt(args, run, guide, texts, loaders.prompts)
    if args.restart:
        generator.load_state_dict(start)
    tuning = tuning._replace(background_prompt=background_prompt)
    tune(args, run, loaders.guided, tuning, training_settings(args, "guide"), best)


def baseline_cams(args: argparse.Namespace) -> Path:
    """The folder of the CAMs that words are selected from."""
    return args.cams or stage_folder(args.runs, args.dataset, "train_cam") / "cams"


def main(argv: list[str] | None = None) -> int:
    args = parse(get_parser(), argv, "train_prompt")
    device, before = pick_device(args.device), stage_folder(args.runs, args.dataset, "train_cam")
    dataset = open_dataset(args)
    words = load_words(args.dataset, dataset.classes, dataset.synonyms, args.synonyms, args.n_synonyms,
                       args.person)
    if args.background_words:
        words = words.with_background(read_words(args.background_words))
    if args.class_prompt == "word" and all(len(row) == 1 for row in words.candidates):
        print("--class-prompt word: no class has a synonym, so its own name is all there is to choose; for "
              f"candidates: python -m clipwsss.guidance.propose --classes {args.data_root}/classes.txt "
              "--words WORDS --out synonyms.json, and then --synonyms synonyms.json")
    start, best = None if args.prompts_only else args.init or before / "generator.pt", None
    if start:
        generator = load_generator(start, dataset.classes, args.generator, **generator_settings(args))
        generator.learn_only(args.tune)
        generator.to(device, memory_format=torch.channels_last)
        with input_errors(f"--keep-best {args.keep_best}: "):
            best = nn.Module() if not args.keep_best else BestEpoch(
                generator, open_dataset(args, args.keep_best), args.cam_batch_size, args.workers)
        crops = partial(crop_loader, args, dataset, multiple=generator.input_multiple)
        loaders = Loaders(crops(args.batch_size), crops(args.prompt_batch_size or args.batch_size,
                                                        augment=args.prompt_augment))
    clip, scored = load_clip(args.clip, device, args.clip_cache), open_scored(args, dataset)
    if args.compile:
        compile_networks(*([generator] if start else ()), clip.visual)
    texts, cams = texts_of(args, words, clip), None
    selects = isinstance(texts.class_prompt, SelectedPrompt) and not texts.class_prompt.choices
    if selects or args.prompts_only:
        cams = baseline_cams(args)
        check_cams(cams, dataset, args.prompts_only)
    run = start_run(args, dataset, init=start, cams=cams, prompts=args.prompts, clip=args.clip,
                    background_prompts=args.background_prompts, synonyms=args.synonyms,
                    background_words=args.background_words)
    print(f"{args.dataset} {args.split}: {len(dataset)} images; {args.method}: class prompt "
          f"{args.class_prompt}, background prompt {args.background_prompt}; writing {run.out}")

    if args.prompts_only:
        learn_prompts(args, run, dataset, GivenGuide(cams, clip), texts)
        run.result(**print_cam_curve(scored, cams))
        return 0
    guide_generator(args, run, dataset, Guide(generator, clip, args.map_scale), texts, loaders, best)
    save_generator(generator, run.path("generator.pt"))
    keep_choices(texts.class_prompt, run, dataset.classes)
    if isinstance(texts.class_prompt, LearnedPrompt) and texts.class_prompt.joint:
        texts.class_prompt.save(run.path("class_prompts.pt"))
    finished = finished_cams(dataset, run.path("cams"), args.cam_format) if args.resume else set()
    images = cam_loader(dataset, args.cam_batch_size, args.workers, finished)
    write_cams(generator, images, run.path("cams"), **cam_settings(args))
    run.result(**print_cam_curve(scored, run.path("cams")))
    write_report(run.out, "train_prompt", StageOutputs(scored, cams=run.path("cams")))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
