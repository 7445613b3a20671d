"""--maps: CLIP's own maps, the mean of CAM files of two makers, and --method both, which makes and uses them."""
import json

import numpy as np
import pytest
import torch

import train_cam
import train_prompt
from clipwsss.cams.cam_files import read_cam, resize_cam, write_cam
from clipwsss.cams.mean import write_mean_cams
from clipwsss.errors import InputError
from clipwsss.files import load_weights
from clipwsss.toy.world import draw_world

FAST = ["--dataset", "toy", "--workers", "0", "--device", "cpu", "--quiet"]
BOTH = ["--method", "both", "--batch-size", "4", "--prompt-batch-size", "4"]
GUIDED = [*BOTH, "--epochs", "1"]


class Data:
    """What the mean needs of a data set: names and sizes."""
    names = ["wide", "high"]
    sizes = [(4, 8), (8, 4)]

    def __len__(self):
        return len(self.names)


def test_the_mean_of_maps_that_are_scaled_first(tmp_path):
    for name, size in zip(Data.names, Data.sizes):
        ramp = np.arange(32, dtype=np.float32).reshape(1, *size)
        small = np.zeros((1, size[0] // 4, size[1] // 4))
        write_cam(tmp_path / "a", name, np.array([2]), small, "full", ramp / 40)  # 0 to 31/40
        write_cam(tmp_path / "b", name, np.array([2]), small, "full", np.where(ramp < 16, 0.25, 0.5))
    for kind in ("mean", "geometric"):
        write_mean_cams(Data(), [tmp_path / "a", tmp_path / "b"], tmp_path / kind, kind, "full")
        for name, size in zip(Data.names, Data.sizes):
            file = read_cam(tmp_path / kind, name)
            a = np.arange(32).reshape(size) / 31
            b = a > 0.5
            assert file.keys.tolist() == [2] and file.cam.shape == (1, size[0] // 4, size[1] // 4)
            assert np.allclose(file.high_res[0], (a + b) / 2 if kind == "mean" else (a * b) ** 0.5, atol=2e-3)
    (tmp_path / "b" / "high.npz").unlink()
    with pytest.raises(InputError, match="high.npz .* no such CAM file"):
        write_mean_cams(Data(), [tmp_path / "a", tmp_path / "b"], tmp_path / "again", "mean")


def test_a_class_that_one_maker_does_not_see_has_the_others_map(tmp_path):
    """A product with a map of zeros would erase the class."""
    seen = np.zeros((2, 4, 8), np.float32)
    seen[:, 1:3, 2:5] = 1
    blank = seen.copy()
    blank[1] = 0
    small = np.zeros((2, 1, 2))
    for maker, maps in (("a", seen), ("b", blank), ("c", np.zeros_like(seen))):
        write_cam(tmp_path / maker, "wide", np.array([0, 3]), small, "full", maps)
    one_image = Data()
    one_image.names = ["wide"]
    for kind in ("mean", "geometric"):
        for other in ("b", "c"):
            write_mean_cams(one_image, [tmp_path / "a", tmp_path / other], tmp_path / kind, kind, "full")
            assert np.allclose(read_cam(tmp_path / kind, "wide").high_res, seen, atol=2e-3), (kind, other)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A toy world of 8 images with a classifier, CLIP's own maps, and a run of both."""
    root = tmp_path_factory.mktemp("runs")
    draw_world(root / "toy" / "data", 0, 8, 1)
    assert train_cam.main([*FAST, "--runs", str(root), "--epochs", "1", "--batch-size", "4", "--val-split", ""]) == 0
    assert train_cam.main([*FAST, "--runs", str(root), "--generator", "clip", "--out", str(root / "clip")]) == 0
    run(root, "both", *GUIDED)
    return root


def run(root, out, *flags):
    assert train_prompt.main([*FAST, "--runs", str(root), "--out", str(root / out), *flags]) == 0


def cams(folder):
    return {path.stem: read_cam(folder, path.stem).cam for path in folder.iterdir()}


def alike(one, other, tolerance=2e-3):
    return one.keys() == other.keys() and all(np.abs(one[name] - other[name]).max() <= tolerance for name in one)


def test_both_joins_its_generator_and_clip(runs):
    out = runs / "both"
    first = cams(out / "first_cams")
    assert len(first) == 8 and alike(first, cams(runs / "clip" / "cams"))
    written = [line["label"] for line in map(json.loads, (out / "log.jsonl").read_text().splitlines())]
    assert written == ["background_prompts", "guide", "result"]
    size = (96, 96)
    for name, mean in cams(out / "cams").items():
        parts = [resize_cam(read_cam(out / part, name), size) for part in ("generator_cams", "clip_cams")]
        scaled = [(m - m.min((1, 2), keepdims=True)) / (np.ptp(m, (1, 2), keepdims=True) + 1e-7) for m in parts]
        joined = (scaled[0] * scaled[1]) ** 0.5
        joined = torch.tensor(joined / joined.max((1, 2), keepdims=True))
        quarter = torch.nn.functional.interpolate(joined[None], (24, 24), mode="bilinear", antialias=True)[0]
        assert np.abs(mean - quarter.numpy()).max() < 3e-3, name


def test_the_words_and_prompts_of_a_run_give_its_maps_of_clip(runs):
    """--maps clip reads no generator and writes none; with other words and no backgrounds the maps differ."""
    stored = ["--prompts", str(runs / "both/prompts.json"),
              "--background-prompts", str(runs / "both/background_prompts.pt")]
    run(runs, "same", *BOTH, "--maps", "clip", "--init", "missing.pt", *stored)
    same = cams(runs / "same" / "cams")
    assert alike(same, cams(runs / "both" / "clip_cams")) and not alike(same, cams(runs / "both" / "first_cams"))
    assert not (runs / "same" / "generator.pt").exists() and "miou" in json.loads((runs / "same/result.json").read_text())
    run(runs, "names", "--method", "clims", "--maps", "clip", "--init", "missing.pt")
    assert alike(cams(runs / "names" / "cams"), cams(runs / "clip" / "cams"))
    run(runs, "none", "--method", "clims", "--maps", "clip", "--background-prompt", "none")
    assert not alike(cams(runs / "none" / "cams"), cams(runs / "clip" / "cams"), 0.1)


def test_words_are_chosen_and_prompts_learned_by_the_cams_that_are_given(runs):
    given = ["--cams", str(runs / "clip" / "cams")]
    run(runs, "given", *BOTH, "--maps", "clip", *given)
    table = json.loads((runs / "both" / "prompts.json").read_text())
    assert json.loads((runs / "given" / "prompts.json").read_text()) == table
    one, other = (load_weights(runs / name / "background_prompts.pt")["state_dict"]["vectors"] for name in ("both", "given"))
    assert torch.equal(one, other) and not (runs / "given" / "first_cams").exists()
    run(runs, "classifier", *BOTH, "--maps", "clip", "--cams", str(runs / "toy/train_cam/cams"))
    assert json.loads((runs / "classifier" / "prompts.json").read_text()) != table


def test_where_train_cam_has_not_run_clips_own_maps_come_first(runs, tmp_path, capsys):
    flags = [*FAST, "--runs", str(tmp_path), "--data-root", str(runs / "toy" / "data"), "--method", "pole"]
    with pytest.raises(InputError, match="cams: no such folder of CAM files; run first: python train_cam.py"):
        train_prompt.main([*flags, "--init", str(runs / "toy" / "train_cam" / "generator.pt")])
    assert not list(tmp_path.iterdir())
    assert train_prompt.main([*flags, "--maps", "clip"]) == 0
    assert "CLIP's own maps of the class names stand in for" in capsys.readouterr().out
    assert alike(cams(tmp_path / "toy" / "train_prompt" / "first_cams"), cams(runs / "clip" / "cams"))


def test_an_interrupted_run_goes_on_to_the_same_maps(runs, monkeypatch):
    monkeypatch.setattr(train_prompt, "write_mean_cams", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(runs, "cut", *GUIDED)
    monkeypatch.undo()
    (runs / "cut" / "clip_cams" / "train_00003.npz").unlink()
    run(runs, "cut", *GUIDED, "--resume")
    assert alike(cams(runs / "cut" / "cams"), cams(runs / "both" / "cams"), 0)
    run(runs, "cut", *BOTH, "--maps", "clip", "--overwrite")  # deletes the CAM files of all makers
    assert not any((runs / "cut" / "generator_cams").iterdir())
