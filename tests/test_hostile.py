"""A hostile user's commands, damaged files and faults of the machine: one line each, and nothing is lost.

Every row is run by the script's own `main` in a folder with data and finished runs of all stages; afterwards every
file of that folder must be what it was.
"""
import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipwsss.errors import run_script
from clipwsss.flags import Number
from finished_runs import BASE, RUNS, cut, png_head, snapshot


def refused(capsys, root, script, flags, told):
    """Run a script: exit status 2, one line that says `told`, and no file of the folder is another one."""
    before = snapshot(root)
    assert run_script(lambda: importlib.import_module(script).main([*BASE[script], *flags])) == 2
    error = capsys.readouterr().err
    line = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(line) == 1 and told in line[0] and "Traceback" not in error, error
    after = snapshot(root)
    assert after == before, sorted(map(str, after.keys() ^ before.keys())) or "a file has changed"


NUMBERS = [(script, action.option_strings[-1], action.nargs, action.type) for script in BASE
           for action in importlib.import_module(script).get_parser()._actions if isinstance(action.type, Number)]


@pytest.mark.parametrize("script, flag, count, kind", NUMBERS)
def test_every_number_has_a_range(capsys, script, flag, count, kind):
    for value in (str(kind.low - 1), str(kind.high + 1), "nan", "many", ""):
        if value != "inf":
            values = [value] * (count if isinstance(count, int) else 1)
            assert run_script(lambda: importlib.import_module(script).main([flag, *values])) == 2
            error = capsys.readouterr().err
            assert error.startswith(f"error: {flag}: ") and f"from {kind.low:g} " in error
            assert error.count("\n") == 1


WRONG = {
    "train_cam": [
        ([], "already holds a run: --resume goes on, --overwrite starts anew"),
        (["--resume", "--lr", "0.5"], "--lr was 0.1 and is 0.5 now"),
        (["--resume", "--overwrite"], "give one of them"),
        (["--out", "nothing", "--resume"], "holds no run to go on with"),
        (["--out", "absent", "--resume"], "holds no run to go on with"),
        (["--out", "data"], "holds the data"), (["--out", "data", "--overwrite"], "holds the data"),
        (["--out", "."], "holds the data"), (["--out", "data/../data"], "holds the data"),
        (["--out", "data/images"], "lies in the data's own folder"),
        (["--out", "data/images/deeper/still"], "lies in the data's own folder"),
        (["--out", "data/masks", "--overwrite"], "lies in the data's own folder"),
        (["--out", f"{RUNS}/make_pseudo", "--overwrite"], "holds a run of make_pseudo"),
        (["--out", f"{RUNS}/train_seg", "--resume"], "holds a run of train_seg"),
        (["--out", "notes.txt"], "notes.txt: cannot write there"),
        (["--out", "/proc/nowhere/run"], "/proc/nowhere/run: cannot write there"),
        (["--out", "hand"], "im0.png was made by no run here"),
        (["--out", "hand", "--overwrite"], "im0.png was made by no run here"),
        (["--out", RUNS, "--init", f"{RUNS}/train_cam/generator.pt"], "generator.pt lies there"),
        (["--out", "new", "--init", "absent.pt"], "absent.pt: no such"),
        (["--out", "new", "--init", f"{RUNS}/train_seg/segmenter.pt"], "segmenter.pt: "),
        (["--out", "new", "--init", "notes.txt"], "notes.txt: not a readable"),
        (["--out", "new", "--init", "bare.pt"], "bare.pt: "), (["--out", "new", "--init", "data"], "data: "),
        (["--overwrite", "--weights", "imagnet"], "imagnet: no such weights file"),
        (["--overwrite", "--weights", "notes.txt"], "notes.txt: not a readable"),
        (["--overwrite", "--weights", "bare.pt"], "bare.pt: not a"),
        (["--overwrite", "--backbone", "resnet99"], "resnet99"), (["--overwrite", "--output-stride", "3"], "stride 3"),
        (["--overwrite", "--generator", "weaktr", "--backbone", "deit_toy", "--crop-size", "100"],
         "--crop-size 100: this generator takes multiples of 8"),
        (["--overwrite", "--split", "nowhere"], "--split nowhere"),
        (["--overwrite", "--val-split", "nowhere"], "--split nowhere"),
        (["--overwrite", "--score-split", "nowhere"], "--split nowhere"),
        (["--data-root", "absent"], "absent: no such folder"), (["--data-root", "notes.txt"], "no such folder"),
        (["--dataset", "voc12"], "no VOC2012 data"), (["--dataset", "coco14"], "data"),
        (["--dataset", "imagenet"], "'imagenet' is none of"),
        (["--dataset", "toy"], "data: already exists; draw into a new folder"),
        (["--crowds", "ignore"], "folder has no crowds"), (["--max-pixels", "100"], "more than --max-pixels 100"),
        (["--resize-long", "640", "320"], "640 320 is no range"), (["--resize-long", "0", "320"], "0 320 is no range"),
        (["--resize-long", "320"], "expected 2 arguments"), (["--epochz", "3"], "--epochz: no such flag"),
        (["--lr"], "expected one argument"), (["--optimizer", "sdg"], "did you mean sgd?"),
        (["--cam-format", "tif"], "'tif' is none of")],
    "train_prompt": [
        ([], "already holds a run"), (["--resume", "--w-bg", "3"], "--w-bg was"),
        (["--out", f"{RUNS}/train_cam", "--overwrite"], "lies there"),
        (["--out", f"{RUNS}/make_pseudo", "--overwrite"], "holds a run of make_pseudo"),
        (["--overwrite", "--template", "a photo"], "write {} for the class"),
        (["--overwrite", "--template", ""], "write {} for the class"),
        (["--overwrite", "--template", "unheard of {}."], "template 'unheard of {}.'"),
        (["--overwrite", "--class-prompt", "learned", "--template", "[S*x] {}."], "vectors are written [S*n]"),
        (["--overwrite", "--class-prompt", "learned", "--template", "a photo of {}."], "nothing to learn"),
        (["--overwrite", "--class-prompt", "learned", "--template", "[C*0]"], "nothing to learn"),
        (["--overwrite", "--class-prompt", "learned", "--template", "[S*4]."], "all classes read alike"),
        (["--overwrite", "--class-prompt", "learned", "--template", "[S*99] {}."], "but this CLIP reads"),
        (["--overwrite", "--background-prompt", "learned", "--background-template", "[C*x]"], "vectors are written"),
        (["--overwrite", "--background-prompt", "list"], "template 'a photo of {}.'"),
        (["--overwrite", "--class-prompt", "word", "--cams", "absent"], "absent: no such folder of CAM files"),
        (["--overwrite", "--class-prompt", "word", "--cams", "data/images"], "no CAM files"),
        (["--overwrite", "--class-prompt", "word", "--prompts", "absent.json"], "absent.json: not the prompts.json"),
        (["--overwrite", "--class-prompt", "word", "--prompts", "data/labels.csv"], "labels.csv: not the prompts.json"),
        (["--overwrite", "--class-prompt", "word", "--prompts", "list.json"], "list.json: not the prompts.json"),
        (["--overwrite", "--class-prompt", "learned", "--prompts", f"{RUNS}/train_cam/generator.pt"],
         "holds: generator; wanted here: learned prompt"),
        (["--overwrite", "--background-prompt", "learned", "--background-prompts", "bare.pt"], "holds: generator"),
        (["--overwrite", "--synonyms", "absent.json"], "no such file, nor a built-in list"),
        (["--overwrite", "--synonyms", "notes.txt"], "notes.txt: not a readable JSON"),
        (["--overwrite", "--synonyms", "list.json"], "expected an object of lists of words"),
        (["--overwrite", "--synonyms", "dogs.json"], "unknown class 'dog'"),
        (["--overwrite", "--init", "absent.pt"], "absent.pt: no such checkpoint"),
        (["--overwrite", "--init", f"{RUNS}/train_seg/segmenter.pt"], "segmenter.pt: "),
        (["--overwrite", "--clip", "absent.pt"], "absent.pt is neither a file nor a published CLIP"),
        (["--overwrite", "--clip", "notes.txt"], "notes.txt: no CLIP checkpoint"),
        (["--overwrite", "--clip", "bare.pt"], "bare.pt"), (["--overwrite", "--keep-best", "nowhere"], "--split nowhere"),
        (["--overwrite", "--score-split", "nowhere"], "--split nowhere"), (["--method", "popel"], "did you mean pole?")],
    "make_pseudo": [
        (["--out", "data", "--overwrite"], "holds the data"),
        (["--out", "data/masks", "--overwrite"], "lies in the data's own folder"),
        (["--out", f"{RUNS}/train_prompt", "--overwrite"], "cams lies there"),
        (["--out", f"{RUNS}/train_prompt/cams"], "cams lies there"),
        (["--out", f"{RUNS}/train_seg", "--overwrite"], "holds a run of train_seg"),
        (["--out", "hand"], "im0.png was made by no run here"),
        (["--threshold", "0.5"], "--threshold was 0.25 and is 0.5 now"),
        (["--cams", f"{RUNS}/train_cam/cams"], "is no longer what this run was made from"),
        (["--overwrite", "--cams", "absent"], "absent: no such folder of CAM files"),
        (["--overwrite", "--cams", "nothing"], "nothing: no CAM files"),
        (["--overwrite", "--cams", "data/images"], "no CAM files"),
        (["--refine", "crf", "color"], "one walk at most"), (["--refine", "none", "crf"], "none stands alone"),
        (["--refine", "color", "irn"], "one walk at most"), (["--refine", "crg"], "did you mean crf?"),
        (["--overwrite", "--refine", "irn", "--train-radius", "10", "--crop-size", "64"], "takes 76 at least"),
        (["--overwrite", "--refine", "psa", "--train-radius", "10"], "takes 76 at least"),
        (["--overwrite", "--refine", "irn", "--affinity-checkpoint", "absent.pt"], "absent.pt: no such checkpoint"),
        (["--overwrite", "--refine", "irn", "--affinity-checkpoint", f"{RUNS}/train_cam/generator.pt"],
         "wanted here: irn network"),
        (["--overwrite", "--refine", "irn", "--weights", "imagnet"], "imagnet: no such"),
        (["--threshold", "2"], "'2' is not a number from 0 to 0.999"), (["--threshold", "best"], "'best' is not"),
        (["--scales", "2", "1"], "2 1 is no range"), (["--overwrite", "--segments", "absent"], "absent: no such folder"),
        (["--overwrite", "--segments", "nothing"], "no segments of this image"),
        (["--overwrite", "--score-split", "nowhere"], "--split nowhere"),
        (["--refine", "crf", "--segments", "data/masks", "--segment-rule", "fma"], "fma paints by maps")],
    "train_seg": [
        ([], "already holds a run"), (["--resume", "--lr", "0.5"], "--lr was"),
        (["--out", f"{RUNS}/make_pseudo", "--overwrite"], "masks lies there"),
        (["--out", "data", "--masks", "truth"], "holds the data"),
        (["--overwrite", "--masks", "absent"], "absent: no such folder"),
        (["--overwrite", "--masks", "nothing"], "im0.png: no such mask"),
        (["--overwrite", "--masks", "data/images"], "a mask is a palette or 8-bit grey PNG"),
        (["--overwrite", "--predict-split", "nowhere"], "--split nowhere"),
        (["--checkpoint", "absent.pt"], "absent.pt: no such checkpoint"),
        (["--checkpoint", f"{RUNS}/train_cam/generator.pt"], "holds: generator; wanted here: segmenter"),
        (["--checkpoint", "notes.txt"], "notes.txt: not a readable checkpoint"),
        (["--checkpoint", "odd.pt"], "odd.pt: damaged"), (["--checkpoint", f"{RUNS}/train_seg/segmenter.pt"], "lies there"),
        (["--overwrite", "--weights", "imagnet"], "imagnet: no such"), (["--network", "deeplabv9"], "'deeplabv9'"),
        (["--export", "model.bin"], "not the name of a file in .pt2 or .onnx"),
        (["--submit", "x.zip"], "not the name of a file in .tgz"), (["--submit", "data"], "not the name of a file"),
        (["--predict", "absent.jpg"], "no such file or folder"), (["--predict", "nothing"], "no image in this folder"),
        (["--predict", "notes.txt"], "notes.txt: not a readable image"),
        (["--predict", "deep.png"], "deep.png: not a readable image (I;16 pixels: save it with 8 bits"),
        (["--predict", "dot.png"], "dot.png: not a readable image (1 x 1 pixels"),
        (["--predict", "bomb.png"], "more than --max-pixels"), (["--predict", "bomb.png", "--skip-bad"], "bomb.png"),
        (["--predict", "twins"], "would be the result of several images"),
        (["--predict", "data/images/im0.png", "twins/im0.png"], "would be the result of several images"),
        (["--scales", "1.5", "0.5"], "1.5 0.5 is no range")],
    "eval": [
        (["--cams", "absent"], "absent: no such folder"), (["--masks", "absent"], "absent: no such folder"),
        (["--masks", "nothing"], "no label maps (.png)"), (["--masks", "data/images"], "a mask is a palette"),
        (["--cams", "data/masks"], "no CAM files"), (["--split", "nowhere"], "--split nowhere"),
        (["--json", "data"], "not the name of a file in .json"), (["--json", "notes.txt"], "not the name of a file"),
        (["--per-image", "data/labels.json"], "not the name of a file in .csv"), (["--runs", "nothing"], "give --cams"),
        (["--json", "data/images/a.json"], "--json data/images/a.json: lies in the data's own folder"),
        (["--per-image", "data/masks/a.csv"], "lies in the data's own folder"),
        (["--out", "data/images", "--confusion"], "lies in the data's own folder"), (["--json", "/proc/nowhere/a.json"], "/proc/nowhere"), (["--dataset", "flder"], "did you mean folder?")]}
COMMANDS = [(script, flags, told) for script, rows in WRONG.items() for flags, told in rows]


def test_the_table_is_long_enough():
    assert len(COMMANDS) >= 140 and len(DAMAGES) >= 35 and len(NUMBERS) >= 80


@pytest.mark.parametrize("script, flags, told", COMMANDS, ids=lambda part: " ".join(part) if isinstance(part, list) else part)
def test_a_wrong_command_is_one_line_and_changes_nothing(finished, monkeypatch, capsys, script, flags, told):
    monkeypatch.chdir(finished)
    refused(capsys, finished, script, flags, told)


def text(name, content):
    return lambda root: (root / name).write_text(content) if isinstance(content, str) else \
        (root / name).write_bytes(content)


def image(name, *size, kind=np.uint8):
    return lambda root: Image.fromarray(np.full(size, 77, kind)).save(root / name)


def cam(**arrays):
    return lambda root: np.savez(root / RUNS / "train_prompt/cams/im1.npz", **arrays)


LABELS = "image,labels\nim0,boat\n"
DAMAGES = [
    (cut("data/images/im1.png"), "train_cam", ["--overwrite"], "im1.png: not a readable image"),
    (text("data/images/im1.png", ""), "train_cam", ["--overwrite"], "im1.png: not a readable image"),
    (text("data/images/im1.png", png_head(60000, 60000)), "train_cam", ["--overwrite"], "more than --max-pixels"),
    (image("data/images/im1.png", 1, 1, 3), "train_cam", ["--overwrite"], "1 x 1 pixels (H x W); 4 a side"),
    (image("data/images/im1.png", 40, 48, kind=np.uint16), "train_cam", ["--overwrite"], "save it with 8 bits"),
    (lambda root: (root / "data/images/im1.png").unlink(), "train_cam", ["--overwrite"], "im1"),
    (image("data/masks/im1.png", 40, 47), "train_seg", ["--overwrite"], "mask is 40 x 47 (H x W), its image 40 x 48"),
    (image("data/masks/im1.png", 40, 48), "train_seg", ["--overwrite"], "value 77 in the mask"),
    (image("data/masks/im1.png", 40, 48, 3), "eval", [], "a mask is a palette or 8-bit grey PNG"),
    (cut("data/masks/im1.png", 60), "eval", [], "im1.png: not a readable mask"),
    (text("data/masks/im1.png", png_head(60000, 60000)), "eval", [], "more than --max-pixels"),
    (text("data/labels.csv", ""), "train_cam", [], "labels.csv"),
    (text("data/labels.csv", b"\xff\xfe\x00"), "train_cam", [], "not readable as UTF-8"),
    (text("data/labels.csv", LABELS + "im1,dog\n"), "train_cam", [], "dog"),
    (text("data/labels.csv", LABELS + "im0,boat\n"), "train_cam", [], "im0 is listed twice"),
    (text("data/labels.csv", LABELS + "im1,\n"), "train_cam", [], "im1"),
    (text("data/labels.csv", LABELS + "im9,boat\n"), "train_cam", [], "im9"),
    (text("data/classes.txt", ""), "train_cam", [], "classes.txt"),
    (text("data/classes.txt", "boat\nboat\n"), "train_cam", [], "boat is listed twice"),
    (text("data/labels.csv", LABELS + "im1,sheep\n"), "train_cam", ["--resume"], "no longer what this run was made from"),
    (text(f"{RUNS}/train_cam/args.json", "{"), "train_cam", ["--resume"], "args.json: damaged"),
    (text(f"{RUNS}/train_cam/args.json", "[]"), "train_cam", ["--resume"], "args.json: damaged"),
    (text(f"{RUNS}/train_cam/args.json", ""), "train_cam", [], "args.json: damaged"),
    (cut(f"{RUNS}/train_cam/generator.pt"), "train_prompt", ["--overwrite"], "generator.pt: not a readable checkpoint"),
    (cut(f"{RUNS}/train_cam/generator.pt", 2000), "train_prompt", ["--overwrite"], "generator.pt: not a readable"),
    (text(f"{RUNS}/train_cam/generator.pt", ""), "train_prompt", ["--overwrite"], "generator.pt: not a readable"),
    (cut(f"{RUNS}/train_seg/segmenter.pt"), "train_seg", ["--predict", "data/images"], "segmenter.pt: not a readable"),
    (lambda root: shutil.rmtree(root / RUNS / "train_prompt/cams"), "make_pseudo", ["--overwrite"], "no such folder"),
    (cut(f"{RUNS}/train_prompt/cams/im0.npz"), "make_pseudo", [], "is no longer what this run was made from"),
    (cut(f"{RUNS}/make_pseudo/masks/im1.png", 60), "train_seg", ["--overwrite"], "im1.png: not a readable mask"),
    (lambda root: (root / RUNS / "make_pseudo/masks/im1.png").unlink(), "train_seg", ["--overwrite"], "no such mask"),
    (cut(f"{RUNS}/train_prompt/cams/im1.npz"), "eval", ["--cams", f"{RUNS}/train_prompt/cams"], "not a readable CAM file"),
    (cam(keys=[1], cam=np.full((1, 10, 12), np.nan)), "eval", ["--cams", f"{RUNS}/train_prompt/cams"], "NaN"),
    (cam(keys=[9], cam=np.ones((1, 10, 12))), "eval", ["--cams", f"{RUNS}/train_prompt/cams"], "im1"),
    (cam(keys=[[1]], cam=np.ones((1, 10, 12))), "eval", ["--cams", f"{RUNS}/train_prompt/cams"], "are not [k]"),
    (cam(keys=[1]), "eval", ["--cams", f"{RUNS}/train_prompt/cams"], "no field 'cam'")]


@pytest.mark.parametrize("damage, script, flags, told", DAMAGES)
def test_a_damaged_file_is_named_and_nothing_changes(copied, capsys, damage, script, flags, told):
    damage(copied)
    refused(capsys, copied, script, flags, told)


BAD_CAMS = [(cam(keys=[0], cam=np.ones((1, 10, 12))), "class 0 in its keys, the image's tags are 1"),
            (cam(keys=[7], cam=np.ones((1, 10, 12))), "class 7 in its keys"),
            (cam(keys=[1], cam=np.ones((1, 12, 10))), "do not fit an image"),
            (cut(f"{RUNS}/train_prompt/cams/im1.npz"), "not a readable CAM file")]


@pytest.mark.parametrize("damage, told", BAD_CAMS)
def test_bad_cams_stop_masks_and_skip_bad_goes_on(copied, capsys, damage, told):
    damage(copied)
    import make_pseudo
    argv = [*BASE["make_pseudo"], "--out", "new"]
    assert run_script(lambda: make_pseudo.main(argv)) == 2
    error = capsys.readouterr().err
    assert "im1" in error and told in error and error.count("\n") == 1
    assert run_script(lambda: make_pseudo.main([*argv, "--skip-bad"])) == 0
    assert sorted(path.name for path in Path("new/masks").iterdir()) == [f"im{i}.png" for i in (0, 2, 3, 4, 5)]


def test_skip_bad_ends_alike_in_all_scripts(copied, capsys):
    cut("data/images/im1.png")(copied)
    for script, flags in BASE.items():
        argv = [*flags, "--skip-bad", *(["--overwrite"] if script != "eval" else [])]
        assert run_script(lambda: importlib.import_module(script).main(argv)) == 0
        assert "skipped: data/images/im1.png: not a readable image" in capsys.readouterr().err
