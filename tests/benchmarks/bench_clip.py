"""CLIP's towers against open_clip's, random weights, same run: `python tests/benchmarks/bench_clip.py`."""
import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from clipwsss import clip


def race(label: str, ours: Callable[[], None], theirs: Callable[[], None], rounds: int) -> None:
    """Print the best time of each of two functions that take turns."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds + 1):  # the first is a warm-up that the later ones beat
        for index, function in enumerate((ours, theirs)):
            start = time.perf_counter()
            function()
            best[index] = min(best[index], time.perf_counter() - start)
    ratio = best[1] / best[0]
    print(f"{label:<56}{best[0]:7.3f} s, reference {best[1]:7.3f} s, {ratio:6.2f} times as fast", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, of which the best counts")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    names = ("aeroplane", "dining table", "potted plant", "tv monitor") * 5
    prompts = [f"a photo of {name}." for name in names]
    tokens = clip.tokenize(prompts)
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, batch {args.batch}, {len(prompts)} prompts")
    for name in ("ViT-B-32-quickgelu", "RN50-quickgelu"):
        theirs = open_clip.create_model(name, pretrained=None).eval().requires_grad_(False)
        ours = clip.CLIP.from_state_dict(theirs.state_dict()).requires_grad_(False)
        pixels = torch.randn(args.batch, 3, 224, 224)

        def to_pixels(encode: Callable) -> Callable[[], None]:
            return lambda: encode(pixels.clone().requires_grad_()).square().sum().backward()

        race(f"{name}: images, forward, backward to pixels", to_pixels(ours.visual),
             to_pixels(theirs.encode_image), args.rounds)
        with torch.no_grad():
            race(f"{name}: images, forward", lambda: ours.visual(pixels),
                 lambda: theirs.encode_image(pixels), args.rounds)
            if name.startswith("ViT"):
                race("text, trimmed to the longest", lambda: ours.encode_text(tokens),
                     lambda: theirs.encode_text(tokens), args.rounds)
    texts = prompts * 50
    race(f"tokenize {len(texts)} texts", lambda: clip.tokenize(texts), lambda: open_clip.tokenize(texts),
         args.rounds)


if __name__ == "__main__":
    main()
