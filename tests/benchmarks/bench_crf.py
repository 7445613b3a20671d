"""CRF against pydensecrf, one thread, 10 iterations: `python tests/benchmarks/bench_crf.py FOLDER`.

FOLDER holds VOC2012/ and cams/ as the sample of real VOC images does (default: ../shared/voc_sample beside
this checkout). pydensecrf is installed by `pip install pydensecrf2`. Four uses are timed: labels of an
image's own classes (IRN), IRN's two unaries of one image (confident foreground and background), 21 labels
from a label map, and a softmax over 21 classes. Both sides are timed in turn, from image and energies to
marginals, in CPU seconds, on which other programs have less influence. The lattice is built anew each time,
except that of the positions, which is kept for each size of images.
"""
import argparse
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from pydensecrf.densecrf import DenseCRF2D
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from clipwsss.cams.cam_files import read_cam
from clipwsss.refine.crf import BILATERAL, GAUSSIAN, dense_crf, unary_from_labels, unary_from_probabilities

CLASSES = 21
GOALS = {"own labels": 1.5, "two unaries": 2.2, "21 labels": 2.2, "21 softmax": 0.9}


def cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in information.read_text().splitlines()
             if line.startswith("model name")] if information.exists() else []
    return names[0] if names else platform.machine()


def reference(image: np.ndarray, unaries: np.ndarray) -> np.ndarray:
    marginals = []
    for unary in unaries:
        labels, height, width = unary.shape
        model = DenseCRF2D(width, height, labels)
        model.setUnaryEnergy(unary.reshape(labels, -1))
        model.addPairwiseGaussian(sxy=GAUSSIAN[0], compat=GAUSSIAN[1])
        model.addPairwiseBilateral(sxy=BILATERAL[0], srgb=BILATERAL[1], compat=BILATERAL[2], rgbim=image)
        marginals.append(np.array(model.inference(10)).reshape(unary.shape))
    return np.stack(marginals)


def unaries_of(keys: np.ndarray, maps: np.ndarray) -> dict[str, np.ndarray]:
    """Energies [U, C, H, W] of each use, from class indices [k] and maps [k, H, W]."""
    confident, doubtful = (np.concatenate((np.full_like(maps[:1], threshold), maps)).argmax(0)
                           for threshold in (0.3, 0.05))
    own = np.stack([unary_from_labels(labels, len(keys) + 1) for labels in (confident, doubtful)])
    everything = unary_from_labels(np.append(0, keys + 1)[confident], CLASSES)
    rng = np.random.default_rng(0)
    coarse = rng.normal(0, 2, (CLASSES, 12, 16)).astype(np.float32)
    scores = ndimage.zoom(coarse, (1, maps.shape[1] / 12, maps.shape[2] / 16), order=1)
    scores[keys + 1] += 8 * maps
    softmax = np.exp(scores - scores.max(0))
    softmax = unary_from_probabilities(softmax / softmax.sum(0))
    return dict(zip(GOALS, (own[:1], own, everything[None], softmax[None])))


def cpu_time(function, *arguments) -> tuple[float, np.ndarray]:
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT.parent / "shared" / "voc_sample")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each side; the median counts")
    args = parser.parse_args()
    images = sorted((args.folder / "VOC2012" / "JPEGImages").glob("*.jpg"))
    if not images:
        sys.exit(f"error: no VOC2012/JPEGImages/*.jpg in {args.folder}")
    print(f"{cpu_name()}, one thread, numpy {np.__version__}; CPU seconds pydensecrf / this")
    ratios, equal = {use: [] for use in GOALS}, []
    for path in images:
        image = np.array(Image.open(path).convert("RGB"))
        cam = read_cam(args.folder / "cams", path.stem)
        for use, unaries in unaries_of(cam.keys, cam.high_res).items():
            slow, fast = [], []
            for _ in range(args.repeats):
                seconds, expected = cpu_time(reference, image, unaries)
                slow.append(seconds)
                seconds, marginals = cpu_time(dense_crf, image, unaries)
                fast.append(seconds)
            ratios[use].append(statistics.median(slow) / statistics.median(fast))
            equal.append(float((marginals.argmax(1) == expected.argmax(1)).mean()))
            print(f"{path.stem} {image.shape[0]} x {image.shape[1]}, {unaries.shape[1]:2d} labels, {use}: "
                  f"{statistics.median(slow):.3f} / {statistics.median(fast):.3f} s, "
                  f"{ratios[use][-1]:.2f} x, argmax equal {100 * equal[-1]:.4f} %", flush=True)
    for use, values in ratios.items():
        print(f"{use}: median {statistics.median(values):.2f} x, {min(values):.2f} to {max(values):.2f} "
              f"(goal {GOALS[use]})")
    print(f"argmax equal on {100 * min(equal):.4f} % of the pixels at least (goal 99.99)")


if __name__ == "__main__":
    main()
