"""make_pseudo.py --generator clip: CLIP-ES' masks, whose unsure pixels no score counts and no segmenter learns."""
import json

import numpy as np
import pytest
from PIL import Image
from test_make_pseudo import draw_world, run

import make_pseudo
from clipwsss.cams.cam_files import read_cam, resize_cam
from clipwsss.datasets import build_dataset
from clipwsss.datasets.jobs import ImageJobs
from clipwsss.errors import InputError
from clipwsss.refine.crf import dense_crf
from clipwsss.report.metrics import scores
from clipwsss.report.scoring import score_label_maps


def test_masks_of_clips_own_maps_start_from_scores_and_leave_unsure_pixels_open(tmp_path, capsys):
    """CLIP-ES: background (1 - max)^1, its CRF from these scores, 255 where the CRF is less sure than 0.95."""
    flags = draw_world(tmp_path)
    out = ["--out", tmp_path / "out", "--generator", "clip"]
    assert run(*flags, *out) == 0
    told = capsys.readouterr().out
    data = build_dataset("folder", tmp_path, "train")
    table, unsure = 0, 0
    for index, name in enumerate(data.names):
        pixels = np.array(data.load_image(index))
        file = read_cam(tmp_path / "cams", name)
        maps = resize_cam(file, pixels.shape[:2])
        energy = -np.log(np.clip(np.concatenate([1 - maps, maps]), 1e-5, 1)).astype(np.float32)
        marginals = dense_crf(pixels, energy, 10, (1, 3), (67, 3, 4))
        expected = np.where(marginals.argmax(0) == 1, file.keys[0] + 1, 0)
        expected[marginals.max(0) < 0.95] = 255
        mask = np.array(Image.open(tmp_path / "out" / "masks" / f"{name}.png"))
        assert np.array_equal(mask, expected) and {0, 255} < set(np.unique(mask))
        truth = data.load_mask(index)
        sure = mask != 255
        table = table + np.bincount(truth[sure] * 3 + mask[sure], minlength=9).reshape(3, 3)
        unsure += (~sure).sum()
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["miou"] == pytest.approx(float(scores(table)["miou"])) and result["unsure"] == 100 * unsure / (4 * 44 * 61)
    assert f"{result['unsure']:.2f} % of the pixels are unsure (255); no mIoU counts them" in told
    found, _ = score_label_maps(data, tmp_path / "out" / "masks", ImageJobs(data.names, 0))
    assert np.array_equal(found, table) and "% of the pixels are unsure (255) and are not scored" in capsys.readouterr().out
    assert run(*flags, *out) == 0  # a second call finds the masks and scores them alike
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    capsys.readouterr()
    (tmp_path / "args.json").write_text('{"generator": "resnet", "maps": "clip"}')  # of the run that made the CAMs
    assert run(*flags, "--out", tmp_path / "all", "--generator", "clip", "--unsure", "0") == 0
    assert "unsure" not in capsys.readouterr().out
    with pytest.raises(InputError, match="^--unsure 0.5: it needs the CRF's probabilities; add crf to --refine$"):
        make_pseudo.main([*flags, "--refine", "color", "--unsure", "0.5"])


def test_settings_for_another_maker_than_that_of_the_cams_are_told(tmp_path, capsys):
    flags = [*draw_world(tmp_path), "--refine", "none"]
    for number, (made, given, told) in enumerate((
            ({"generator": "clip"}, [], "was made by clip: --generator clip has the settings for it"),
            ({"generator": "resnet", "maps": "clip"}, [], "--generator clip has"),
            ({"generator": "resnet", "maps": "geometric"}, [], ""), ({"generator": "resnet"}, [], ""), ({"generator": "gan"}, [], ""), ([1], [], ""),
            ({"generator": "resnet"}, ["--preset", "quick"], "of --generator clip, but"),
            ({"generator": "clip"}, ["--generator", "resnet"], ""))):
        (tmp_path / "args.json").write_text(json.dumps(made))
        assert run(*flags, *given, "--out", tmp_path / f"out{number}") == 0
        assert json.loads((tmp_path / f"out{number}" / "args.json").read_text())["unsure"] == 0  # a CRF's alone
        note = capsys.readouterr().out.partition("note: the masks get the settings ")[2].partition("\n")[0]
        assert told in note and bool(told) == bool(note), made
    (tmp_path / "args.json").write_text("arguments")  # a file of another program
    assert run(*flags, "--out", tmp_path / "other") == 0 and "note: the masks" not in capsys.readouterr().out
