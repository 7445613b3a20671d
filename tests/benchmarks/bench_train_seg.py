"""Training step against bare forward and backward, and peak memory of multi-scale testing.

`python tests/benchmarks/bench_train_seg.py` draws a small folder data set in a temporary folder. The step of
the training loop (two loader workers, logging, optimiser) and the bare network on a resident batch alternate;
medians are compared. Peak memory is that of fresh processes, in which the C library returns freed memory at
once, so that what it keeps for itself does not count.
"""
import argparse
import contextlib
import io
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from clipwsss.datasets import build_dataset
from clipwsss.datasets.loaders import make_loader
from clipwsss.datasets.transforms import train_transform
from clipwsss.networks import deeplab
from clipwsss.pictures import voc_palette, write_mask
from clipwsss.run import Run
from clipwsss.segment.predict import class_probabilities
from clipwsss.training import Training, fit, joined_loss

SIZE = (250, 334)
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
DESIGN = deeplab.Design("deeplabv2", "resnet50")


def draw(root: Path, count: int) -> None:
    """Smooth JPEG images of VOC's size with masks."""
    (root / "images").mkdir()
    (root / "classes.txt").write_text("cat\ndog\n")
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        coarse = torch.rand(1, 3, 30, 40, generator=generator)
        maps = F.interpolate(coarse, (375, 500), mode="bicubic")[0].clamp(0, 1)
        Image.fromarray((maps.permute(1, 2, 0) * 255).byte().numpy()).save(root / "images" / f"{index}.jpg")
        write_mask(root / "masks" / f"{index}.png", maps.argmax(0).byte().numpy(), voc_palette())
    rows = "".join(f"{index}.jpg,cat;dog\n" for index in range(count))
    (root / "labels.csv").write_text("image,labels\n" + rows)


def compare_steps(root: Path, crop: int, batch_size: int, rounds: int) -> None:
    """Median seconds of a pass of the training loop and of as many bare steps."""
    data = build_dataset("folder", root, "train").with_transform(train_transform(crop, None, (0.5, 1.5)))
    loader = make_loader(data, batch_size, 2, drop_last=True)
    network = deeplab.build_deeplab(DESIGN, 3)
    resident = next(iter(loader))
    groups = network.parameter_groups(1e-4, 5e-4)
    times: dict[str, list[float]] = {"loop": [], "bare": []}
    for number in range(rounds + 1):
        run = Run(root / f"run{number}", {})
        begin = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            fit(run, loader, lambda batch: network.loss_terms(batch.images, batch.masks), {"network": network},
                groups, Training("bench", 1, 1e-4, weight_decay=5e-4, seed=number))
        middle = time.perf_counter()
        for _ in range(len(loader)):
            joined_loss(network.loss_terms(resident.images, resident.masks))["loss"].backward()
            network.zero_grad(set_to_none=True)
        end = time.perf_counter()
        if number:  # the first round warms up
            times["loop"].append((middle - begin) / len(loader))
            times["bare"].append((end - middle) / len(loader))
    loop = statistics.median(times["loop"])
    bare = statistics.median(times["bare"])
    print(f"DeepLabV2 ResNet-50, {batch_size} x {crop} x {crop}: step of the training loop {loop:.2f} s, "
          f"bare forward and backward {bare:.2f} s: {loop / bare:.3f}x")


def peak(scales: list[float]) -> None:
    """Print this process's growth of peak memory in MB while it tests one image."""
    network = deeplab.build_deeplab(DESIGN, 3).eval()
    class_probabilities(network, torch.rand(1, 3, 65, 65), (1.0,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    class_probabilities(network, torch.rand(1, 3, *SIZE), scales, flip=True)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crop", type=int, default=161)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", type=float, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    np.random.seed(0)
    if args.peak:
        peak(args.peak)
        return
    peaks = {}
    for name, scales in (("largest", SCALES[-1:]), ("all", SCALES)):
        command = [sys.executable, __file__, "--peak", *map(str, scales)]
        peaks[name] = float(subprocess.run(command, capture_output=True, text=True, check=True,
                                           env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}).stdout)
    print(f"peak memory of testing {SIZE[0]} x {SIZE[1]} with flip: scale {SCALES[-1]} alone "
          f"{peaks['largest']:.0f} MB, all of {SCALES} {peaks['all']:.0f} MB "
          f"({peaks['all'] / peaks['largest']:.2f}x)")
    with tempfile.TemporaryDirectory() as root:
        draw(Path(root), args.images)
        compare_steps(Path(root), args.crop, args.batch_size, args.rounds)


if __name__ == "__main__":
    main()
