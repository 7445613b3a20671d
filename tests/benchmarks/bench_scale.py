"""Every stage on toy worlds of 1, 4 and 16 times as many images: is time linear, is memory flat?

`python tests/benchmarks/bench_scale.py` runs the scripts in fresh processes (no workers, one thread) and prints, per
stage, CPU seconds an image between one size and the next, which starting Python has no part in, and peak memory.
"""
import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from clipwsss.toy.world import draw_world

STAGES = {
    "train_cam": ["--epochs", "1"],
    "train_prompt": ["--method", "pole", "--epochs", "1"],
    "make_pseudo": ["--cams", "{out}/toy/train_cam/cams", "--refine", "color", "crf", "--threshold", "auto"],
    "train_seg": ["--epochs", "1", "--predict-split", "train", "--weights", "none"],
    "eval": ["--boundary", "--per-image", "{out}/images.csv"],
}
CHILD = """
import importlib, resource, sys
assert importlib.import_module(sys.argv[1]).main(sys.argv[2:]) == 0
usage = resource.getrusage(resource.RUSAGE_SELF)
print("usage", usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
"""


def run(root: Path, script: str, flags: list[str]) -> tuple[float, float]:
    """CPU seconds and peak MB of one script."""
    shared = ["--dataset", "toy", "--data-root", str(root / "data"), "--runs", str(root), "--workers", "0"]
    argv = [flag.format(out=root) for flag in (*shared, *flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run([sys.executable, "-c", CHILD, script, *argv], capture_output=True, text=True,
                          env=environment, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr)
    _, seconds, megabytes = done.stdout.splitlines()[-1].split()
    return float(seconds), float(megabytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=40, help="of the smallest world")
    parser.add_argument("--times", type=int, nargs=3, default=(1, 4, 16))
    parser.add_argument("--stages", nargs="+", choices=tuple(STAGES), default=tuple(STAGES))
    args = parser.parse_args()
    counts, usage = [args.images * times for times in args.times], {script: [] for script in args.stages}
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            root = Path(folder) / str(count)
            draw_world(root / "data", 0, count, 8)
            for script in args.stages:
                usage[script].append(run(root, script, STAGES[script]))
                print(f"{count:6} images  {script:<13} {usage[script][-1][0]:7.1f} s {usage[script][-1][1]:7.0f} MB",
                      flush=True)
    print(f"\n{'stage':<13} ms an image, {counts[0]} to {counts[1]}, {counts[1]} to {counts[2]} (ratio)   "
          "peak MB (last over first)")
    for script, rows in usage.items():
        (first, small), (second, middle), (third, large) = rows
        slopes = [1e3 * (after - before) / (b - a) for (before, after), (a, b) in
                  (((first, second), counts[:2]), ((second, third), counts[1:]))]
        print(f"{script:<13} {slopes[0]:9.1f} {slopes[1]:9.1f}  ({slopes[1] / slopes[0]:.2f}x)   "
              f"{small:.0f} {middle:.0f} {large:.0f} ({large / small:.2f}x)")


if __name__ == "__main__":
    main()
