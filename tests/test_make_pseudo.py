"""make_pseudo.py from CAM files to masks: hand-made worlds, real CAMs, interrupted runs, bad files."""
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import make_pseudo
from clipwsss.cams.cam_files import CamFile, read_cam, resize_cam, write_cam
from clipwsss.datasets import build_dataset
from clipwsss.datasets.jobs import ImageJobs
from clipwsss.pictures import voc_palette
from clipwsss.errors import InputError, run_script
from clipwsss.report.metrics import scores, threshold_confusions
from clipwsss.refine.stages import color_walk
from clipwsss.report.page import read_report
from clipwsss.report.scoring import THRESHOLDS
from clipwsss.report.thresholds import find_thresholds
from make_pseudo import get_parser, refine_image, split_stages, walk_maps

CPU = torch.device("cpu")
TINY = ["--backbone", "resnet_tiny", "--weights", "none", "--crop-size", "64", "--train-radius", "5",
        "--batch-size", "2", "--epochs", "2", "--device", "cpu"]
# mIoU of the published CAMs by threshold, from the sample's own README
PUBLISHED = {0.05: 33.46, 0.10: 37.22, 0.15: 39.22, 0.20: 40.63, 0.25: 41.77, 0.30: 41.05, 0.40: 36.26}


def draw_world(root, count=4, masks=True, size=(44, 61)):
    """A folder data set of rectangles on noise; the CAMs see the middle of each and a little elsewhere."""
    rng = np.random.default_rng(0)
    for folder in ("images", "cams", *(["masks"] if masks else [])):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("red\ngreen\n")
    rows = ["image,labels"]
    for index in range(count):
        name, key = f"im{index}", index % 2
        truth = np.zeros(size, np.uint8)
        top, left = rng.integers(4, 12), rng.integers(4, 20)
        truth[top:top + 24, left:left + 28] = key + 1
        image = rng.integers(60, 80, (*size, 3))
        image[truth > 0] += np.array([120, 0, 0] if key == 0 else [0, 120, 0])
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{name}.png")
        if masks:
            Image.fromarray(truth).save(root / "masks" / f"{name}.png")
        cam = np.zeros((1, 11, 16), np.float32)
        cam[0, (top + 4) // 4:(top + 20) // 4, (left + 4) // 4:(left + 24) // 4] = 1
        cam += 0.1 * rng.random(cam.shape, np.float32)
        write_cam(root / "cams", name, np.array([key]), cam / cam.max())
        rows.append(f"{name},{['red', 'green'][key]}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return ["--dataset", "folder", "--data-root", str(root), "--cams", str(root / "cams"), "--workers", "0"]


def run(*arguments):
    return run_script(lambda: make_pseudo.main([str(argument) for argument in arguments]))


def masks_in(out):
    return {path.stem: np.array(Image.open(path)) for path in sorted((out / "masks").iterdir())}


def cam_mask(file, threshold):
    """The mask of one class's map at stride 4 in an image of 44 x 61."""
    cam = torch.from_numpy(file.cam)[None]
    maps = F.interpolate(cam, (44, 64), mode="bilinear", align_corners=False)[0, 0, :, :61].numpy()
    return (maps > threshold) * (file.keys[0] + 1)


def report_of(out):
    return json.loads((out / "result.json").read_text())


def refined(file, pixels, *arguments):
    """The label map of one image "x" with these flags of the script."""
    args = get_parser().parse_args([str(argument) for argument in arguments])
    walk, deciders = split_stages(args.refine, args.segments)
    walk_image = partial(walk_maps, args, walk, None, CPU)
    return refine_image(args, walk_image, deciders, "x", pixels, file, args.threshold)


@pytest.mark.smoke
def test_unrefined_masks_are_the_thresholded_cams(tmp_path, capsys):
    world, out = draw_world(tmp_path / "data"), tmp_path / "out"
    assert run(*world, "--refine", "none", "--threshold", 0.4, "--out", out, "--layout", "voc") == 0
    for name, mask in masks_in(out).items():
        file = read_cam(tmp_path / "data/cams", name)
        assert mask.dtype == np.uint8 and np.array_equal(mask, cam_mask(file, 0.4))
    picture = Image.open(out / "masks/im1.png")
    assert picture.mode == "P" and picture.getpalette()[:9] == voc_palette()[:3].ravel().tolist()
    assert report_of(out)["changed"] == 0 and report_of(out)["miou"] == report_of(out)["cam_miou"]
    assert len(read_report(out / "report.html")["runs"][0]["pictures"]) == 4
    copies = out / "voc/VOCdevkit/VOC2012/SegmentationClass"
    assert (copies / "im1.png").read_bytes() == (out / "masks/im1.png").read_bytes()
    assert "4 images with masks" in capsys.readouterr().out


def test_colour_walk_fills_the_objects_and_says_how_much_changed(tmp_path, capsys):
    world, out = draw_world(tmp_path / "data"), tmp_path / "out"
    assert run(*world, "--refine", "color", "--threshold", 0.5, "--out", out) == 0
    found = report_of(out)
    assert found["cam_miou"] < 60 and found["miou"] > found["cam_miou"] + 10
    changed = np.mean([mask != cam_mask(read_cam(tmp_path / "data/cams", name), 0.5)
                       for name, mask in masks_in(out).items()])
    assert found["changed"] == pytest.approx(100 * changed)
    assert f"changed {100 * changed:.2f} %" in capsys.readouterr().out


def test_data_without_masks_and_more_processes(tmp_path, capsys):
    world, (one, two) = draw_world(tmp_path / "data", masks=False), (tmp_path / "one", tmp_path / "two")
    assert run(*world, "--refine", "color", "--threshold", "auto", "--out", one) == 0
    assert run(*world, "--workers", 2, "--refine", "color", "--threshold", "auto", "--out", two) == 0
    printed = capsys.readouterr().out
    assert "no masks, so Otsu's threshold is taken" in printed and "no mIoU is computed" in printed
    first, second = masks_in(one), masks_in(two)
    assert len(first) == 4 and all(np.array_equal(first[name], second[name]) for name in first)


def test_auto_threshold_is_the_best_one(tmp_path):
    world, out = draw_world(tmp_path / "data"), tmp_path / "out"
    assert run(*world, "--refine", "color", "--threshold", "auto", "--out", out) == 0
    refined, cams = json.loads((out / "thresholds.json").read_text())
    assert report_of(out)["miou"] == pytest.approx(refined["miou"], abs=1e-3)
    assert report_of(out)["cam_miou"] == pytest.approx(cams["miou"], abs=1e-3)
    tables = 0
    for name in (f"im{index}" for index in range(4)):
        file = read_cam(tmp_path / "data/cams", name)
        image, truth = (np.array(Image.open(tmp_path / "data" / kind / f"{name}.png"))
                        for kind in ("images", "masks"))
        maps = color_walk(torch.from_numpy(file.cam), torch.tensor(image).permute(2, 0, 1)).numpy()
        tables = tables + threshold_confusions(maps, file.keys, truth, THRESHOLDS, 3)
    assert refined["threshold"] == THRESHOLDS[int(scores(tables)["miou"].argmax())]


def test_the_threshold_is_chosen_on_the_scored_images_alone(tmp_path):
    draw_world(tmp_path / "data")
    dataset = build_dataset("folder", tmp_path / "data", "train")
    args = get_parser().parse_args(["--refine", "none", "--threshold", "auto"])
    jobs, chosen = ImageJobs(dataset.names), []
    for scored in ({"im2"}, {"im0", "im1", "im2", "im3"}):
        run_folder = tmp_path / f"of{len(scored)}"
        run_folder.mkdir()
        walk_image = partial(walk_maps, args, "none", None, CPU)
        find_thresholds("auto", run_folder, dataset, tmp_path / "data/cams", walk_image, scored, jobs)
        chosen.append(json.loads((run_folder / "thresholds.json").read_text())[0])
    file, truth = read_cam(tmp_path / "data/cams", "im2"), np.array(Image.open(tmp_path / "data/masks/im2.png"))
    table = threshold_confusions(resize_cam(file, truth.shape), file.keys, truth, THRESHOLDS, 3)
    assert chosen[0]["miou"] == pytest.approx(scores(table)["miou"].max(), abs=0.01)
    assert chosen[0] != chosen[1]


def test_an_interrupted_run_leaves_no_half_file_and_goes_on(tmp_path, monkeypatch):
    world, out = [*draw_world(tmp_path / "data"), "--refine", "none"], tmp_path / "out"
    save, count = Image.Image.save, iter(range(100))

    def failing(self, path, *args, **kwargs):
        if next(count) == 2:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        save(self, path, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", failing)
        assert run(*world, "--out", out) == 130
    assert sorted(path.name for path in (out / "masks").iterdir()) == ["im0.png", "im1.png"]
    times = {path: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    assert run(*world, "--out", out) == 0
    assert len(masks_in(out)) == 4 and all(path.stat().st_mtime_ns == time for path, time in times.items())
    Image.fromarray(np.full((44, 61), 2, np.uint8)).save(out / "masks/im0.png")
    assert run(*world, "--out", out) == 0 and (masks_in(out)["im0"] == 2).all()
    assert run(*world, "--out", out, "--overwrite") == 0 and (masks_in(out)["im0"] != 2).all()


def test_other_settings_in_the_same_folder_are_refused(tmp_path, capsys):
    world, out = draw_world(tmp_path / "data"), tmp_path / "out"
    assert run(*world, "--refine", "none", "--out", out) == 0
    assert run(*world, "--refine", "none", "--out", out, "--threshold", 0.5) == 2
    error = capsys.readouterr().err
    assert "--threshold 0.5: " in error and "has otsu" in error and "--overwrite" in error and error.count("\n") == 1
    assert run(*world, "--refine", "none", "--out", out, "--threshold", 0.5, "--overwrite") == 0


def spoil(path, case):
    """Replace a CAM file of the class "green" by a bad one; what the error must say."""
    if case == "missing":
        path.unlink()
        return f"{path.name} (or .npy): no CAM file"
    if case == "corrupted":
        path.write_bytes(path.read_bytes()[:100])
        return f"{path.name}: not a readable CAM file"
    maps, keys, high = np.ones((1, 11, 16), np.float32), [1], None
    if case == "turned":
        maps = np.ones((1, 16, 11), np.float32)
    if case == "larger":
        maps = np.ones((1, 88, 122), np.float32)
    if case == "high_res":
        high = np.ones((1, 40, 61), np.float32)
    if case == "key":
        keys = [2]
    if case == "tag":
        keys = [0]
    arrays = {"keys": np.array(keys), "cam": maps * (np.nan if case == "nan" else 1)}
    np.savez(path, **arrays, **({} if high is None else {"high_res": high}))
    return {"turned": "maps of [16, 11] do not fit an image of [44, 61]", "larger": "maps of [88, 122]",
            "high_res": "high_res is [40, 61], its image [44, 61]", "nan": "NaN",
            "key": "class 2 in its keys; this data has 0..1",
            "tag": "class 0 in its keys, the image's tags are 1"}[case]


CASES = ("missing", "corrupted", "turned", "larger", "high_res", "key", "tag", "nan")


def test_a_bad_cam_file_is_named(tmp_path, capsys):
    world, path = draw_world(tmp_path / "data", count=3), tmp_path / "data/cams/im1.npz"
    good = path.read_bytes()
    for case in CASES:
        expected = spoil(path, case)
        assert run(*world, "--refine", "none", "--out", tmp_path / "out", "--overwrite") == 2, case
        error = capsys.readouterr().err
        assert error.startswith("error: ") and expected in error and "im1" in error, case
        assert error.count("\n") == 1, case
        path.write_bytes(good)


def test_bad_cam_files_are_left_out_on_request(tmp_path, capsys):
    world, out = draw_world(tmp_path / "data", count=2 * len(CASES)), tmp_path / "out"
    expected = [spoil(tmp_path / f"data/cams/im{2 * number + 1}.npz", case) for number, case in enumerate(CASES)]
    assert run(*world, "--refine", "none", "--out", out, "--skip-bad") == 0
    captured = capsys.readouterr()
    assert all(problem in captured.err for problem in expected)
    assert "skipped 8 bad" in captured.err and "8 masks" in captured.out
    assert sorted(masks_in(out)) == sorted(f"im{number}" for number in range(0, 16, 2))


def test_bad_files_in_other_processes_are_one_line_too(tmp_path, capsys):
    world = draw_world(tmp_path / "data", count=3)
    expected = spoil(tmp_path / "data/cams/im1.npz", "key")
    assert run(*world, "--workers", 2, "--refine", "none", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_missing_inputs_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = draw_world(tmp_path / "data", count=2)
    (tmp_path / "segments").mkdir()
    for arguments, message in (
            (["--cams", "nowhere"], "nowhere: no such folder"),
            (["--refine", "none", "--segments", "gone"], "gone: no such folder"),
            (["--refine", "none", "--segments", "segments"], "segments/im0.png (or .json): no segments"),
            (["--refine", "irn", "--affinity-checkpoint", "gone.pt"], "gone.pt: no such"),
            (["--refine", "irn", "--weights", "generator"],
             "--weights generator: runs/folder/train_prompt/generator.pt: no such file; run train_prompt.py"),
            (["--refine", "psa", "--weights", "gone.pt"], "--weights gone.pt: no such weights file; use imagenet")):
        assert run(*world, "--out", tmp_path / "out", *arguments) == 2, arguments
        assert message in capsys.readouterr().err, arguments


def test_flags_of_the_walk_and_the_threshold_have_a_range():
    for flag, value, message in (("--beta", "0", "is not a number of at least 0.001"),
                                 ("--exp-times", "21", "is not a whole number from 0 to 20")):
        with pytest.raises(InputError, match=f"{flag}: '{value}' {message}"):
            make_pseudo.main([flag, value])
    for value in ("1.5", "best", "-0.1"):
        with pytest.raises(InputError, match=f"--threshold: '{value}' is not a number from 0 to 0.999"):
            make_pseudo.main(["--threshold", value])


def test_stages_are_one_walk_and_then_deciders():
    segments = Path("segments")
    for refine, given, expected in ((["none"], None, ("none", [])), (["crf"], None, ("none", ["crf"])),
                                    (["irn"], None, ("irn", [])), (["psa", "crf"], None, ("psa", ["crf"])),
                                    (["none"], segments, ("none", ["segments"])),
                                    (["color"], segments, ("color", ["segments"]))):
        assert split_stages(refine, given) == expected
    for refine, given, message in (
            (["none", "crf"], None, "--refine none crf: `none` cannot be combined with other stages"),
            (["crf", "none"], None, "--refine crf none: `none` cannot be combined with other stages"),
            (["color", "irn"], None, "--refine color irn: at most one walk"),
            (["crf", "color"], None, "--refine crf color: at most one walk .* before crf"),
            (["color", "crf"], segments, "--refine color crf: --segments cannot be combined with crf")):
        with pytest.raises(InputError, match=message):
            split_stages(refine, given)


def test_irn_learns_from_confident_labels_and_its_checkpoint_spares_that(tmp_path, capsys):
    world, out = [*draw_world(tmp_path / "data"), "--refine", "irn", *TINY], tmp_path / "out"
    assert run(*world, "--out", out) == 0
    labels = np.array(Image.open(out / "labels/im0.png"))
    assert {0, 1} <= set(np.unique(labels)) <= {0, 1, 255} and labels.shape == (44, 61)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log if line["label"] == "irn_network"] == [1, 2]
    assert all(np.isfinite(line["loss"]) for line in log if "loss" in line)
    stored = torch.load(out / "affinity.pt", weights_only=True)
    assert stored["kind"] == "irn network" and not any("dp" in name for name in stored["state_dict"])
    again = tmp_path / "again"
    assert run(*world, "--out", again, "--affinity-checkpoint", out / "affinity.pt") == 0
    assert not (again / "labels").exists()
    assert all(np.array_equal(mask, masks_in(again)[name]) for name, mask in masks_in(out).items())
    capsys.readouterr()
    assert run(*world, "--out", out) == 0 and "irn_network" not in capsys.readouterr().out


def test_irn_training_goes_on_exactly_after_an_interruption(tmp_path, monkeypatch):
    world = [*draw_world(tmp_path / "data"), "--refine", "irn", *TINY]
    assert run(*world, "--out", tmp_path / "whole") == 0
    save, calls = make_pseudo.Run.save, []

    def interrupted(self, *args, **kwargs):
        save(self, *args, **kwargs)
        calls.append(args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(make_pseudo.Run, "save", interrupted)
        assert run(*world, "--out", tmp_path / "parts") == 130
    assert len(calls) == 1 and run(*world, "--out", tmp_path / "parts") == 0
    whole, parts = (torch.load(tmp_path / name / "affinity.pt", weights_only=True)["state_dict"]
                    for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_psa_trains_and_its_background_walks_along(tmp_path):
    world, out = draw_world(tmp_path / "data"), tmp_path / "out"
    assert run(*world, "--refine", "psa", *TINY, "--out", out) == 0
    settings = json.loads((out / "args.json").read_text())
    assert settings["threshold"] == "alpha" and settings["beta"] == 8 and settings["confident"] == [4, 32]
    assert len(masks_in(out)) == 4 and np.isfinite(report_of(out)["miou"])


COLOR_WALK = ("--refine", "color", "--beta", 1, "--exp-times", 6)


@pytest.mark.smoke
def test_segments_are_painted_beside_any_background(tmp_path):
    """A whole image that is half a class, whatever gives the background its score."""
    left = np.zeros((6, 8), bool)
    left[:, :4] = True
    Image.fromarray(np.where(left, 1, 2).astype(np.uint8)).save(tmp_path / "x.png")
    pixels = np.repeat(np.uint8(200) * left[..., None], 3, axis=2)
    file = CamFile(np.array([2]), left[None].astype(np.float32), None)
    for threshold in (0.25, "alpha"):
        for stages in (("--refine", "none"), (*COLOR_WALK, "--color-stride", 1)):
            mask = refined(file, pixels, *stages, "--threshold", threshold, "--segments", tmp_path)
            assert np.array_equal(mask, 3 * left), (threshold, stages)


def test_empty_maps_stay_background():
    file = CamFile(np.array([3]), np.zeros((1, 5, 6), np.float32), None)
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8)
    for stages in (("--refine", "none"), COLOR_WALK, ("--refine", "color", "crf", *COLOR_WALK[2:])):
        for threshold in (0.25, "alpha"):
            mask = refined(file, pixels, *stages, "--threshold", threshold)
            assert mask.shape == (20, 24) and (mask == 0).all(), (stages, threshold)


def test_masks_are_painted_from_segments(tmp_path):
    world, out = draw_world(tmp_path / "data"), tmp_path / "out"
    (tmp_path / "segments").mkdir()
    for index in range(4):
        truth = np.array(Image.open(tmp_path / f"data/masks/im{index}.png"))
        Image.fromarray((1 + (truth > 0)).astype(np.uint8)).save(tmp_path / f"segments/im{index}.png")
    assert run(*world, "--refine", "color", "--threshold", 0.5, "--segments", tmp_path / "segments",
               "--out", out) == 0
    assert report_of(out)["miou"] == 100


def test_crf_refines_hand_made_masks_and_walks(tmp_path):
    world = draw_world(tmp_path / "data")
    found = {}
    for refine in ("none", "crf", "color", "color crf"):
        assert run(*world, "--refine", *refine.split(), "--threshold", 0.5, "--out", tmp_path / refine) == 0
        found[refine] = report_of(tmp_path / refine)["miou"]
    assert found["crf"] != found["none"] and found["color crf"] > found["color"]


def test_released_cams_give_the_published_table(tmp_path, voc_sample):
    base = ["--data-root", voc_sample, "--split", "train", "--cams", voc_sample / "cams", "--workers", 0,
            "--refine", "none"]
    for threshold in (0.15, 0.40):
        assert run(*base, "--threshold", threshold, "--out", tmp_path / str(threshold)) == 0
        assert report_of(tmp_path / str(threshold))["miou"] == pytest.approx(PUBLISHED[threshold], abs=0.01)
    assert run(*base, "--threshold", "auto", "--out", tmp_path / "auto") == 0
    assert json.loads((tmp_path / "auto/thresholds.json").read_text())[0]["threshold"] == 0.26
    assert report_of(tmp_path / "auto")["miou"] == pytest.approx(PUBLISHED[0.25] + 0.01, abs=0.01)


def test_crf_raises_the_released_cams(tmp_path, voc_sample):
    assert run("--data-root", voc_sample, "--split", "train", "--cams", voc_sample / "cams", "--workers", 0,
               "--refine", "crf", "--threshold", 0.15, "--out", tmp_path / "crf") == 0
    assert report_of(tmp_path / "crf")["miou"] > PUBLISHED[0.15] + 1
