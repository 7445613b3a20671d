"""A hostile user's commands, and damaged files: one line each, and nothing is lost.

Each row is run by the script's own `main` in a folder with data and finished runs of all stages. Afterwards every
file of that folder must be what it was.
"""
import argparse
import importlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipwsss.errors import run_script
from finished_runs import BASE, RUNS, cut, png_head, snapshot


def run(script, argv):
    return run_script(lambda: importlib.import_module(script).main(argv))


def fault_of(capsys, script, argv, told):
    """What is wrong with how a script refuses a command: it must end with status 2 and one line with `told`."""
    status = run(script, argv)
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    if status != 2 or len(lines) != 1 or "Traceback" in error:
        return f"status {status}: {error}"
    return "" if told in lines[0] else f"{told!r} is not in {lines[0]!r}"


def numbers_of(script):
    """(flag, number of its values, type) of each flag of a script that takes numbers."""
    for action in importlib.import_module(script).get_parser()._actions:
        try:
            if action.type is not None:
                action.type("many")
        except argparse.ArgumentTypeError as error:
            if "number" in str(error):
                yield action.option_strings[-1], action.nargs if isinstance(action.nargs, int) else 1, action.type
        except ValueError:
            pytest.fail(f"{action.option_strings[-1]} has no range")


@pytest.mark.parametrize("script", BASE)
def test_every_number_has_a_range(capsys, script):
    faults = []
    numbers = list(numbers_of(script))
    assert len(numbers) >= (3 if script == "eval" else 15)
    for flag, count, kind in numbers:
        assert run(script, [flag, *["many"] * count]) == 2
        # "'many' is not a number from 0 to 1", or "... of at least 1"
        low, high = re.search(r"(?:from|at least) (\S+?)(?: to (\S+?))?[\s,;)]", capsys.readouterr().err).groups()
        assert kind(low) == float(low), f"{flag} takes its lowest value"
        below = f"{float(low) - 1:g}"
        fault = fault_of(capsys, script, [flag, *[below] * count], f"{flag}: {below!r} is not")
        if fault:
            faults.append(f"{flag} {below}: {fault}")
        for value in ("nan", "inf", "", f"{float(high) + 1:g}" if high else "-inf"):
            with pytest.raises(argparse.ArgumentTypeError, match=f"^{re.escape(repr(value))} is not"):
                kind(value)
    assert not faults, "\n".join(faults)


WRONG = {
    "train_cam": [
        ([], "already holds a run; --resume continues it, --overwrite replaces it"),
        (["--resume", "--lr", "0.5"], "--lr 0.5: the run in runs/folder/train_cam has 0.1"),
        (["--resume", "--overwrite"], "give one of them"),
        (["--out", "nothing", "--resume"], "holds no run to continue"),
        (["--out", "absent", "--resume"], "holds no run to continue"),
        (["--out", "data"], "contains the data folder data;"),
        (["--out", "data", "--overwrite"], "contains the data folder data;"),
        (["--out", "."], "contains the data folder data;"),
        (["--out", "data/../data"], "contains the data folder data;"),
        (["--out", "data/images"], "lies in the data's folder"),
        (["--out", "data/images/deeper/still"], "lies in the data's folder"),
        (["--out", "data/masks", "--overwrite"], "lies in the data's folder"),
        (["--out", f"{RUNS}/make_pseudo", "--overwrite"], "holds a run of make_pseudo"),
        (["--out", f"{RUNS}/train_seg", "--resume"], "holds a run of train_seg"),
        (["--out", "notes.txt"], "notes.txt: cannot write there"),
        (["--out", "/proc/nowhere/run"], "/proc/nowhere/run: cannot write there"),
        (["--out", "hand"], "im0.png was not made by a run of these scripts"),
        (["--out", "hand", "--overwrite"], "im0.png was not made by a run of these scripts"),
        (["--out", RUNS, "--init", f"{RUNS}/train_cam/generator.pt"], "contains runs/folder/train_cam/generator.pt, which --init reads"),
        (["--out", "new", "--init", "absent.pt"], "absent.pt: no such checkpoint"),
        (["--out", "new", "--init", f"{RUNS}/train_seg/segmenter.pt"],
         "segmenter.pt: another kind of checkpoint; expected: generator, found: segmenter"),
        (["--out", "new", "--init", "notes.txt"], "notes.txt: not a readable"),
        (["--out", "new", "--init", "bare.pt"], "bare.pt: damaged; it has no config or no state_dict"),
        (["--out", "new", "--init", "data"], "data: no such checkpoint"),
        (["--overwrite", "--weights", "imagnet"], "--weights imagnet: no such weights file; use imagenet, none or a path"),
        (["--overwrite", "--weights", "notes.txt"], "notes.txt: not a readable"),
        (["--overwrite", "--weights", "bare.pt"], "bare.pt: not the weights of a resnet_tiny"),
        (["--overwrite", "--backbone", "resnet99"], "--backbone: 'resnet99' is not one of"),
        (["--overwrite", "--output-stride", "3"], "stride 3"),
        (["--overwrite", "--generator", "weaktr", "--backbone", "deit_toy", "--crop-size", "100"],
         "--crop-size 100: this generator takes multiples of 8"),
        (["--overwrite", "--split", "nowhere"], "--split nowhere"),
        (["--overwrite", "--val-split", "nowhere"], "--split nowhere"),
        (["--overwrite", "--score-split", "nowhere"], "--split nowhere"),
        (["--data-root", "absent"], "absent: no such folder"),
        (["--data-root", "notes.txt"], "no such folder"),
        (["--dataset", "voc12"], "no VOC2012 data"),
        (["--dataset", "coco14"], "data"),
        (["--dataset", "imagenet"], "--dataset: 'imagenet' is not one of"),
        (["--dataset", "toy"], "data: already exists; draw into a new folder"),
        (["--crowds", "ignore"], "folder has no crowds"),
        (["--max-pixels", "100"], "more than --max-pixels 100"),
        (["--resize-long", "640", "320"], "--resize-long: 640 320 is not a range"),
        (["--resize-long", "0", "320"], "--resize-long: 0 320 is not a range"),
        (["--resize-long", "320"], "expected 2 arguments"),
        (["--epochz", "3"], "--epochz: no such flag"),
        (["--lr"], "expected one argument"),
        (["--optimizer", "sdg"], "did you mean sgd?"),
        (["--cam-format", "tif"], "--cam-format: 'tif' is not one of")],
    "train_prompt": [
        ([], "already holds a run"),
        (["--resume", "--w-bg", "3"], "--w-bg 3.0: the run in"),
        (["--out", f"{RUNS}/train_cam", "--overwrite"], "which --init reads"),
        (["--out", f"{RUNS}/make_pseudo", "--overwrite"], "holds a run of make_pseudo"),
        (["--overwrite", "--template", "a photo"], "write {} for the class"),
        (["--overwrite", "--template", ""], "write {} for the class"),
        (["--overwrite", "--template", "unheard of {}."], "template 'unheard of {}.'"),
        (["--overwrite", "--class-prompt", "learned", "--prompt-epochs", "1", "--template", "[S*x] {}."], "vectors are written [S*n]"),
        (["--overwrite", "--class-prompt", "learned", "--prompt-epochs", "1", "--template", "a photo of {}."], "nothing to learn"),
        (["--overwrite", "--class-prompt", "learned", "--prompt-epochs", "1", "--template", "[C*0]"], "nothing to learn"),
        (["--overwrite", "--class-prompt", "learned", "--prompt-epochs", "1", "--template", "[S*4]."], "it reads alike for all classes"),
        (["--overwrite", "--class-prompt", "learned", "--prompt-epochs", "1", "--template", "[S*99] {}."], "but this CLIP reads"),
        (["--overwrite", "--background-prompt", "learned"], "--method pole has settings for 'list' only"),
        (["--overwrite", "--method", "semples", "--background-prompt", "learned", "--background-template", "[C*x]"],
         "vectors are written"),
        (["--overwrite", "--background-prompt", "list"], "template 'a photo of {}.'"),
        (["--overwrite", "--maps", "geometric", "--map-template", "a photo"], "write {} for the class"),
        (["--overwrite", "--maps", "mean", "--map-template", "unheard of {}."], "template 'unheard of {}.'"),
        (["--overwrite", "--class-prompt", "word", "--cams", "absent"], "absent: no such folder of CAM files"),
        (["--overwrite", "--class-prompt", "word", "--cams", "data/images"], "no CAM files"),
        (["--overwrite", "--class-prompt", "word", "--prompts", "absent.json"], "absent.json: not the prompts.json"),
        (["--overwrite", "--class-prompt", "word", "--prompts", "data/labels.csv"], "labels.csv: not the prompts.json"),
        (["--overwrite", "--class-prompt", "word", "--prompts", "list.json"], "list.json: not the prompts.json"),
        (["--overwrite", "--class-prompt", "learned", "--prompts", f"{RUNS}/train_cam/generator.pt"],
         "generator.pt: another kind of checkpoint; expected: learned prompt, found: generator"),
        (["--overwrite", "--method", "semples", "--background-prompt", "learned", "--background-prompts", "bare.pt"],
         "bare.pt: another kind of checkpoint"),
        (["--overwrite", "--synonyms", "absent.json"], "--synonyms absent.json: there is no such file and no built-in list of this name"),
        (["--overwrite", "--synonyms", "notes.txt"], "notes.txt: not a readable JSON"),
        (["--overwrite", "--synonyms", "list.json"], "expected an object of lists of words"),
        (["--overwrite", "--synonyms", "dogs.json"], "unknown class 'dog'"),
        (["--overwrite", "--init", "absent.pt"], "absent.pt: no such checkpoint"),
        (["--overwrite", "--init", f"{RUNS}/train_seg/segmenter.pt"], "segmenter.pt: another kind of checkpoint"),
        (["--overwrite", "--clip", "absent.pt"], "absent.pt is neither a file nor a published CLIP"),
        (["--overwrite", "--clip", "notes.txt"], "notes.txt: not a readable checkpoint"),
        (["--overwrite", "--clip", "bare.pt"], "bare.pt: another kind of checkpoint; expected: toy CLIP"),
        (["--overwrite", "--keep-best", "nowhere"], "--split nowhere"),
        (["--overwrite", "--score-split", "nowhere"], "--split nowhere"),
        (["--method", "popel"], "did you mean pole?")],
    "make_pseudo": [
        (["--out", "data", "--overwrite"], "contains the data folder data;"),
        (["--out", "data/masks", "--overwrite"], "lies in the data's folder"),
        (["--out", f"{RUNS}/train_prompt", "--overwrite"], "cams, which --cams reads"),
        (["--out", f"{RUNS}/train_prompt/cams"], "cams, which --cams reads"),
        (["--out", f"{RUNS}/train_seg", "--overwrite"], "holds a run of train_seg"),
        (["--out", "hand"], "im0.png was not made by a run of these scripts"),
        (["--threshold", "0.5"], "--threshold 0.5: the run in runs/folder/make_pseudo has otsu"),
        (["--cams", f"{RUNS}/train_cam/cams"], "has changed since the run there began"),
        (["--overwrite", "--cams", "absent"], "absent: no such folder of CAM files"),
        (["--overwrite", "--cams", "nothing"], "nothing: no CAM files"),
        (["--overwrite", "--cams", "data/images"], "no CAM files"),
        (["--refine", "crf", "color"], "--refine crf color: at most one walk"),
        (["--refine", "none", "crf"], "--refine none crf: `none` cannot be combined with other stages"),
        (["--refine", "color", "irn"], "--refine color irn: at most one walk"),
        (["--refine", "crg"], "did you mean crf?"),
        (["--overwrite", "--refine", "irn", "--train-radius", "10", "--crop-size", "64"], "needs crops of at least 76 pixels"),
        (["--overwrite", "--refine", "psa", "--train-radius", "10"], "needs crops of at least 76 pixels"),
        (["--overwrite", "--refine", "irn", "--affinity-checkpoint", "absent.pt"], "absent.pt: no such checkpoint"),
        (["--overwrite", "--refine", "irn", "--affinity-checkpoint", f"{RUNS}/train_cam/generator.pt"],
         "generator.pt: another kind of checkpoint; expected: irn network, found: generator"),
        (["--overwrite", "--refine", "irn", "--weights", "imagnet"], "imagnet: no such"),
        (["--threshold", "2"], "'2' is not a number from 0 to 0.999"),
        (["--threshold", "best"], "'best' is not"),
        (["--scales", "2", "1"], "--scales: 2 1 is not a range"),
        (["--overwrite", "--segments", "absent"], "absent: no such folder"),
        (["--overwrite", "--segments", "nothing"], "no segments for this image"),
        (["--overwrite", "--score-split", "nowhere"], "--split nowhere")],
    "train_seg": [
        ([], "already holds a run"),
        (["--resume", "--lr", "0.5"], "--lr 0.5: the run in"),
        (["--out", f"{RUNS}/make_pseudo", "--overwrite"], "masks, which --masks reads"),
        (["--out", "data", "--masks", "truth"], "contains the data folder data;"),
        (["--overwrite", "--masks", "absent"], "absent: no such folder"),
        (["--overwrite", "--masks", "nothing"], "im0.png: no such mask"),
        (["--overwrite", "--masks", "data/images"], "a mask is a palette or 8-bit grey PNG"),
        (["--overwrite", "--predict-split", "nowhere"], "--split nowhere"),
        (["--checkpoint", "absent.pt"], "absent.pt: no such checkpoint"),
        (["--checkpoint", f"{RUNS}/train_cam/generator.pt"],
         "generator.pt: another kind of checkpoint; expected: segmenter, found: generator"),
        (["--checkpoint", "notes.txt"], "notes.txt: not a readable checkpoint"),
        (["--checkpoint", "odd.pt"], "odd.pt: damaged"),
        (["--checkpoint", f"{RUNS}/train_seg/segmenter.pt"], "which --checkpoint reads"),
        (["--overwrite", "--weights", "imagnet"], "--weights imagnet: no such weights file; use imagenet, none or a path"),
        (["--network", "deeplabv9"], "--network: 'deeplabv9' is not one of"),
        (["--export", "model.bin"], "--export: 'model.bin' is not a file name that ends in .pt2 or .onnx"),
        (["--submit", "x.zip"], "--submit: 'x.zip' is not a file name that ends in .tgz"),
        (["--submit", "data"], "--submit: 'data' is not a file name that ends in .tgz"),
        (["--predict", "absent.jpg"], "no such file or folder"),
        (["--predict", "nothing"], "no image in this folder"),
        (["--predict", "notes.txt"], "notes.txt: not a readable image"),
        (["--predict", "deep.png"], "deep.png: not a readable image (I;16 pixels: save it with 8 bits"),
        (["--predict", "dot.png"], "dot.png: not a readable image (1 x 1 pixels"),
        (["--predict", "bomb.png"], "more than --max-pixels"),
        (["--predict", "bomb.png", "--skip-bad"], "bomb.png"),
        (["--predict", "twins"], "would be the result of several images"),
        (["--predict", "data/images/im0.png", "twins/im0.png"], "would be the result of several images"),
        (["--scales", "1.5", "0.5"], "--scales: 1.5 0.5 is not a range")],
    "eval": [
        (["--cams", "absent"], "absent: no such folder"),
        (["--masks", "absent"], "absent: no such folder"),
        (["--masks", "nothing"], "no label maps (.png)"),
        (["--masks", "data/images"], "a mask is a palette"),
        (["--cams", "data/masks"], "no CAM files"),
        (["--split", "nowhere"], "--split nowhere"),
        (["--json", "data"], "--json: 'data' is not a file name that ends in .json"),
        (["--json", "notes.txt"], "--json: 'notes.txt' is not a file name that ends in .json"),
        (["--per-image", "data/labels.json"], "--per-image: 'data/labels.json' is not a file name that ends in .csv"),
        (["--runs", "nothing"], "give --cams"),
        (["--json", "data/images/a.json"], "--json data/images/a.json: lies in the data's folder"),
        (["--per-image", "data/masks/a.csv"], "lies in the data's folder"),
        (["--out", "data/images", "--confusion"], "lies in the data's folder"),
        (["--json", "/proc/nowhere/a.json"], "/proc/nowhere"),
        (["--dataset", "flder"], "did you mean folder?")]}


@pytest.mark.parametrize("script", BASE)
def test_a_wrong_command_is_one_line_and_changes_nothing(finished, monkeypatch, capsys, script):
    monkeypatch.chdir(finished)
    before = snapshot(finished)
    faults = []
    for flags, told in WRONG[script]:
        fault = fault_of(capsys, script, [*BASE[script], *flags], told)
        after = snapshot(finished)
        if after != before:
            fault += f"; changed: {sorted(map(str, after.keys() ^ before.keys())) or 'contents'}"
        if fault:
            faults.append(f"{' '.join(flags)}: {fault}")
    assert not faults, "\n".join(faults)


def text(name, content):
    return lambda root: (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def image(name, *size, kind=np.uint8):
    return lambda root: Image.fromarray(np.full(size, 77, kind)).save(root / name)


def cam(**arrays):
    return lambda root: np.savez(root / RUNS / "train_prompt/cams/im1.npz", **arrays)


def gone(name):
    return lambda root: (root / name).unlink()


LABELS = "image,labels\nim0,boat\n"
CAMS = ["--cams", f"{RUNS}/train_prompt/cams"]
AT_THE_START = [  # damages that a script sees before it writes anything
    (text("data/images/im1.png", ""), "train_cam", ["--overwrite"], "im1.png: not a readable image"),
    (text("data/images/im1.png", png_head(60000, 60000)), "train_cam", ["--overwrite"], "more than --max-pixels"),
    (image("data/images/im1.png", 1, 1, 3), "train_cam", ["--overwrite"], "1 x 1 pixels (H x W)"),
    (image("data/images/im1.png", 40, 48, kind=np.uint16), "train_cam", ["--overwrite"], "save it with 8 bits"),
    (gone("data/images/im1.png"), "train_cam", ["--overwrite"], "im1"),
    (image("data/masks/im1.png", 40, 47), "train_seg", ["--overwrite"], "mask is 40 x 47 (H x W), its image 40 x 48"),
    (image("data/masks/im1.png", 40, 48, 3), "eval", [], "a mask is a palette or 8-bit grey PNG"),
    (text("data/masks/im1.png", png_head(60000, 60000)), "eval", [], "more than --max-pixels"),
    (text("data/labels.csv", ""), "train_cam", [], "labels.csv"),
    (text("data/labels.csv", b"\xff\xfe\x00"), "train_cam", [], "not readable as UTF-8"),
    (text("data/labels.csv", LABELS + "im1,dog\n"), "train_cam", [], "dog"),
    (text("data/labels.csv", LABELS + "im1,\n"), "train_cam", [], "im1"),
    (text("data/labels.csv", LABELS + "im9,boat\n"), "train_cam", [], "im9"),
    (text("data/classes.txt", ""), "train_cam", [], "classes.txt"),
    (text("data/classes.txt", "boat\nboat\n"), "train_cam", [], "boat is listed twice"),
    (text("data/labels.csv", LABELS + "im1,sheep\n"), "train_cam", ["--resume"], "has changed since the run there began"),
    (text(f"{RUNS}/train_cam/args.json", "{"), "train_cam", ["--resume"], "args.json: damaged"),
    (text(f"{RUNS}/train_cam/args.json", "[]"), "train_cam", ["--resume"], "args.json: damaged"),
    (text(f"{RUNS}/train_cam/args.json", ""), "train_cam", [], "args.json: damaged"),
    (cut(f"{RUNS}/train_cam/generator.pt"), "train_prompt", ["--overwrite"], "generator.pt: not a readable checkpoint"),
    (cut(f"{RUNS}/train_cam/generator.pt", 2000), "train_prompt", ["--overwrite"], "generator.pt: not a readable"),
    (text(f"{RUNS}/train_cam/generator.pt", ""), "train_prompt", ["--overwrite"], "generator.pt: not a readable"),
    (cut(f"{RUNS}/train_seg/segmenter.pt"), "train_seg", ["--predict", "data/images"], "segmenter.pt: not a readable"),
    (lambda root: shutil.rmtree(root / RUNS / "train_prompt/cams"), "make_pseudo", ["--overwrite"], "no such folder"),
    (cut(f"{RUNS}/train_prompt/cams/im0.npz"), "make_pseudo", [], "has changed since the run there began"),
    (gone(f"{RUNS}/make_pseudo/masks/im1.png"), "train_seg", ["--overwrite"], "no such mask"),
    (cut(f"{RUNS}/train_prompt/cams/im1.npz"), "eval", CAMS, "not a readable CAM file"),
    (cam(keys=[1], cam=np.full((1, 10, 12), np.nan)), "eval", CAMS, "NaN"),
    (cam(keys=[9], cam=np.ones((1, 10, 12))), "eval", CAMS, "im1"),
    (cam(keys=[[1]], cam=np.ones((1, 10, 12))), "eval", CAMS, "im1"),
    (cam(keys=[1]), "eval", CAMS, "no field 'cam'")]
WHEN_READ = [  # damages behind a good header: what was there before is untouched, the new folder may hold files
    (cut("data/images/im1.png"), "train_cam", [], "im1.png: not a readable image"),
    (cut(f"{RUNS}/make_pseudo/masks/im1.png", 60), "train_seg", [], "im1.png: not a readable mask"),
    (image("data/masks/im1.png", 40, 48), "train_seg", ["--masks", "truth"], "value 77"),
    (cut("data/masks/im1.png", 60), "eval", CAMS, "im1.png: not a readable mask"),
    (cam(keys=[0], cam=np.ones((1, 10, 12))), "make_pseudo", [], "class 0 in its keys, the image's tags are 1"),
    (cam(keys=[7], cam=np.ones((1, 10, 12))), "make_pseudo", [], "class 7 in its keys"),
    (cam(keys=[1], cam=np.ones((1, 12, 10))), "make_pseudo", [], "do not fit an image"),
    (cut(f"{RUNS}/train_prompt/cams/im1.npz"), "make_pseudo", [], "not a readable CAM file")]


@pytest.fixture
def new_copy(finished, tmp_path, monkeypatch):
    """A function that makes another copy of `finished`, the working folder from then on."""
    def make():
        copy = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(finished, copy)
        monkeypatch.chdir(copy)
        return copy
    return make


def faults_of(capsys, new_copy, rows):
    """What is wrong with how scripts treat damaged files: all files but those in `new` must stay as they are."""
    faults = []
    for number, (damage, script, flags, told) in enumerate(rows):
        copy = new_copy()
        damage(copy)
        before = snapshot(copy)
        fault = fault_of(capsys, script, [*BASE[script], *flags], told)
        after = {path: content for path, content in snapshot(copy).items() if copy / "new" not in path.parents}
        if after != before:
            fault += f"; changed: {sorted(map(str, after.keys() ^ before.keys())) or 'contents'}"
        if fault:
            faults.append(f"row {number}, {told}: {fault}")
    return faults


def test_a_damaged_file_is_named_and_nothing_changes(new_copy, capsys):
    faults = faults_of(capsys, new_copy, AT_THE_START)
    assert not faults, "\n".join(faults)


def test_a_file_damaged_behind_its_header_is_named_when_it_is_read(new_copy, capsys):
    rows = [(damage, script, [*flags, "--out", "new"], told) for damage, script, flags, told in WHEN_READ]
    faults = faults_of(capsys, new_copy, rows)
    assert not faults, "\n".join(faults)


def test_bad_cams_are_left_out_by_skip_bad(new_copy, capsys):
    for damage, script, _, told in WHEN_READ:
        if script == "make_pseudo":
            damage(new_copy())
            assert run(script, [*BASE[script], "--out", "new", "--skip-bad"]) == 0, told
            error = capsys.readouterr().err
            assert error.count("skipped: ") == 1 and "im1" in error and told in error
            assert sorted(path.name for path in Path("new/masks").iterdir()) == [f"im{i}.png" for i in (0, 2, 3, 4, 5)]


def test_skip_bad_ends_alike_in_all_scripts(copied, capsys):
    cut("data/images/im1.png")(copied)
    for script, flags in BASE.items():
        argv = [*flags, "--skip-bad"]
        if script != "eval":
            argv.append("--overwrite")
        assert run(script, argv) == 0
        assert "skipped: data/images/im1.png: not a readable image" in capsys.readouterr().err
