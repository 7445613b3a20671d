"""Scoring 1,449 label maps with one and two processes, and one process's share of PNG decoding.

`python tests/benchmarks/bench_eval.py [--images N]` draws synthetic palette PNGs of VOC's usual sizes in a
temporary folder. Times are medians of alternating repetitions in this run.
"""
import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clipwsss.datasets.image_files import read_mask
from clipwsss.datasets.jobs import ImageJobs
from clipwsss.pictures import voc_palette, write_mask
from clipwsss.report.scoring import score_label_maps

SIZES = ((375, 500), (333, 500), (500, 375), (366, 500))


class Masks:
    """The part of a data set that scoring uses: names, classes and true masks."""

    def __init__(self, folder: Path, names: list[str], n_classes: int = 20):
        self.folder, self.names, self.classes = folder, names, [f"class{i}" for i in range(n_classes)]
        self.masked = [True] * len(names)

    def __len__(self) -> int:
        return len(self.names)

    def load_mask(self, index: int) -> np.ndarray:
        """True label map uint8 [H,W]."""
        return read_mask(self.folder / f"{self.names[index]}.png")


def draw(folder: Path, names: list[str], seed: int, outline: float) -> None:
    """Label maps of a few smooth regions, with 255 along their outlines where `outline` > 0, as VOC's."""
    generator = torch.Generator().manual_seed(seed)
    for index, name in enumerate(names):
        size = SIZES[index % len(SIZES)]
        maps = F.interpolate(torch.rand(1, 4, 6, 7, generator=generator), size, mode="bicubic")[0]
        classes = torch.randperm(20, generator=generator)[:3] + 1
        values = torch.cat([torch.zeros(1, dtype=torch.int64), classes])
        top = maps.topk(2, dim=0)
        labels = torch.where(top.values[0] - top.values[1] < outline, 255, values[top.indices[0]])
        write_mask(folder / f"{name}.png", labels.numpy().astype(np.uint8), voc_palette())


def seconds(task, *arguments, **options) -> float:
    begin = time.perf_counter()
    task(*arguments, **options)
    return time.perf_counter() - begin


def decode(folders: list[Path], names: list[str]) -> None:
    for folder in folders:
        for name in names:
            with Image.open(folder / f"{name}.png") as file:
                np.array(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1449)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        truth, predicted = Path(root) / "truth", Path(root) / "predicted"
        names = [f"image{index:05d}" for index in range(args.images)]
        draw(truth, names, 0, 0.01)
        draw(predicted, names, 1, 0)
        data = Masks(truth, names)
        times: dict[str, list[float]] = {"one": [], "two": [], "decode": []}
        for _ in range(args.repeat):
            times["one"].append(seconds(score_label_maps, data, predicted, ImageJobs(data.names)))
            times["two"].append(seconds(score_label_maps, data, predicted, ImageJobs(data.names, 1)))
            times["decode"].append(seconds(decode, [truth, predicted], names))
    one, two, png = (statistics.median(times[key]) for key in ("one", "two", "decode"))
    print(f"{args.images} label maps: one process {one:.2f} s, two {two:.2f} s ({one / two:.2f}x); "
          f"PNG decoding alone {png:.2f} s, {100 * png / one:.0f} % of one process")


if __name__ == "__main__":
    main()
