"""Stage 2: select or learn prompts, fine-tune the generator under frozen CLIP, write better CAMs."""
import argparse
import json
import sys
from pathlib import Path

import torch
from torch import nn

from clipwsss.guidance import losses
from clipwsss.datasets.loaders import size_loader
from clipwsss.cams.maps import write_cams
from clipwsss.cams.files import read_cam, resize_cam
from clipwsss.clip import CLIP
from clipwsss.datasets import Batch, TagDataset, build_dataset
from clipwsss.progress import Progress
from clipwsss.training import Run, fit, pick_device, seed_everything
from clipwsss.datasets.loaders import make_loader
from clipwsss.files import write_json
from clipwsss.errors import InputError, run_script
from clipwsss.cams.generator import load_generator, save_generator
from clipwsss.guidance.adapters import Adapter
from clipwsss.guidance.regions import encode_regions, load_clip
from clipwsss.guidance.losses import guidance_terms
from clipwsss.options import generator_flags, parse, script_parser, stage_folder, training_flags, training_of
from clipwsss.guidance.prompts import (FixedPrompt, LearnedPrompt, Prompt, SelectedPrompt, encode_words,
                                       read_learned)
from clipwsss.guidance.words import Words, load_words
from clipwsss.report.scoring import print_cam_curve
from clipwsss.guidance.selection import count_choices, read_choices
from clipwsss.datasets.transforms import train_transform

METHODS = ("clims", "pole", "semples", "manual", "coop", "target", "defo")


def get_parser() -> argparse.ArgumentParser:
    """Flags; --method and --dataset fill them with the paper's values, an explicit flag wins."""
    parser = script_parser(__doc__, "python train_prompt.py --dataset voc12 --data-root VOCdevkit/VOC2012 "
                           "--method pole")
    add = parser.add_argument
    add("--method", choices=METHODS, default="pole", help="preset of everything below")
    add("--class-prompt", choices=("name", "word", "learned"), default="name",
        help="what stands for a class: its name, POLE's selected word, vectors learned as --template says")
    add("--background-prompt", choices=("none", "list", "learned"), default="none",
        help="what the foreground must not resemble: nothing, CLIMS' word list, SemPLeS' learned prompts")
    add("--template", default="a photo of {}.",
        help="class prompt: {} the name; [S*n] shared, [C*n] own vectors, [ctx] the --n-ctx context")
    add("--n-ctx", type=int, default=16, help="vectors of a learned context (CoOp)")
    add("--ctx-per-class", action="store_true", help="a context of each class's own")
    add("--ctx-init", default="", help="words that shared context vectors start from")
    add("--background-length", type=int, default=30, help="embeddings of a learned background prompt")
    add("--synonyms", type=Path, help="JSON of candidates (class -> list of words), or a built-in list "
        "(voc12: chatgpt, chatgpt-long, bnc, news, wikipedia; toy: mixed)")
    add("--n-synonyms", type=int, help="use only the first N synonyms (POLE Fig. 3)")
    add("--prompts", type=Path, help="class prompts of an earlier run (prompts.json or class_prompts.pt)")
    add("--background-prompts", type=Path, help="background_prompts.pt of an earlier run instead of "
        "learning; with --background-prompt list beside the list")
    add("--reselect-every", type=int, default=0, help="choose words with the current generator in epochs "
        "0, N, 2N, ...; 0 keeps the baseline CAMs' words")
    add("--joint", action="store_true", help="learn class prompts with the generator, as POLE's variants do")
    add("--clip", default="ViT-B/32", help="published name or file")
    add("--clip-cache", type=Path, help="folder of CLIP weights (default: the torch hub folder)")
    add("--adapter", choices=("none", "fixed", "learnable"), default="none", help="POLE's adapters, eqs. 7-8")
    add("--adapter-lr", type=float, help="their learning rate (default: --lr)")
    add("--w-fg", type=float, default=10.0, help="weight of foreground matching (alpha)")
    add("--w-bg", type=float, default=24.0, help="weight of background repelling (beta, lambda_b)")
    add("--w-suppress", type=float, default=1.0, help="weight of background suppression (CBS, lambda)")
    add("--w-area", type=float, default=0.2, help="weight of the area term (REG)")
    add("--w-prompt-class", type=float, default=0.02,
        help="SemPLeS' lambda_T, eq. 2: repel background prompts from the class")
    add("--w-prompt-image", type=float, default=1.0, help="prompt-I, eq. 2: attract them to (1 - P)X")
    add("--suppress-threshold", type=float, default=0.0, help="similarity above which suppression acts")
    add("--suppress-reduction", choices=("sum", "mean"), default="mean", help="over pairs")
    add("--area-over", choices=("all", "present"), default="all", help="classes the area term is over")
    add("--match-epochs", type=int, default=0, help="generator epochs without suppression before (SemPLeS a)")
    add("--match-lr", type=float, help="their learning rate (default: --lr)")
    add("--prompt-epochs", type=int, default=0, help="epochs of learning prompts with the generator fixed")
    add("--prompt-lr", type=float, default=5e-4, help="learning rate of prompts (AdamW)")
    add("--init", type=Path, help="generator to start from (default: train_cam's)")
    add("--cams", type=Path, help="baseline CAMs that words are selected from (default: train_cam's)")
    training_flags(parser, batch_size=16, epochs=15, lr=2.5e-4, optimizer="sgd", schedule="poly",
                   weight_decay=1e-4)
    generator_flags(parser, frozen_bn=False)
    return parser


def select_words(prompt: SelectedPrompt, clip: CLIP, dataset: TagDataset, cams: Path, device: torch.device,
                 batch_size: int, workers: int) -> None:
    """Choose each image's word per class from its baseline CAM (POLE eq. 6)."""
    progress = Progress("selecting words", len(dataset))
    for batch in size_loader(dataset, batch_size, workers):
        maps = torch.zeros(*batch.labels.shape, *batch.images.shape[-2:])
        for row, name in enumerate(batch.names):
            cam = read_cam(cams, name)
            maps[row, torch.from_numpy(cam.keys)] = torch.from_numpy(resize_cam(cam, maps.shape[-2:]))
        pairs = batch.labels.to(device).nonzero(as_tuple=True)
        with torch.inference_mode():
            regions, _ = encode_regions(clip, batch.images.to(device), maps.to(device), pairs,
                                        with_background=False)
        prompt.select([batch.names[i] for i in pairs[0].tolist()], pairs[1], regions)
        progress.update(len(batch.names))
    progress.close()


def report_selection(prompt: SelectedPrompt, run: Run, classes: list[str]) -> None:
    """Write prompts.json and print how often each class's own name was chosen (POLE Fig. 4)."""
    table, path = prompt.report(classes), run.path("prompts.json")
    write_json(table, path)
    counts = count_choices([(table, None)])
    shares = [f"{label} {100 * counts[label]['own'] / counts[label].total():.0f}%"
              for label in classes if label in counts]
    print(f"own name chosen: {', '.join(shares)} (all choices: {path})")


class Trainer:
    """The run's fixed parts (data, CLIP, generator) and its three kinds of training."""

    def __init__(self, args: argparse.Namespace, run: Run, dataset: TagDataset, clip: CLIP,
                 generator: nn.Module, device: torch.device):
        self.args, self.run, self.clip, self.generator, self.device = args, run, clip, generator, device
        transform = train_transform(args.crop_size, args.resize_long if any(args.resize_long) else None,
                                    brightness=args.brightness)
        self.loader = make_loader(dataset.with_transform(transform, masks=False), args.batch_size,
                                  args.workers, seed=args.seed, drop_last=True)
        dim = clip.text_projection.shape[1]
        self.adapters = nn.ModuleList([Adapter(dim, args.adapter), Adapter(dim, args.adapter)]).to(device)

    def regions(self, batch: Batch):
        """Class probabilities P, pairs (image, class), foreground and background features of one batch."""
        pairs = batch.labels.nonzero(as_tuple=True)
        maps = self.generator(batch.images.contiguous(memory_format=torch.channels_last))
        probabilities = torch.sigmoid(maps)
        return probabilities, pairs, *encode_regions(self.clip, batch.images, probabilities, pairs)

    def tune(self, label: str, class_prompt: Prompt, background_prompt: Prompt, epochs: int,
             lr: float) -> None:
        """Fine-tune the generator (with adapters, and class prompts when joint) under CLIP."""
        args = self.args
        weights = {name: getattr(args, f"w_{name}") for name in ("fg", "bg", "suppress", "area")}

        def step(batch):
            probabilities, pairs, foreground, background = self.regions(batch)
            names, classes = [batch.names[i] for i in pairs[0].tolist()], pairs[1]
            area = probabilities[pairs] if args.area_over == "present" else probabilities
            return guidance_terms(foreground, background, class_prompt(names, classes, foreground),
                                  background_prompt(names, classes), area, tuple(self.adapters), weights,
                                  args.suppress_threshold, args.suppress_reduction)

        groups = self.generator.parameter_groups(lr, args.head_ratio)
        groups += [{"params": list(module.parameters()), "lr": rate, "weight_decay": 0.0} for module, rate in
                   ((self.adapters, args.adapter_lr or lr), (class_prompt, args.prompt_lr))]
        modules = {"generator": self.generator, "adapters": self.adapters, "class_prompt": class_prompt}
        self._fit(label, step, modules, groups, epochs, lr, args.optimizer)

    def learn(self, label: str, prompt: LearnedPrompt, class_text: torch.Tensor | None = None) -> FixedPrompt:
        """Learn prompts with the generator fixed; class_text [K,D] makes them background prompts.

        Background: SemPLeS eq. 2, attract to (1 - P)X and repel from the class's text (their release adds
        +log s for the second part; the paper's -log(1 - s) is used). Class: POLE eq. 5 on prompts.
        """
        args = self.args
        self.generator.eval()

        def step(batch):
            with torch.no_grad():
                _, (_, classes), foreground, background = self.regions(batch)
            text = prompt.features()
            if class_text is None:
                attraction = losses.attract(losses.similarity(foreground, text[classes]))
                repulsion = losses.repel(losses.similarity(background, text[classes]))
                return {"loss": args.w_fg * attraction + args.w_bg * repulsion,
                        "fg": attraction, "bg": repulsion}
            present = classes.unique()
            attraction = losses.attract(losses.similarity(background, text[classes]))
            repulsion = losses.repel(losses.similarity(class_text[present], text[present]))
            return {"loss": args.w_prompt_image * attraction + args.w_prompt_class * repulsion,
                    "image": attraction, "class": repulsion}

        groups = [{"params": list(prompt.parameters()), "lr": args.prompt_lr, "weight_decay": 0.0}]
        self._fit(label, step, {"prompt": prompt}, groups, args.prompt_epochs, args.prompt_lr, "adamw")
        return FixedPrompt(prompt.save(self.run.path(f"{label}.pt")))

    def _fit(self, label, step, modules, groups, epochs, lr, optimizer) -> None:
        fit(self.run, self.loader, step, modules, groups,
            training_of(self.args, label, epochs=epochs, lr=lr, optimizer=optimizer))


def class_side(trainer: Trainer, words: Words, dataset: TagDataset, cams: Path) -> Prompt:
    """The class prompt that --class-prompt names."""
    args, clip = trainer.args, trainer.clip
    template = args.template.replace("[ctx]", f"[{'C' if args.ctx_per_class else 'S'}*{args.n_ctx}]")
    if args.class_prompt == "name":
        return FixedPrompt(encode_words(clip, template, words.names))
    if args.class_prompt == "word":
        prompt = SelectedPrompt(clip, template, words.candidates, args.reselect_every)
        if args.prompts:
            prompt.load_report(read_choices(args.prompts), dataset.classes)
        else:
            select_words(prompt, clip, dataset, cams, trainer.device, args.cam_batch_size, args.workers)
        report_selection(prompt, trainer.run, dataset.classes)
        return prompt
    if args.prompts:
        return FixedPrompt(read_learned(args.prompts, clip, len(dataset.classes))[1])
    prompt = LearnedPrompt(clip, template, words.names, args.ctx_init)
    return prompt if args.joint else trainer.learn("class_prompts", prompt)


def background_side(trainer: Trainer, words: Words, class_prompt: Prompt) -> FixedPrompt:
    """What --background-prompt names, as text [K,M,D]; learns SemPLeS' prompts after its matching stage."""
    args, clip, n_classes = trainer.args, trainer.clip, len(words.names)
    if args.match_epochs:
        nothing = FixedPrompt(encode_words(clip, "{}", []).expand(n_classes, -1, -1))
        trainer.tune("match", class_prompt, nothing, args.match_epochs, args.match_lr or args.lr)
    listed = words.background if args.background_prompt == "list" else []
    text = encode_words(clip, "a photo of {}.", listed).expand(n_classes, -1, -1)
    if args.background_prompts:
        _, learned = read_learned(args.background_prompts, clip, n_classes)
        return FixedPrompt(torch.cat([text, learned[:, None]], dim=1))
    if args.background_prompt != "learned" or args.w_suppress == 0:
        return FixedPrompt(text)
    prompt = LearnedPrompt(clip, f"[C*{args.background_length}]", words.names)
    names = encode_words(clip, "a photo of {}.", words.names)
    return FixedPrompt(trainer.learn("background_prompts", prompt, names).text[:, None])


def main(argv: list[str] | None = None) -> int:
    args = parse(get_parser(), argv, "train_prompt")
    device = pick_device(args.device)
    before = stage_folder(args.runs, args.dataset, "train_cam")
    dataset = build_dataset(args.dataset, args.data_root, args.split, skip_bad=args.skip_bad)
    words = load_words(args.dataset, dataset.classes, dataset.synonyms, args.synonyms, args.n_synonyms)
    generator = load_generator(args.init or before / "generator.pt", dataset.classes,
                               freeze_stages=args.freeze_stages, frozen_bn=args.frozen_bn)
    generator.to(device, memory_format=torch.channels_last)
    clip = load_clip(args.clip, device, args.clip_cache)
    run = Run(args.out, vars(args), args.resume, args.overwrite)
    print(f"{args.dataset} {args.split}: {len(dataset)} images; {args.method}: class prompt "
          f"{args.class_prompt}, background prompt {args.background_prompt}; writing {run.out}")

    seed_everything(args.seed)
    trainer = Trainer(args, run, dataset, clip, generator, device)
    class_prompt = class_side(trainer, words, dataset, args.cams or before / "cams")
    background_prompt = background_side(trainer, words, class_prompt)
    trainer.tune("guide", class_prompt, background_prompt, args.epochs, args.lr)
    save_generator(generator, run.path("generator.pt"))
    if isinstance(class_prompt, SelectedPrompt):
        report_selection(class_prompt, run, dataset.classes)
    if isinstance(class_prompt, LearnedPrompt):  # --joint: learned until now
        class_prompt.save(run.path("class_prompts.pt"))

    write_cams(generator, dataset, run.path("cams"), device, args.scales, args.flip, args.cam_batch_size,
               args.workers, args.cam_format, args.resume)
    run.result(**print_cam_curve(dataset, run.path("cams")))
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
