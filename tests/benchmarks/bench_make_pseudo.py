"""make_pseudo.py over a list of images with one and with two worker processes, for each refinement.

`python tests/benchmarks/bench_make_pseudo.py [--images N] [--refine R ...]` draws pictures and CAMs of VOC's
sizes in a temporary folder and times whole calls of the script's `main` in alternation, each worker on one
thread. A call includes what more workers do not make faster: checking the images, starting processes, and
writing the report.
"""
import argparse
import contextlib
import io
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

import make_pseudo
from clipwsss.cams.cam_files import write_cam
from clipwsss.refine.affinity import AFFINITY_NETWORKS, build_affinity, save_affinity

SIZES = ((375, 500), (333, 500), (500, 375), (366, 500))


def draw(root: Path, count: int) -> None:
    """A folder data set of smooth random pictures with two classes each, and a file of CAMs per picture."""
    generator = torch.Generator().manual_seed(0)
    (root / "images").mkdir()
    rows = ["image,labels"]
    for index in range(count):
        size, name = SIZES[index % len(SIZES)], f"im{index:04d}"
        picture = F.interpolate(torch.rand(1, 3, 9, 12, generator=generator), size, mode="bicubic")[0]
        picture += 0.02 * torch.randn(picture.shape, generator=generator)
        pixels = (255 * picture.clamp(0, 1)).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(root / "images" / f"{name}.jpg")
        grid = [-(-side // 4) for side in size]
        maps = F.interpolate(torch.rand(1, 2, 5, 7, generator=generator) ** 3, grid, mode="bilinear")[0]
        write_cam(root / "cams", name, np.array([0, 1]), (maps / maps.amax((1, 2), keepdim=True)).numpy())
        rows.append(f"{name}.jpg,a;b")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    (root / "classes.txt").write_text("a\nb\n")


def seconds(root: Path, refine: str, workers: int) -> float:
    """Wall time of one whole run."""
    arguments = ["--dataset", "folder", "--data-root", str(root), "--cams", str(root / "cams"), "--overwrite",
                 "--refine", refine, "--workers", str(workers), "--out", str(root / "out"), "--device", "cpu"]
    if refine in AFFINITY_NETWORKS:
        arguments += ["--affinity-checkpoint", str(root / f"{refine}.pt")]
    begin = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        make_pseudo.main(arguments)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=48, help="number of images")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each setting; the median counts")
    parser.add_argument("--refine", nargs="+", default=["color", "crf"], choices=(*make_pseudo.WALKS, "crf"),
                        help="stages that are timed, each alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        draw(root, args.images)
        for kind in AFFINITY_NETWORKS:
            network, backbone = build_affinity(kind, "resnet50", "none")
            save_affinity(network, root / f"{kind}.pt", kind, backbone)
        for refine in args.refine:
            times = [[seconds(root, refine, workers) for workers in (1, 2)] for _ in range(args.repeats)]
            one, two = (statistics.median(column) for column in zip(*times))
            ratio = statistics.median(first / second for first, second in times)
            print(f"--refine {refine}: {args.images} images, one worker {one:.1f} s, two {two:.1f} s: "
                  f"{ratio:.2f} times faster", flush=True)


if __name__ == "__main__":
    main()
