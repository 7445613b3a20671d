"""A training step of train_prompt (ResNet-50 generator, CLIP ViT-B/32) against one in the way of CLIMS' release.

The release encodes foregrounds, backgrounds and then the foregrounds again, and all texts at 77 tokens, in each step,
with a CLIP whose weights collect gradients. `python tests/benchmarks/bench_train_prompt.py` alternates both on
random weights and one resident batch: CPU seconds of one thread; `--device cuda` wall time with the queue emptied.
"""
import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from clipwsss.cams.generator import build_generator
from clipwsss.clip import CLIP, Architecture, tokenize
from clipwsss.datasets import Batch
from clipwsss.guidance.losses import Adapter
from clipwsss.guidance.losses import attract, repel, similarity, suppress
from clipwsss.guidance.losses import guided_loss
from clipwsss.guidance.regions import generator_regions
from clipwsss.guidance.words import encode_words, load_words
from clipwsss.training import joined_loss

WEIGHTS = {"fg": 10.0, "bg": 24.0, "suppress": 1.0, "area": 0.2}
THRESHOLD = 0.26
VIT_B_32 = Architecture(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12)


def climslike(generator: torch.nn.Module, clip: CLIP, names: list[str], words: list[str], batch: Batch) -> torch.Tensor:
    """The loss of one step, computed as the release does."""
    maps = torch.sigmoid(generator(batch.images))
    masks = F.interpolate(maps, (224, 224), mode="bilinear", align_corners=True)
    views = F.interpolate(batch.images, (224, 224), mode="bilinear", align_corners=True)
    pairs = batch.labels.nonzero()
    foreground = torch.stack([masks[i, k] * views[i] for i, k in pairs])
    background = torch.stack([(1 - masks[i, k]) * views[i] for i, k in pairs])

    def text(prompts: list[str]) -> torch.Tensor:
        tokens = tokenize(prompts).to(batch.images.device)
        whole = clip.transformer(clip.embed_tokens(tokens) + clip.positional_embedding, causal=True)
        ends = whole[torch.arange(len(tokens)), tokens.argmax(-1)]
        return clip.ln_final(ends) @ clip.text_projection

    def prompts() -> torch.Tensor:
        return text([f"a photo of {names[k]}." for _, k in pairs])

    listed = text([f"a photo of {word}." for word in words]).expand(len(pairs), -1, -1)
    return (WEIGHTS["fg"] * attract(similarity(clip.encode_image(foreground), prompts())).mean()
            + WEIGHTS["bg"] * repel(similarity(clip.encode_image(background), prompts())).mean()
            + WEIGHTS["suppress"] * suppress(similarity(clip.encode_image(foreground), listed), THRESHOLD).sum()
            + WEIGHTS["area"] * maps.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crop", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="ours under autocast")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    classes = [f"class {k}" for k in range(20)]
    words = load_words("voc12", classes=["aeroplane"])
    names = [*words.names, *"bicycle bird boat bottle bus car cat chair cow table dog horse motorbike player "
             "plant sheep sofa train monitor".split()]
    generator = build_generator(classes, weights="none").train()
    generator.to(args.device, memory_format=torch.channels_last)
    frozen = CLIP(VIT_B_32).eval().requires_grad_(False).to(args.device)
    theirs = CLIP(VIT_B_32).eval().to(args.device)
    theirs.load_state_dict(frozen.state_dict())
    labels = torch.zeros(args.batch_size, 20)
    for row in labels:  # VOC has 1.5 classes an image
        row[torch.randperm(20)[:1 + int(torch.rand(()) < 0.5)]] = 1
    batch = Batch([str(i) for i in range(args.batch_size)], torch.rand(args.batch_size, 3, args.crop, args.crop), labels,
                  None).to(args.device)
    background = encode_words(frozen, "a photo of {}.", words.background).expand(20, -1, -1)
    text = encode_words(frozen, "a photo of {}.", names)
    adapters = torch.nn.ModuleList([Adapter(512, "none"), Adapter(512, "none")])
    optimizer = torch.optim.SGD([p for p in generator.parameters() if p.requires_grad], lr=1e-4)
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    clock = time.perf_counter if args.device == "cuda" else time.process_time

    def plain() -> None:
        climslike(generator, theirs, names, words.background, batch).backward()

    def ours() -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            regions = generator_regions(generator, frozen, batch, "sigmoid")
            terms = guided_loss(regions, text[regions.classes], background[regions.classes], adapters, WEIGHTS,
                                THRESHOLD, "sum", "all")
            loss = joined_loss(terms)["loss"]
        loss.backward()

    seconds: dict[str, list[float]] = {"CLIMS' way": [], "ours": []}
    for number in range(args.rounds + 1):
        for name, work in zip(seconds, (plain, ours)):
            begin = clock()
            work()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            theirs.zero_grad(set_to_none=True)
            wait()
            if number:  # the first round warms up
                seconds[name].append(clock() - begin)
    before, after = (statistics.median(row) for row in seconds.values())
    print(f"train_prompt step, {args.batch_size} x {args.crop} x {args.crop}, {int(labels.sum())} pairs, "
          f"{len(words.background)} background words: CLIMS' way {before:.2f} s, ours {after:.2f} s: "
          f"{before / after:.2f}x")


if __name__ == "__main__":
    main()
