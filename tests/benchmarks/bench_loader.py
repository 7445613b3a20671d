"""Images a second of one loader process by part: decoding, transform, collation; and what other decoders would give.

`python tests/benchmarks/bench_loader.py` writes JPEGs of VOC's size and times each part on its own, in CPU seconds
of one thread. A GPU that trains at R images/s needs R / (images/s of all parts) loader processes.
"""
import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.io import decode_jpeg, read_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from clipwsss.datasets.base import Sample, collate
from clipwsss.datasets.image_files import read_image
from clipwsss.datasets.transforms import train_transform

SIZE = (375, 500)


def rate(work: Callable[[int], object], count: int, rounds: int) -> float:
    """Median calls per CPU second of work(0 .. count - 1)."""
    rates = []
    for number in range(rounds + 1):
        begin = time.process_time()
        for index in range(count):
            work(index)
        if number:  # the first round warms up
            rates.append(count / (time.process_time() - begin))
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--crop-size", type=int, default=512)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transform = train_transform(args.crop_size)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.jpg" for index in range(args.images)]
        for path in paths:  # smooth shapes and grain: about VOC's 80 KB
            shapes = F.interpolate(torch.rand(1, 3, 30, 40), SIZE, mode="bicubic")[0]
            grainy = (shapes + 0.04 * torch.randn(3, *SIZE)).clamp(0, 1)
            Image.fromarray((grainy.permute(1, 2, 0) * 255).byte().numpy()).save(path, quality=92)
        kilobytes = statistics.mean(path.stat().st_size for path in paths) / 1e3
        images = [read_image(path) for path in paths]
        samples = [Sample(path.stem, transform(image, None)[0], torch.zeros(20), None)
                   for path, image in zip(paths, images)]
        batch = [samples[index % len(samples)] for index in range(args.batch_size)]

        def drafted(index: int) -> Image.Image:
            with Image.open(paths[index]) as file:
                file.draft("RGB", (SIZE[1] // 2, SIZE[0] // 2))
                return file.convert("RGB")

        def whole(index: int) -> None:
            transform(read_image(paths[index]), None)

        parts = {"decode (Pillow)": rate(lambda i: read_image(paths[i]), args.images, args.rounds),
                 "transform": rate(lambda i: transform(images[i], None), args.images, args.rounds),
                 "collate": args.batch_size * rate(lambda i: collate(batch), 8, args.rounds),
                 "decode and transform": rate(whole, args.images, args.rounds),
                 "decode (torchvision)": rate(lambda i: decode_jpeg(read_file(str(paths[i]))), args.images, args.rounds),
                 "decode at half size (draft)": rate(drafted, args.images, args.rounds)}
        theirs = decode_jpeg(read_file(str(paths[0]))).permute(1, 2, 0).numpy().astype(int)
        difference = np.abs(theirs - np.asarray(images[0]).astype(int)).max()
    print(f"JPEG of {SIZE[0]} x {SIZE[1]}, {kilobytes:.0f} KB, crop {args.crop_size}, images/s of one process:")
    for name, value in parts.items():
        print(f"  {name:<28} {value:8.0f}")
    print(f"  torchvision's decoder differs from Pillow's by at most {difference} of 255")


if __name__ == "__main__":
    main()
