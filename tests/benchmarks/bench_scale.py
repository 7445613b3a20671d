"""Every stage on toy worlds of 1, 4 and 16 times as many images: is time linear, and is memory constant?

`python tests/benchmarks/bench_scale.py` runs each script in a process of its own, with one thread and without workers.
For each stage it prints the CPU milliseconds that one more image costs between two sizes, which leaves out the start
of Python, and the peak memory.
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
    "eval": ["--per-image", "{out}/images.csv"],
}
CHILD = """
import importlib, resource, sys
assert importlib.import_module(sys.argv[1]).main(sys.argv[2:]) == 0
usage = resource.getrusage(resource.RUSAGE_SELF)
print("usage", usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
"""


def run(root: Path, script: str, flags: list[str]) -> tuple[float, float]:
    """CPU seconds and peak memory in MB of one script."""
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
    parser.add_argument("--images", type=int, default=40, help="number of images in the smallest world")
    parser.add_argument("--times", type=int, nargs=3, default=(1, 4, 16), help="sizes of the worlds over --images")
    parser.add_argument("--stages", nargs="+", choices=tuple(STAGES), default=tuple(STAGES), help="stages to run, in order")
    args = parser.parse_args()
    counts = [args.images * times for times in args.times]
    usage = {script: [] for script in args.stages}
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            root = Path(folder) / str(count)
            draw_world(root / "data", 0, count, 8)
            for script in args.stages:
                cpu_seconds, megabytes = run(root, script, STAGES[script])
                usage[script].append((cpu_seconds, megabytes))
                print(f"{count:6} images  {script:<13} {cpu_seconds:7.1f} s {megabytes:7.0f} MB", flush=True)
    print(f"\n{'stage':<13} ms per image, {counts[0]} to {counts[1]}, {counts[1]} to {counts[2]} (ratio)   "
          "peak MB (last over first)")
    for script, measured in usage.items():
        (time_small, memory_small), (time_middle, memory_middle), (time_large, memory_large) = measured
        first = 1e3 * (time_middle - time_small) / (counts[1] - counts[0])
        second = 1e3 * (time_large - time_middle) / (counts[2] - counts[1])
        print(f"{script:<13} {first:9.1f} {second:9.1f}  ({second / first:.2f}x)   "
              f"{memory_small:.0f} {memory_middle:.0f} {memory_large:.0f} ({memory_large / memory_small:.2f}x)")


if __name__ == "__main__":
    main()
