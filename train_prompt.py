"""Stage 2: select or learn prompts, fine-tune the generator under frozen CLIP, write better CAMs."""
import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from clipwsss import losses
from clipwsss.cam import size_batches, write_cams
from clipwsss.cam_files import list_cams, read_cam, resize_cam
from clipwsss.clip import CLIP
from clipwsss.datasets import TagDataset, build_dataset, collate
from clipwsss.engine import (Progress, Run, fit, load_weights, make_loader, make_optimizer, make_scheduler, pick_device,
                             save_atomic, seed_everything, write_json)
from clipwsss.errors import InputError, run_script
from clipwsss.generator import load_generator, save_generator
from clipwsss.guidance import Adapter, encode_regions, guidance_terms, load_clip
from clipwsss.options import parse, script_parser, stage_folder
from clipwsss.prompts import FixedPrompt, LearnedPrompt, Prompt, SelectedPrompt, encode_words, load_words
from clipwsss.scoring import print_cam_curve
from clipwsss.transforms import train_transform

METHODS = ("clims", "pole", "semples", "manual", "coop", "target", "defo")


def get_parser() -> argparse.ArgumentParser:
    """Flags; --method and --dataset fill them with the paper's values, an explicit flag wins."""
    parser = script_parser(__doc__, training=dict(batch_size=16, epochs=15, lr=2.5e-4, optimizer="sgd", schedule="poly",
                                                  weight_decay=1e-4))
    add = parser.add_argument
    add("--method", choices=METHODS, default="pole", help="preset of everything below")
    add("--class-prompt", choices=("name", "word", "learned"), default="name",
        help="what stands for a class: its name, POLE's selected word, vectors learned as --template says")
    add("--background-prompt", choices=("none", "list", "learned"), default="none",
        help="what the foreground must not resemble: nothing, CLIMS' word list, SemPLeS' learned prompts")
    add("--template", default="a photo of {}.", help="class prompt: {} the name; [S*n] shared, [C*n] own vectors, "
        "[ctx] the --n-ctx context")
    add("--n-ctx", type=int, default=16, help="vectors of a learned context (CoOp)")
    add("--ctx-per-class", action="store_true", help="a context of each class's own")
    add("--ctx-init", default="", help="words that shared context vectors start from")
    add("--background-length", type=int, default=30, help="embeddings of a learned background prompt (SemPLeS)")
    add("--synonyms", type=Path, help="JSON of candidates (class -> list of words), or a built-in list's name "
        "(voc12: chatgpt, chatgpt-long, bnc, news, wikipedia; toy: mixed)")
    add("--n-synonyms", type=int, help="use only the first N synonyms (POLE Fig. 3)")
    add("--prompts", type=Path, help="class prompts of an earlier run (prompts.json or class_prompts.pt)")
    add("--background-prompts", type=Path, help="learned background prompts of an earlier run (background_prompts.pt), "
        "instead of learning some; with --background-prompt list beside the list")
    add("--reselect-every", type=int, default=0, help="choose words with the current generator in epochs 0, N, "
        "2N, ...; 0 keeps the baseline CAMs' words")
    add("--joint", action="store_true", help="learn class prompts together with the generator, as POLE's variants do")
    add("--clip", default="ViT-B/32", help="published name or file")
    add("--clip-cache", type=Path, help="folder of CLIP weights (default: the torch hub folder)")
    add("--adapter", choices=("none", "fixed", "learnable"), default="none", help="POLE's adapters, eqs. 7-8")
    add("--adapter-lr", type=float, help="their learning rate (default: --lr)")
    add("--w-fg", type=float, default=10.0, help="weight of foreground matching (alpha)")
    add("--w-bg", type=float, default=24.0, help="weight of background repelling (beta, lambda_b)")
    add("--w-suppress", type=float, default=1.0, help="weight of background suppression (CBS, lambda)")
    add("--w-area", type=float, default=0.2, help="weight of the area term (REG)")
    add("--w-prompt-class", type=float, default=0.02, help="SemPLeS' lambda_T: repel prompts from the class, eq. 2")
    add("--w-prompt-image", type=float, default=1.0, help="weight of SemPLeS' prompt-I: attract prompts to (1 - P)X, eq. 2")
    add("--suppress-threshold", type=float, default=0.0, help="similarity above which suppression acts")
    add("--suppress-reduction", choices=("sum", "mean"), default="mean", help="over pairs")
    add("--area-over", choices=("all", "present"), default="all", help="classes the area term averages over")
    add("--match-epochs", type=int, default=0, help="generator epochs without suppression first (SemPLeS' stage a)")
    add("--match-lr", type=float, help="their learning rate (default: --lr)")
    add("--prompt-epochs", type=int, default=0, help="epochs of learning prompts with the generator fixed")
    add("--prompt-lr", type=float, default=5e-4, help="learning rate of prompts (AdamW)")
    add("--init", type=Path, help="generator to start from (default: train_cam's)")
    add("--cams", type=Path, help="baseline CAMs that words are selected from (default: train_cam's)")
    add("--freeze-stages", type=int, default=1, help="frozen stages of the generator")
    add("--frozen-bn", action=argparse.BooleanOptionalAction, default=False, help="keep batch norm statistics")
    add("--head-ratio", type=float, default=10.0, help="learning rate of the classifier over the backbone's")
    add("--crop-size", type=int, default=512, help="side of the training crop")
    add("--resize-long", type=int, nargs=2, default=(320, 640), metavar=("LO", "HI"),
        help="range of the long side before cropping; 0 0 keeps images as they are")
    add("--brightness", type=float, default=0.0, help="random gain of 1 +- this in training")
    add("--scales", type=float, nargs="+", default=(1.0, 0.5, 1.5, 2.0), help="scales of the CAMs")
    add("--flip", action=argparse.BooleanOptionalAction, default=True, help="add the mirror image's maps")
    add("--cam-batch-size", type=int, default=4, help="images of one size per forward pass when making CAMs")
    add("--cam-format", choices=("npz", "irn"), default="npz", help="npz without pickle, or IRN's .npy")
    return parser


def select_words(prompt: SelectedPrompt, clip: CLIP, dataset: TagDataset, cams: Path, device: torch.device,
                 batch_size: int, workers: int) -> None:
    """Choose each image's word per class from its baseline CAM (POLE eq. 6)."""
    progress = Progress("selecting words", len(dataset))
    loader = DataLoader(dataset, batch_sampler=size_batches(dataset, batch_size), num_workers=workers, collate_fn=collate)
    for batch in loader:
        maps = torch.zeros(*batch.labels.shape, *batch.images.shape[-2:])
        for row, name in enumerate(batch.names):
            cam = read_cam(cams, name)
            maps[row, torch.from_numpy(cam.keys)] = torch.from_numpy(resize_cam(cam, maps.shape[-2:]))
        pairs = batch.labels.to(device).nonzero(as_tuple=True)
        with torch.inference_mode():
            regions, _ = encode_regions(clip, batch.images.to(device), maps.to(device), pairs, with_background=False)
        prompt.select([batch.names[i] for i in pairs[0].tolist()], pairs[1], regions)
        progress.update(len(batch.names))
    progress.close()


def report_selection(prompt: SelectedPrompt, run: Run, classes: list[str]) -> None:
    """Write prompts.json and print how often each class's own name was chosen (POLE Fig. 4)."""
    write_json(prompt.report(classes), run.path("prompts.json"))
    counts = Counter((k, prompt.chosen(name, k) == 0) for name, rows in prompt.choices.items() for k in rows)
    shares = [f"{label} {100 * counts[k, True] / (counts[k, True] + counts[k, False]):.0f}%"
              for k, label in enumerate(classes) if counts[k, True] + counts[k, False]]
    print(f"own name chosen: {', '.join(shares)} (all choices: {run.path('prompts.json')})")


class Trainer:
    """The run's fixed parts (data, CLIP, generator) and its three kinds of training."""

    def __init__(self, args: argparse.Namespace, run: Run, dataset: TagDataset, clip: CLIP, generator: nn.Module,
                 device: torch.device):
        self.args, self.run, self.clip, self.generator, self.device = args, run, clip, generator, device
        resize = tuple(args.resize_long) if any(args.resize_long) else None
        transform = train_transform(args.crop_size, resize, brightness=args.brightness)
        augmented = dataset.with_transform(transform, masks=False)
        self.loader = make_loader(augmented, args.batch_size, args.workers, seed=args.seed, drop_last=True)
        dim = clip.text_projection.shape[1]
        self.adapters = nn.ModuleList([Adapter(dim, args.adapter), Adapter(dim, args.adapter)]).to(device)

    def regions(self, batch, grad: bool):
        """Class probabilities P, pair names and classes, foreground and background features of one batch."""
        pairs = batch.labels.nonzero(as_tuple=True)
        with torch.set_grad_enabled(grad):
            probabilities = torch.sigmoid(self.generator(batch.images.contiguous(memory_format=torch.channels_last)))
            foreground, background = encode_regions(self.clip, batch.images, probabilities, pairs)
        return probabilities, pairs, [batch.names[i] for i in pairs[0].tolist()], foreground, background

    def tune(self, label: str, class_prompt: Prompt, background_prompt: Prompt, epochs: int, lr: float) -> None:
        """Fine-tune the generator (with adapters, and class prompts when joint) under CLIP."""
        args = self.args
        weights = {name: getattr(args, f"w_{name}") for name in ("fg", "bg", "suppress", "area")}

        def step(batch):
            probabilities, pairs, names, foreground, background = self.regions(batch, grad=True)
            return guidance_terms(foreground, background, class_prompt(names, pairs[1], foreground),
                                  background_prompt(names, pairs[1]),
                                  probabilities[pairs] if args.area_over == "present" else probabilities,
                                  tuple(self.adapters), weights, args.suppress_threshold, args.suppress_reduction)

        groups = self.generator.parameter_groups(lr, args.head_ratio)
        groups += [{"params": list(self.adapters.parameters()), "lr": args.adapter_lr or lr, "weight_decay": 0.0},
                   {"params": [p for p in class_prompt.parameters()], "lr": args.prompt_lr, "weight_decay": 0.0}]
        self._fit(label, step, {"generator": self.generator, "adapters": self.adapters, "class_prompt": class_prompt},
                  [group for group in groups if group["params"]], epochs, lr, args.optimizer, class_prompt.start_epoch)

    def learn(self, label: str, prompt: LearnedPrompt, class_text: torch.Tensor | None) -> FixedPrompt:
        """Learn prompts with the generator fixed; class_text [K,D] makes them background prompts.

        Background: SemPLeS eq. 2, attract to (1 - P)X and repel from the class's text (their release adds
        +log s for the second part; the paper's -log(1 - s) is used). Class: POLE eq. 5 on prompts.
        """
        args = self.args
        self.generator.eval()

        def step(batch):
            _, (_, classes), _, foreground, background = self.regions(batch, grad=False)
            text = prompt.features()
            near, far = (background, foreground) if class_text is not None else (foreground, background)
            attraction = losses.attract(losses.similarity(near, text[classes]))
            if class_text is not None:
                present = classes.unique()
                repulsion = losses.repel(losses.similarity(class_text[present], text[present]))
                return {"loss": args.w_prompt_image * attraction + args.w_prompt_class * repulsion, "image": attraction,
                        "class": repulsion}
            repulsion = losses.repel(losses.similarity(far, text[classes]))
            return {"loss": args.w_fg * attraction + args.w_bg * repulsion, "fg": attraction, "bg": repulsion}

        groups = [{"params": list(prompt.parameters()), "lr": args.prompt_lr, "weight_decay": 0.0}]
        self._fit(label, step, {"prompt": prompt}, groups, args.prompt_epochs, args.prompt_lr, "adamw")
        return FixedPrompt(store_text(prompt, self.run.path(f"{label}.pt")))

    def _fit(self, label, step, modules, groups, epochs, lr, optimizer, on_epoch=None) -> None:
        args = self.args
        optimizer = make_optimizer(groups, optimizer, lr, args.weight_decay, args.momentum)
        scheduler = make_scheduler(optimizer, args.schedule, epochs * len(self.loader), warmup=args.warmup)
        fit(self.run, self.loader, step, modules, optimizer, scheduler, epochs, self.device, args.seed, args.clip_norm,
            label, "last" if label == "guide" else f"last_{label}", args.precision, on_epoch=on_epoch)


def class_side(args: argparse.Namespace, trainer: Trainer, words, dataset: TagDataset, cams: Path) -> Prompt:
    """The class prompt that --class-prompt names."""
    context = f"[{'C' if args.ctx_per_class else 'S'}*{args.n_ctx}]"
    template, clip, run = args.template.replace("[ctx]", context), trainer.clip, trainer.run
    if args.class_prompt == "name":
        return FixedPrompt(encode_words(clip, template, words.names))
    if args.class_prompt == "word":
        prompt = SelectedPrompt(clip, template, words.candidates, args.reselect_every)
        if args.prompts:
            prompt.load_report(json.loads(args.prompts.read_text()), dataset.classes)
        else:
            select_words(prompt, clip, dataset, cams, trainer.device, args.cam_batch_size, args.workers)
        report_selection(prompt, run, dataset.classes)
        return prompt
    if args.prompts:
        return FixedPrompt(stored_text(args.prompts, len(dataset.classes), clip))
    prompt = LearnedPrompt(clip, template, words.names, args.ctx_init)
    return prompt if args.joint else trainer.learn("class_prompts", prompt, None)


@torch.no_grad()
def store_text(prompt: LearnedPrompt, path: Path) -> torch.Tensor:
    """Text features [K,D] of learned prompts, written with their vectors, template and names for later runs."""
    text = prompt.features()
    save_atomic({"template": prompt.template, "names": prompt.names, "vectors": prompt.vectors.detach().cpu(),
                 "text": text.cpu()}, path)
    return text


def stored_text(path: Path, n_classes: int, clip: CLIP) -> torch.Tensor:
    """Text features [K,D] of a learned-prompt file, on CLIP's device; InputError where it has other classes or another D."""
    text, dim = load_weights(path).get("text"), clip.text_projection.shape[1]
    if text is None or tuple(text.shape) != (n_classes, dim):
        raise InputError(f"{path}: not learned prompts of {n_classes} classes for this CLIP ({dim} dimensions)")
    return text.to(clip.text_projection.device)


def background_side(args: argparse.Namespace, trainer: Trainer, words, class_prompt: Prompt) -> FixedPrompt:
    """What --background-prompt names, as text [K,M,D]; learns SemPLeS' prompts after its matching stage."""
    n_classes, clip = len(words.names), trainer.clip
    nothing = FixedPrompt(encode_words(clip, "{}", []).expand(n_classes, -1, -1))
    if args.match_epochs:
        trainer.tune("match", class_prompt, nothing, args.match_epochs, args.match_lr or args.lr)
    listed = words.background if args.background_prompt == "list" else []
    text = encode_words(clip, "a photo of {}.", listed).expand(n_classes, -1, -1)
    if args.background_prompts:
        return FixedPrompt(torch.cat([text, stored_text(args.background_prompts, n_classes, clip)[:, None]], dim=1))
    if args.background_prompt != "learned" or args.w_suppress == 0:
        return FixedPrompt(text)
    prompt = LearnedPrompt(clip, f"[C*{args.background_length}]", words.names)
    names = encode_words(clip, "a photo of {}.", words.names)
    return FixedPrompt(trainer.learn("background_prompts", prompt, names).text[:, None])


def main(argv: list[str] | None = None) -> int:
    args = parse(get_parser(), argv, "train_prompt")
    device = pick_device(args.device)
    before = stage_folder(args.runs, args.dataset, "train_cam")
    init, cams = args.init or before / "generator.pt", args.cams or before / "cams"
    dataset = build_dataset(args.dataset, args.data_root, args.split, skip_bad=args.skip_bad)
    words = load_words(args.dataset, dataset.classes, dataset.synonyms, args.synonyms, args.n_synonyms)
    generator, backbone, stride = load_generator(init, dataset.classes, freeze_stages=args.freeze_stages,
                                                 frozen_bn=args.frozen_bn)
    generator.to(device, memory_format=torch.channels_last)
    clip = load_clip(args.clip, device, args.clip_cache)
    run = Run(args.out, vars(args), args.resume, args.overwrite)
    print(f"{args.dataset} {args.split}: {len(dataset)} images; {args.method}: class prompt {args.class_prompt}, "
          f"background prompt {args.background_prompt}; writing {run.out}")

    seed_everything(args.seed)
    trainer = Trainer(args, run, dataset, clip, generator, device)
    class_prompt = class_side(args, trainer, words, dataset, cams)
    background_prompt = background_side(args, trainer, words, class_prompt)
    trainer.tune("guide", class_prompt, background_prompt, args.epochs, args.lr)
    save_generator(generator, run.path("generator.pt"), backbone, stride, dataset.classes)
    if isinstance(class_prompt, SelectedPrompt):
        report_selection(class_prompt, run, dataset.classes)
    if isinstance(class_prompt, LearnedPrompt):  # --joint: learned until now
        store_text(class_prompt, run.path("class_prompts.pt"))

    folder = run.path("cams")
    done = frozenset(list_cams(folder)) if args.resume and folder.is_dir() else frozenset()
    write_cams(generator, dataset, folder, device, args.scales, args.flip, args.cam_batch_size, args.workers,
               args.cam_format, done)
    best = print_cam_curve(dataset, folder)
    if best:
        run.log(label="cams", **best)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
