"""train_seg.py on a small world: learns, predicts a split and own images, submits, exports; bad input."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train_seg as script
from clipwsss.errors import InputError
from clipwsss.pictures import voc_palette, write_mask
from clipwsss.report.metrics import confusion, scores
from clipwsss.segment.photos import image_files
from clipwsss.segment.segmenter import Segmenter

SMALL = ["--dataset", "folder", "--backbone", "resnet_tiny", "--output-stride", "4", "--weights", "none",
         "--rates", "1", "2", "--no-frozen-bn", "--no-multi-scale", "--head-ratio", "1",
         "--optimizer", "adamw", "--lr", "0.005", "--crop-size", "32", "--scales", "1", "1",
         "--batch-size", "8", "--accumulate", "1",
         "--test-scales", "1", "--no-crf", "--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Red and green squares on grey, 16 images with tags and masks; the masks again as pseudo masks."""
    root, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    (root / "images").mkdir()
    (root / "classes.txt").write_text("red\ngreen\n")
    lines = ["image,labels"]
    for number in range(16):
        name, kind = f"scene{number:02d}", number % 2
        pixels = rng.integers(100, 140, (32, 36, 3)).astype(np.uint8)
        top, left = rng.integers(2, 14, 2)
        pixels[top:top + 14, left:left + 16, kind] = 250
        mask = np.zeros((32, 36), np.uint8)
        mask[top:top + 14, left:left + 16] = kind + 1
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        for folder in ("masks", "pseudo"):
            write_mask(root / folder / f"{name}.png", mask, voc_palette())
        lines.append(f"{name}.png,{'green' if kind else 'red'}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def trained(world) -> Path:
    """The run folder of a segmenter trained on the pseudo masks."""
    out = world / "run"
    script.main([*SMALL, "--data-root", str(world), "--masks", str(world / "pseudo"), "--epochs", "12",
                 "--out", str(out)])
    return out


def log_of(run: Path) -> tuple[list[dict], list[dict]]:
    """A run's lines of training and of its result."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return ([line for line in lines if line["label"] != "result"],
            [line for line in lines if line["label"] == "result"])


def test_learns_and_writes_palette_predictions(world, trained):
    log, results = log_of(trained)
    assert len(log) == 12 and log[-1]["loss"] < 0.3 * log[0]["loss"]
    hits = 0
    total = 0
    table = 0
    for path in sorted((world / "masks").iterdir()):
        with Image.open(trained / "predictions" / path.name) as file:
            assert file.mode == "P" and file.size == (36, 32)
            hits += (np.array(file) == np.array(Image.open(path))).sum()
            table = table + confusion(np.array(file), np.array(Image.open(path)), 3)
        total += 32 * 36
    assert hits / total > 0.95
    result = json.loads((trained / "result.json").read_text())
    assert results == [{"label": "result", **result}] and (trained / "report.html").is_file()
    assert result["split"] == "train" and result["miou"] == pytest.approx(scores(table)["miou"])
    assert result["iou"].keys() == {"background", "red", "green"}


def test_predicts_a_tree_of_photographs_by_the_settings_of_the_training(world, trained, tmp_path, capsys):
    photo = tmp_path / "photos" / "day.1" / "turned.v2.jpg"
    photo.parent.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.open(world / "images" / "scene00.png").save(photo, exif=exif, quality=95)
    with Image.open(world / "images" / "scene03.png") as scene:
        scene.resize((144, 128), Image.Resampling.BICUBIC).save(tmp_path / "photos" / "large.png")
    assert Segmenter(trained / "segmenter.pt").test == {
        "test_scales": [1.0], "test_fusion": "max", "test_flip": False, "crf": False, "max_side": 36, "short_side": 0,
        "crf_gaussian": [1.0, 3.0], "crf_bilateral": [67.0, 3.0, 4.0]}
    flags = ["--checkpoint", str(trained / "segmenter.pt"), "--out", str(tmp_path / "out"), "--workers", "0",
             "--predict", str(tmp_path / "photos"), str(world / "images" / "scene01.png")]
    script.main(flags)
    assert "1 of 3 photographs are larger than --max-side 36" in capsys.readouterr().out
    folder = tmp_path / "out" / "predicted"
    written = sorted(str(item.relative_to(folder)) for item in folder.rglob("*") if item.is_file())
    assert written == ["day.1/turned.v2.png", "day.1/turned.v2_overlay.png", "large.png", "large_overlay.png",
                       "scene01.png", "scene01_overlay.png"]
    labels = np.array(Image.open(folder / "day.1/turned.v2.png"))
    assert labels.shape == (36, 32) and set(np.unique(labels)) == {0, 1}
    assert (np.array(Image.open(folder / "scene01.png")) == np.array(Image.open(
        world / "masks" / "scene01.png"))).mean() > 0.9
    assert Image.open(folder / "scene01_overlay.png").height > 32
    for name in written[::2]:  # the same as from Python
        source = tmp_path / "photos" / name if name != "scene01.png" else world / "images" / name
        source = source if source.exists() else source.with_suffix(".jpg")
        assert np.array_equal(Segmenter(trained / "segmenter.pt")(source).labels, np.array(Image.open(folder / name)))

    (folder / "large.png").unlink()
    kept = (folder / "scene01.png").stat().st_mtime_ns
    script.main([*flags, "--resume"])
    assert (folder / "large.png").exists() and (folder / "scene01.png").stat().st_mtime_ns == kept
    script.main([*flags, "--overwrite", "--max-side", "0", "--predict-format", "probabilities", "coco", "yolo"])
    content = json.loads((folder / "instances.json").read_text())
    assert [item["file_name"] for item in content["images"]] == ["large.png", "day.1/turned.v2.jpg", "scene01.png"]
    assert [item["name"] for item in content["categories"]] == ["red", "green"] and content["annotations"]
    assert (folder / "labels/day.1/turned.v2.txt").read_text().startswith("0 ") and (folder / "data.yaml").is_file()
    with pytest.raises(InputError, match="instances.json already exists"):
        script.main([*flags[:4], "--out", str(tmp_path / "out"), "--predict", str(photo), "--predict-format", "coco"])
    assert "are larger than" not in capsys.readouterr().out.splitlines()[-1]
    assert np.load(folder / "large.npz")["probabilities"].shape == (3, 128, 144)
    capsys.readouterr()
    script.main([*flags[:-2], str(tmp_path), "--overwrite"])  # the results lie below the folder of the photographs
    assert "images in " + str(folder) + " are left out" in capsys.readouterr().err
    assert (folder / "photos" / "large.png").exists() and not (folder / "out").exists()


def test_bad_images_and_wrong_files_are_named(world, trained, tmp_path, capsys):
    base = ["--dataset", "folder", "--checkpoint", str(trained / "segmenter.pt"),
            "--out", str(tmp_path / "out")]
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    with pytest.raises(InputError, match="broken.jpg: not a readable image"):
        script.main([*base, "--predict", str(tmp_path / "broken.jpg")])
    with pytest.raises(InputError, match="broken.jpg: not a readable image"):  # no other is left
        script.main([*base, "--skip-bad", "--predict", str(tmp_path / "broken.jpg")])
    flags = [*base, "--skip-bad", "--predict", str(tmp_path / "broken.jpg"), str(world / "images" / "scene00.png")]
    assert script.main(flags) == 0
    with pytest.raises(InputError, match="scene00.png already exists; choose another folder by --out, continue by --resume, or replace it by --over"):
        script.main(flags)
    assert script.main([*flags, "--overwrite"]) == 0
    shutil.copy(world / "images" / "scene00.png", tmp_path / "scene00_overlay.png")
    with pytest.raises(InputError, match="scene00_overlay.png would be the result of several images"):
        script.main([*flags, str(tmp_path / "scene00_overlay.png"), "--overwrite"])
    with pytest.raises(InputError, match="scene00.png would replace an image"):
        script.main([*base, "--overwrite", "--predict", str(tmp_path / "out" / "predicted" / "scene00.png")])
    with pytest.raises(InputError, match="--predict-split names no split"):
        script.main([*base, "--data-root", str(world), "--predict-split", ""])
    with pytest.raises(InputError, match="nowhere.jpg: no such file or folder"):
        script.main([*base, "--predict", str(tmp_path / "nowhere.jpg")])
    (tmp_path / "again/deep").mkdir(parents=True)
    shutil.copy(world / "images" / "scene00.png", tmp_path / "again" / "scene00.png")
    for name in ("IMG_1.HEIC", "deep/notes.txt", ".hidden"):
        (tmp_path / "again" / name).write_text("")
    named = image_files([tmp_path / "again" / "scene00.png", tmp_path / "again"], tmp_path / "results")
    assert named == {"scene00": tmp_path / "again" / "scene00.png"}, "named twice, it counts once"
    shutil.copy(world / "images" / "scene00.png", tmp_path / "photo v1.2")
    assert list(image_files([tmp_path / "photo v1.2"], tmp_path / "results")) == ["photo v1.2"]
    assert f"{tmp_path / 'again/IMG_1.HEIC'}: not used, because images are .jpg" in capsys.readouterr().err
    with pytest.raises(InputError, match="scene00.png would be the result of several"):
        script.main([*base, "--predict", str(world / "images"), str(tmp_path / "again" / "scene00.png")])
    (tmp_path / "bare").mkdir()
    for name in ("images", "labels.csv", "classes.txt"):
        (tmp_path / "bare" / name).symlink_to(world / name)
    with pytest.raises(InputError, match="--masks truth"):
        script.main([*SMALL, "--data-root", str(tmp_path / "bare"), "--masks", "truth"])
    (world / "pseudo" / "scene03.png").rename(tmp_path / "scene03.png")
    try:
        with pytest.raises(InputError, match="scene03.png: no such mask"):
            script.main([*SMALL, "--data-root", str(world), "--masks", str(world / "pseudo"),
                         "--out", str(tmp_path / "out2")])
    finally:
        (tmp_path / "scene03.png").rename(world / "pseudo" / "scene03.png")


def test_batch_norm_trains_where_no_weights_are_loaded_unless_it_is_told_not_to(world, tmp_path, capsys):
    flags = [flag for flag in SMALL if flag != "--no-frozen-bn"]
    options = [*flags, "--data-root", str(world), "--masks", "truth", "--epochs", "0", "--predict-split", ""]
    for name, flag, frozen in (("default", [], False), ("asked", ["--frozen-bn"], True)):
        script.main([*options, *flag, "--out", str(tmp_path / name)])
        assert ("--weights none: the batch norm trains too" in capsys.readouterr().out) != frozen
        assert json.loads((tmp_path / name / "args.json").read_text())["frozen_bn"] == frozen
        segmenter = Segmenter(tmp_path / name / "segmenter.pt")
        assert bool(segmenter.network.backbone.kept_in_eval) == segmenter.design["frozen_bn"] == frozen
        assert segmenter.classes == ["red", "green"]


def test_iterations_end_within_a_pass(world, tmp_path, capsys):
    options = [*SMALL, "--data-root", str(world), "--masks", "truth", "--batch-size", "4",
               "--accumulate", "2", "--iterations", "5", "--predict-split", ""]
    script.main([*options, "--out", str(tmp_path / "whole")])
    assert "5 steps of 2 x 4" in capsys.readouterr().out
    log, _ = log_of(tmp_path / "whole")
    state = torch.load(tmp_path / "whole" / "last_train_seg.pt", weights_only=True)
    assert len(log) == 1 and state["scheduler"]["last_epoch"] == 5


def test_training_stops_early_on_the_whole_schedule(world, tmp_path, capsys):
    options = [*SMALL, "--data-root", str(world), "--masks", "truth", "--batch-size", "4", "--predict-split", "",
               "--iterations", "10", "--stop-at", "4", "--schedule", "poly"]
    script.main([*options, "--out", str(tmp_path / "stopped")])
    assert "4 steps of 1 x 4" in capsys.readouterr().out
    log, _ = log_of(tmp_path / "stopped")
    assert log[-1]["lr"] == pytest.approx(0.005 * (1 - 4 / 10) ** 0.9)
    state = torch.load(tmp_path / "stopped" / "last_train_seg.pt", weights_only=True)
    assert state["scheduler"]["last_epoch"] == 4


def test_mmsegmentation_s_sizes_stay_with_the_segmenter(world, tmp_path, monkeypatch):
    options = [*SMALL, "--data-root", str(world), "--masks", "truth", "--epochs", "1", "--pipeline",
               "mmsegmentation", "--scales", "0.5", "2", "--crop-size", "48", "--short-side", "48"]
    script.main([*options, "--out", str(tmp_path / "run")])
    checkpoint = tmp_path / "run" / "segmenter.pt"
    segmenter = Segmenter(checkpoint, "cpu")
    assert segmenter.test["short_side"] == 48
    seen = []
    monkeypatch.setattr(type(segmenter.network), "forward", lambda self, images: seen.append(tuple(images.shape[-2:]))
                        or torch.zeros(len(images), 3, *images.shape[-2:]))
    script.main(["--checkpoint", str(checkpoint), "--predict", str(world / "images" / "scene00.png"), "--out",
                 str(tmp_path / "own"), "--workers", "0", "--device", "cpu"])
    segmenter(world / "images" / "scene00.png")
    assert seen == [(48, 54), (48, 54)]  # of 32 x 36
    for flags, message in ((["--scales", "1"], "takes two"), (["--brightness", "0.1"], "photometric distortion")):
        with pytest.raises(InputError, match=message):
            script.main([*options, *flags, "--out", str(tmp_path / "bad")])


def test_submit_and_export(world, trained, tmp_path):
    base = [*SMALL, "--data-root", str(world), "--checkpoint", str(trained / "segmenter.pt")]
    script.main([*base, "--out", str(tmp_path), "--submit", str(tmp_path / "results.tgz")])
    assert (tmp_path / "results.tgz").is_file()
    results = [(run / "result.json").read_text() for run in (trained, tmp_path)]
    assert results[0] == results[1]  # the same predictions by a run of its own
    with pytest.raises(InputError, match="contains .*segmenter.pt, which --checkpoint reads"):
        script.main([*base, "--out", str(trained)])
    script.main([*base, "--out", str(tmp_path), "--export", str(tmp_path / "model.pt2")])
    program = torch.export.load(tmp_path / "model.pt2").module()
    pixels = np.array(Image.open(world / "images" / "scene05.png"))
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    labels = np.array(Image.open(tmp_path / "predictions" / "scene05.png"))
    assert np.array_equal(program(image).argmax(1)[0].numpy(), labels)
