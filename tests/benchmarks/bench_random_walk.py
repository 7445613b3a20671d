"""Random walk against the published dense walk, one thread: `python tests/benchmarks/bench_random_walk.py`.

The dense walk (an N x N transition matrix that is squared exp_times times) takes minutes and gigabytes at
94 x 125. So one of its squarings is timed there and counted exp_times times; building the matrix and the
final product are timed in full. Numbers are compared at a smaller size, where the dense walk runs in full and
in float64. Our walks are timed before and after the dense squaring. Times are medians of CPU seconds, on which
other programs have less influence.
"""
import argparse
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clipwsss.refine.random_walk import boundary_affinity, pair_offsets, propagate, propagate_affinity

EXP_TIMES = 8


def cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in information.read_text().splitlines()
             if line.startswith("model name")] if information.exists() else []
    return names[0] if names else platform.machine()


def smooth(size: tuple[int, int], channels: int, cell: int, seed: int) -> torch.Tensor:
    """Random maps [channels, H, W] in [0, 1] with blobs of about `cell` pixels."""
    coarse = torch.rand(1, channels, size[0] // cell + 2, size[1] // cell + 2,
                        generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size, mode="bicubic")[0].clamp(0, 1)


def dense_transition(affinities: torch.Tensor, radius: int, beta: float) -> torch.Tensor:
    """The published N x N matrix: powered affinities, each column divided by its sum."""
    _, height, width = affinities.shape
    index = torch.arange(height * width).reshape(height, width)
    matrix = torch.eye(height * width, dtype=affinities.dtype)
    for values, (dy, dx) in zip(affinities, pair_offsets(radius)):
        left, right = max(-dx, 0), width - max(dx, 0)
        first = index[:height - dy, left:right].flatten()
        second = index[dy:, left + dx:right + dx].flatten()
        kept = values[:height - dy, left:right].flatten()
        matrix[first, second] = kept
        matrix[second, first] = kept
    matrix.pow_(beta)
    return matrix.div_(matrix.sum(0, keepdim=True))


def dense_walk(seeds: torch.Tensor, transition: torch.Tensor) -> torch.Tensor:
    for _ in range(EXP_TIMES):
        transition = transition @ transition
    return (seeds.flatten(1) @ transition).reshape(seeds.shape)


def timed(function: Callable[[], object], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return times


def psa_affinity(size: tuple[int, int], radius: int, seed: int) -> torch.Tensor:
    """exp(-mean absolute difference) of smooth random features, as PSA's network gives it."""
    features = smooth(size, 16, 6, seed) * 4
    padded = F.pad(features, (radius - 1, radius - 1, 0, radius - 1))
    partners = [padded[:, dy:dy + size[0], radius - 1 + dx:radius - 1 + dx + size[1]]
                for dy, dx in pair_offsets(radius)]
    return torch.stack([(features - partner).abs().mean(0).neg().exp() for partner in partners])


def compare(size: tuple[int, int], classes: int, radius: int) -> tuple[float, float]:
    """Largest difference from the full dense walks in float64: IRN, PSA."""
    cams, boundary = maps_and_boundary(size, classes)
    affinities = psa_affinity(size, radius, 2)
    seeds = (cams * (1 - boundary)).double()
    dense = dense_walk(seeds, dense_transition(boundary_affinity(boundary, radius).double(), radius, 10))
    irn = (propagate(cams, boundary, radius, 10, EXP_TIMES) - dense).abs().max()
    dense = dense_walk(cams.double(), dense_transition(affinities.double(), radius, 8))
    psa = (propagate_affinity(cams, affinities, pair_offsets(radius), EXP_TIMES, 8) - dense).abs().max()
    return float(irn), float(psa)


def maps_and_boundary(size: tuple[int, int], classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    return smooth(size, classes, 8, 0), smooth(size, 1, 4, 1)[0] ** 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(94, 125), help="height width of the timed maps")
    parser.add_argument("--equal-size", type=int, nargs=2, default=(32, 42),
                        help="height width of the comparison")
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--radius", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    size, radius, offsets = tuple(args.size), args.radius, pair_offsets(args.radius)
    print(f"{cpu_name()}, one thread, torch {torch.__version__}")

    cams, boundary = maps_and_boundary(size, args.classes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    propagate(cams, boundary, radius, 10, EXP_TIMES)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    affinities = psa_affinity(size, radius, 2)
    walks = (lambda: propagate(cams, boundary, radius, 10, EXP_TIMES),
             lambda: propagate_affinity(cams, affinities, offsets, EXP_TIMES, 8))
    times = [timed(walk, 15) for walk in walks]

    start = time.process_time()
    transition = dense_transition(boundary_affinity(boundary, radius), radius, 10)
    build = time.process_time() - start
    squaring, = timed(lambda: transition @ transition, 1)
    product, = timed(lambda: cams.flatten(1) @ transition, 1)
    slow = build + EXP_TIMES * squaring + product
    irn, psa = (statistics.median(first + timed(walk, 15)) for first, walk in zip(times, walks))
    print(f"{size[0]} x {size[1]}, {args.classes} maps, radius {radius}, 2^{EXP_TIMES} steps: "
          f"IRN {irn * 1e3:.1f} ms (boundary to result), PSA {psa * 1e3:.1f} ms (affinities to result)")
    print(f"dense walk: {build:.1f} s to build, one squaring {squaring:.1f} s (counted {EXP_TIMES} times), "
          f"product {product:.2f} s: {slow:.0f} s; its matrix {transition.numel() * 4 / 2 ** 20:.0f} MB")
    irn_difference, psa_difference = compare(tuple(args.equal_size), args.classes, radius)
    where = "x".join(map(str, args.equal_size))
    print(f"IRN walk: {slow / irn:,.0f} x faster (goal 5,000), difference at {where} {irn_difference:.1e} "
          f"(goal 1e-4)")
    print(f"PSA walk: {slow / psa:,.0f} x faster (goal 300), difference at {where} {psa_difference:.1e}")
    print(f"memory: peak {memory:.0f} MB above the process before its first walk (goal 100)")


if __name__ == "__main__":
    main()
