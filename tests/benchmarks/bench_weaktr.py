"""WeakTr's maps beside the plain transformer's pass: memory and time: `python tests/benchmarks/bench_weaktr.py`.

Each pass runs in a process of its own. Its peak is what lives at once beyond the weights, by the kernel's count
of this process (Linux; on CUDA the allocator's).
"""
import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from clipwsss.cams.generator import build_generator
from clipwsss.cams.weaktr import WeakTr
from clipwsss.networks import vit


def plain(generator: WeakTr, images: Tensor) -> Tensor:
    """The transformer alone."""
    return vit.VisionTransformer.forward(generator, images)


def all_attention(generator: WeakTr, images: Tensor) -> Tensor:
    """A plain reading of the paper, which keeps every block's attention until the end."""
    tokens, _ = generator.embed(images)
    held = []
    for block in generator.blocks:
        held.append(vit.attention_weights(*block.queries(tokens)))
        tokens, _ = block(tokens)
    return torch.stack(held).mean((0, 2))


def maps(generator: WeakTr, images: Tensor) -> Tensor:
    """Our maps: one image and one head at a time."""
    return generator(images)


PASSES = {"plain": plain, "maps": maps, "all attention": all_attention}


def memory(field: str) -> int:
    """A field of this process's status in bytes."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


@torch.inference_mode()
def one(name: str, batch: int, side: int, rounds: int) -> None:
    """Print the weights' bytes, a pass's peak beyond them, and its best time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = build_generator([str(k) for k in range(20)], "deit_small", "none")
    generator.eval().to(device)
    images = torch.rand(batch, 3, side, side, device=device)
    weights = sum(p.numel() * 4 for p in generator.parameters())
    PASSES[name](generator, images[:1, :, :64, :64])  # allocates what stays
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    before = torch.cuda.memory_allocated() if device.type == "cuda" else memory("VmRSS")
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        PASSES[name](generator, images)
        torch.cuda.synchronize() if device.type == "cuda" else None
        best = min(best, time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else memory("VmHWM")
    print(weights, peak - before, best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=384, help="of the images")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 8], help="images in a pass")
    parser.add_argument("--rounds", type=int, default=3, help="timed passes, of which the best counts")
    parser.add_argument("--one", choices=PASSES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.batches[0], args.side, args.rounds)
        return
    print(f"torch {torch.__version__}, DeiT-S, 20 classes, {args.side} x {args.side}")
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes back at once
    for batch in args.batches:
        found = {}
        for name in PASSES:
            command = [sys.executable, __file__, "--one", name, "--batches", str(batch), "--side", str(args.side),
                       "--rounds", str(args.rounds)]
            told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            found[name] = [float(value) for value in told.split()]
        weights, least, fastest = found["plain"]
        for name, (_, peak, seconds) in found.items():
            print(f"batch {batch}  {name:<14}{peak / 2**20:8.1f} MiB beyond {weights / 2**20:.0f} MiB of weights: "
                  f"{(weights + peak) / (weights + least):5.2f} times plain with weights, {peak / least:5.2f} without; "
                  f"{seconds:6.2f} s, {seconds / fastest:5.2f} times plain", flush=True)


if __name__ == "__main__":
    main()
