"""Two processes (gloo, CPU) against one: gradients of the joined batch, the same files, one line for an error.

`python tests/test_distributed.py COMMANDS` is one of the two processes: it runs the scripts of a JSON list.
"""
import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from clipwsss.cams.cam_files import read_cam
from clipwsss.datasets import loaders
from clipwsss.distributed import barrier, broadcast, gather, mean_over_processes, processes, rank, shard
from clipwsss.errors import InputError, run_script
from clipwsss.files import load_weights
from clipwsss.toy.world import draw_world

TOY = ["--dataset", "toy", "--workers", "0"]
TRAIN = [*TOY, "--device", "cpu"]
# Twelve images in a batch: one step, whose size is the gradient of the joined batch.
STEP = ["--epochs", "1", "--batch-size", "12", "--optimizer", "sgd", "--schedule", "constant", "--warmup", "0",
        "--weight-decay", "0", "--momentum", "0", "--lr", "0.1"]
GUIDE = ["train_prompt", [*TRAIN, *STEP, "--frozen-bn"]]
STAGES = {  # title: script, flags, that follow --runs RUNS --out OUT
    "classifier": ["train_cam", [*TRAIN, *STEP, "--frozen-bn"]],
    "cams": ["train_cam", [*TRAIN, "--epochs", "0", "--init", "{one}/classifier/generator.pt", "--scales", "1", "1.5"]],
    "clip": ["train_cam", [*TRAIN, "--generator", "clip", "--cam-batch-size", "6"]],
    "pole": [GUIDE[0], [*GUIDE[1], "--method", "pole", "--init", "{one}/classifier/generator.pt",
                        "--cams", "{one}/cams/cams", "--reselect-every", "1", "--suppress-reduction", "sum",
                        "--area-over", "present"]],
    "semples": [GUIDE[0], [*GUIDE[1], "--method", "semples", "--init", "{one}/classifier/generator.pt",
                           "--match-epochs", "0", "--prompt-epochs", "1", "--prompt-batch-size", "12",
                           "--keep-best", "val"]],
    "mean": [GUIDE[0], [*TRAIN, "--method", "both", "--background-prompt", "list", "--epochs", "0",
                        "--init", "{one}/classifier/generator.pt"]],
    "irn": ["make_pseudo", [*TRAIN, *STEP, "--cams", "{one}/cams/cams", "--weights", "none", "--refine", "irn"]],
    "color": ["make_pseudo", [*TRAIN, "--cams", "{one}/cams/cams", "--refine", "color", "--threshold", "auto"]],
    "segmenter": ["train_seg", [*TRAIN, *STEP, "--masks", "{one}/color/masks", "--accumulate", "2",
                                "--batch-size", "6", "--predict-split", "", "--network", "deeplabv2",
                                "--weights", "none", "--multi-scale", "--frozen-bn"]],
    "predictions": ["train_seg", [*TRAIN, "--checkpoint", "{one}/segmenter/segmenter.pt"]],
    "scores": ["eval", [*TOY, "--cams", "{one}/cams/cams", "--masks", "{one}/color/masks",
                        "--json", "{out}/eval.json", "--per-image", "{out}/images.csv"]],
}


def run_stages(root: Path, kind: str) -> None:
    """Run every stage into ROOT/KIND; inputs are the one process's."""
    for title, (script, flags) in STAGES.items():
        out = root / kind / title
        places = {"one": root / "one", "out": out}
        argv = ["--runs", str(root / kind), "--data-root", str(root / "data"), "--out", str(out),
                *(flag.format(**places) for flag in flags)]
        assert importlib.import_module(script).main(argv) == 0


def note_collectives(path: Path) -> None:
    """What this process of two sees of the functions that join them."""
    value = torch.tensor([1.0, 3.0][int(os.environ["RANK"])])
    noted = {"gathered": gather(int(value)), "broadcast": broadcast(int(value)), "shard": shard(list(range(5))),
             "mean": float(mean_over_processes(value)), "main": rank() == 0}
    path.with_name(f"collectives{os.environ['RANK']}.json").write_text(json.dumps(noted))
    barrier()


def started(*command: str) -> list[subprocess.CompletedProcess]:
    """Two processes of a command with torchrun's variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    jobs = [subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    return [subprocess.CompletedProcess(command, job.returncode, *outputs)
            for outputs, job in [(job.communicate(timeout=240), job) for job in jobs]]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a world of 12 + 5 images and the stages of one process and of two."""
    root = tmp_path_factory.mktemp("ranks")
    draw_world(root / "data", 0, 12, 5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_stages(root, "one")
    torch.set_num_threads(threads)
    main, other = started(__file__, str(root))
    assert main.returncode == other.returncode == 0, main.stderr + other.stderr
    assert main.stdout and not other.stdout and not other.stderr, "the main process alone prints"
    return root


def test_what_joins_processes(root):
    seen = [json.loads((root / f"collectives{rank}.json").read_text()) for rank in range(2)]
    for item in seen:
        assert item["gathered"] == [1, 3] and item["broadcast"] == 1 and item["mean"] == 2.0
    assert seen[0]["shard"] + seen[1]["shard"] == [0, 1, 2, 3, 4] and len(seen[1]["shard"]) == 3
    assert [item["main"] for item in seen] == [True, False]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed in Linux' /proc")
def test_no_thread_outlives_the_connection(root):
    """Such a thread ends a process with SIGABRT now and then, although its work is done."""
    for rank in range(2):
        threads = json.loads((root / f"threads{rank}.json").read_text())
        assert [name for name in threads if "gloo" in name or "tcpstore" in name] == []


def test_one_process_is_all_of_them():
    value = torch.tensor(3)
    assert gather(2) == [2] and broadcast(2) == 2 and shard([1, 2]) == [1, 2]
    assert mean_over_processes(value) is value and rank() == 0
    with processes():
        assert rank() == 0


@pytest.mark.parametrize("stage, file, start", [
    ("classifier", "generator.pt", None), ("pole", "generator.pt", "classifier/generator.pt"),
    ("irn", "affinity.pt", None), ("segmenter", "segmenter.pt", None)])
def test_a_step_has_the_joined_batchs_gradient(root, stage, file, start):
    one, two = (load_weights(root / kind / stage / file)["state_dict"] for kind in ("one", "two"))
    before = load_weights(root / "one" / start)["state_dict"] if start else {}
    compared = 0
    for name, value in one.items():
        if value.is_floating_point() and "running" not in name:
            moved = (value - before[name]).abs().max() if start else value.abs().max()
            assert (value - two[name]).abs().max() <= 1e-5 * moved + 1e-7, name
            compared += bool(moved > 1e-6)
    assert compared > 5
    logs = [[json.loads(line) for line in (root / kind / stage / "log.jsonl").read_text().splitlines()]
            for kind in ("one", "two")]
    for first, second in zip(*logs):
        assert first.keys() == second.keys() and first["label"] == second["label"]
        if "loss" in first:
            figures = {name: value for name, value in first.items() if name != "label"}
            assert all(second[name] == pytest.approx(value, rel=1e-5) for name, value in figures.items())
    assert len(logs[0]) == len(logs[1]) > 0


def test_prompts_learn_from_the_joined_batch(root):
    logs = [[json.loads(line) for line in (root / kind / "semples" / "log.jsonl").read_text().splitlines()]
            for kind in ("one", "two")]
    rows = [{row["label"]: row for row in log} for log in logs]
    assert rows[0].keys() == rows[1].keys() == {"background_prompts", "guide", "result"}
    for label, terms in (("background_prompts", ("image", "text")), ("guide", ("fg", "bg", "suppress", "area"))):
        assert all(rows[1][label][term] == pytest.approx(rows[0][label][term], rel=1e-3) for term in terms)
    one, two = (load_weights(root / kind / "semples" / "background_prompts.pt")["state_dict"]["vectors"]
                for kind in ("one", "two"))
    assert ((one - two).abs() < 1e-6).float().mean() > 0.99  # AdamW's first step is a sign


def test_every_process_knows_every_choice(root):
    one, two = (json.loads((root / kind / "pole" / "prompts.json").read_text()) for kind in ("one", "two"))
    assert len(one) == 12 and one.keys() == two.keys()
    for name, rows in one.items():
        assert {label: entry["word"] for label, entry in rows.items()} == \
            {label: entry["word"] for label, entry in two[name].items()}


def test_lists_are_shared_without_a_trace(root):
    one, two = root / "one", root / "two"
    for stage, tolerance in (("cams", 0), ("clip", 0), ("mean", 2e-3)):
        names = sorted(path.stem for path in (one / stage / "cams").iterdir())
        assert len(names) == 12 and names == sorted(path.stem for path in (two / stage / "cams").iterdir())
        for name in names:
            first, second = (read_cam(kind / stage / "cams", name) for kind in (one, two))
            assert np.abs(first.cam - second.cam).max() <= tolerance and np.array_equal(first.keys, second.keys)
    for folder, count in (("color/masks", 12), ("predictions/predictions", 5)):
        files = sorted((one / folder).iterdir())
        assert len(files) == count
        assert all(path.read_bytes() == (two / folder / path.name).read_bytes() for path in files)
    for name in ("cams/result.json", "clip/result.json", "color/result.json", "color/thresholds.json", "predictions/result.json",
                 "scores/eval.json", "scores/images.csv"):
        assert (one / name).read_text() == (two / name).read_text(), name


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setattr(loaders, "world_size", lambda: 2)
    assert len(list(loaders.make_loader(list(range(12)), 6).sampler)) == 6
    for size in (7, 14):
        order = loaders.make_loader(list(range(12)), size).sampler
        with pytest.raises(InputError, match=f"--batch-size {size}: 2 processes .* multiple of 2 and .* 12"):
            next(iter(order))


def test_an_error_in_one_process_ends_all_with_one_line(root, tmp_path):
    for path in (root / "one" / "color" / "masks").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "train_00011.png").write_text("no picture")  # the second process's
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                           str(ROOT / "eval.py"), *TOY, "--data-root", str(root / "data"), "--masks", str(tmp_path)],
                          capture_output=True, text=True, timeout=120)
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode and len(told) == 1 and "train_00011.png: not a readable mask" in told[0]


def main() -> None:
    """What each of the two processes runs."""
    folder = Path(sys.argv[1])
    note_collectives(folder / "collectives")
    run_stages(folder, "two")


def note_threads(path: Path) -> None:
    """Write the names of this process's threads."""
    tasks = Path("/proc/self/task")
    names = [(task / "comm").read_text().strip() for task in tasks.iterdir()] if tasks.is_dir() else []
    path.write_text(json.dumps(names))


if __name__ == "__main__":
    status = run_script(main)
    note_threads(Path(sys.argv[1]) / f"threads{os.environ['RANK']}.json")
    sys.exit(status)
