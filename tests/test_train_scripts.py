"""train_cam and train_prompt as a user runs them, on a small toy world: outputs, chaining, every method, resumption."""
import json
import shutil

import pytest
import torch

import train_cam
import train_prompt
from clipwsss import presets
from clipwsss.cams.cam_files import list_cams, read_cam
from clipwsss.errors import InputError
from clipwsss.files import load_weights
from clipwsss.toy.world import CLASSES, draw_world

FAST = ["--dataset", "toy", "--workers", "0", "--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A runs folder with a drawn world of 12 + 4 images and a finished train_cam."""
    root = tmp_path_factory.mktemp("runs")
    draw_world(root / "toy" / "data", 0, 12, 4)
    assert train_cam.main([*FAST, "--runs", str(root), "--epochs", "14", "--batch-size", "6"]) == 0
    return root


def guide(runs, out, *flags):
    argv = [*FAST, "--runs", str(runs), "--out", str(out), "--epochs", "1", "--batch-size", "6", *flags]
    assert train_prompt.main(argv) == 0
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_train_cam_writes_what_the_next_stage_reads(runs):
    out = runs / "toy" / "train_cam"
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["label"] for row in log] == 14 * ["train_cam"] + ["result"]
    assert log[13]["loss"] < log[0]["loss"] and 0 < log[14]["mAP"] <= 100 and 0 < log[14]["miou"] < 100
    assert json.loads((out / "result.json").read_text()) == {k: v for k, v in log[14].items() if k != "label"}
    assert len(list_cams(out / "cams")) == 12 and json.loads((out / "args.json").read_text())["epochs"] == 14
    cam = read_cam(out / "cams", "train_00000")
    assert cam.cam.shape[1:] == (24, 24)


def test_random_weights_freeze_only_what_the_command_line_freezes(runs, tmp_path, capsys, monkeypatch):
    block = presets.TRAIN_CAM["toy", "resnet"]
    monkeypatch.setitem(presets.TRAIN_CAM, ("toy", "resnet"), {**block, "freeze_stages": 3, "frozen_bn": True})
    flags = [*FAST, "--runs", str(runs), "--out", str(tmp_path / "out"), "--epochs", "0", "--overwrite"]
    init = str(runs / "toy" / "train_cam" / "generator.pt")
    for case, extra, expected in (("preset", [], (0, False)), ("init", ["--init", init], (3, True)),
                                  ("command line", ["--freeze-stages", "3", "--frozen-bn"], (3, True))):
        assert train_cam.main([*flags, *extra]) == 0
        output = capsys.readouterr().out
        for message in ("--weights none: the batch norm trains too", "--weights none: all stages train"):
            assert (message in output) == (case == "preset"), (case, message)
        args = json.loads((tmp_path / "out" / "args.json").read_text())
        assert (args["freeze_stages"], args["frozen_bn"]) == expected, case


def test_weights_auto_falls_back_to_none_with_a_message(monkeypatch, capsys):
    settings = {"backbone": "resnet18", "output_stride": 16}
    monkeypatch.setattr(train_cam, "build_generator", lambda classes, weights, **settings: None)
    assert train_cam.imagenet_or_none(["a"], settings) == "imagenet" and capsys.readouterr().out == ""

    def absent(classes, weights, backbone, output_stride):
        raise FileNotFoundError(f"{backbone}_{weights}.pth: not downloaded")
    monkeypatch.setattr(train_cam, "build_generator", absent)
    assert train_cam.imagenet_or_none(["a"], settings) == "none"
    assert capsys.readouterr().out == ("--weights auto: starting from random weights, so that the CAMs will be rough; "
                                       "resnet18_imagenet.pth: not downloaded\n")


def test_irn_format_and_epochs_zero_from_a_file(runs, tmp_path):
    init = str(runs / "toy" / "train_cam" / "generator.pt")
    argv = [*FAST, "--runs", str(runs), "--out", str(tmp_path), "--init", init, "--epochs", "0", "--cam-format", "irn"]
    assert train_cam.main(argv) == 0
    old, new = read_cam(runs / "toy/train_cam/cams", "train_00003"), read_cam(tmp_path / "cams", "train_00003")
    assert abs(old.cam - new.cam).max() < 1e-3 and new.high_res.shape[1:] == (96, 96)


def test_no_run_is_overwritten_unasked(runs):
    with pytest.raises(InputError, match="already holds a run"):
        train_cam.main([*FAST, "--runs", str(runs)])


METHODS = {
    "clims": [], "pole": [], "manual": ["--template", "an image of {}."], "coop": ["--prompt-epochs", "1"],
    "target": ["--prompt-epochs", "1", "--joint"], "defo": ["--prompt-epochs", "1", "--template", "[C*2] [C*1]."],
    "semples": ["--match-epochs", "1", "--prompt-epochs", "1"], "both": ["--prompt-epochs", "1"],
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_logs_every_term(runs, tmp_path, method):
    log = guide(runs, tmp_path / method, "--method", method, *METHODS[method])
    rows = {row["label"]: row for row in log}
    assert {"loss", "fg", "bg", "suppress", "area"} <= set(rows["guide"]) and "miou" in rows["result"]
    assert len(list_cams(tmp_path / method / "cams")) == 12
    if method in ("coop", "target", "defo"):  # learned before the generator, or jointly
        assert load_weights(tmp_path / method / "class_prompts.pt")["config"]["names"] == CLASSES
    before = load_weights(runs / "toy/train_cam/generator.pt")["state_dict"]
    after = load_weights(tmp_path / method / "generator.pt")["state_dict"]
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_prompts_run_in_pairs_that_no_method_has(runs, tmp_path):
    for class_prompt, background in (("name", "none"), ("word", "learned"), ("learned", "learned")):
        flags = ["--class-prompt", class_prompt, "--background-prompt", background, "--prompt-epochs", "1"]
        if background == "learned":  # POLE has settings for a list alone
            flags += ["--background-template", "a photo of [C*6].", "--w-suppress", "1",
                      "--suppress-threshold", "0.26", "--suppress-reduction", "sum"]
        if class_prompt == "learned":
            flags += ["--template", "[S*4] {}."]
        log = guide(runs, tmp_path / class_prompt, *flags)
        assert (log[-2]["suppress"] > 0) == (background != "none"), class_prompt
        assert log[-1]["label"] == "result", class_prompt


def test_selected_words_are_written_and_read_back(runs, tmp_path):
    flags = ["--method", "pole", "--reselect-every", "0"]
    guide(runs, tmp_path / "first", *flags)
    table = json.loads((tmp_path / "first" / "prompts.json").read_text())
    entry = next(iter(table["train_00000"].values()))
    assert entry["word"] == max(entry["similarity"], key=entry["similarity"].get) and len(entry["similarity"]) == 4
    again = guide(runs, tmp_path / "second", *flags, "--prompts", str(tmp_path / "first" / "prompts.json"))
    first = [json.loads(line) for line in (tmp_path / "first" / "log.jsonl").read_text().splitlines()]
    assert again[-2]["loss"] == pytest.approx(first[-2]["loss"], rel=1e-3)


def test_candidates_of_a_file_reach_the_loss(runs, tmp_path, capsys):
    flags = ["--method", "pole", "--reselect-every", "0", "--adapter", "none"]
    name = guide(runs, tmp_path / "name", *flags, "--class-prompt", "name")[-2]
    path, losses = tmp_path / "words.json", {}
    for case, row in (("none", []), ("wrong", ["brick", "road"]), ("right", ["ship", "jet", "ewe", "van"])):
        path.write_text(json.dumps({label: row for label in ("boat", "train", "sheep", "plane", "car", "bottle")}))
        losses[case] = guide(runs, tmp_path / case, *flags, "--synonyms", str(path))[-2]
        told = "--class-prompt word: no class has synonyms, so that its own name is the only candidate" in capsys.readouterr().out
        assert told == (case == "none")
        table = json.loads((tmp_path / case / "prompts.json").read_text())
        assert all(list(entry["similarity"])[1:] == row for rows in table.values() for entry in rows.values())
    # Classes without candidates go by their names.
    assert all(losses["none"][term] == pytest.approx(name[term], rel=1e-4) for term in ("loss", "fg", "bg", "area"))
    assert abs(losses["right"]["fg"] - name["fg"]) > 0.01 < abs(losses["right"]["fg"] - losses["wrong"]["fg"])
    path.write_text('{"boot": ["ship"]}')
    with pytest.raises(InputError, match="unknown class 'boot'; the classes are boat, train"):
        guide(runs, tmp_path / "unknown", *flags, "--synonyms", str(path))


def test_parts_of_semples_have_their_own_weights(runs, tmp_path):
    flags = ["--method", "semples", "--match-epochs", "0", "--prompt-epochs", "1"]
    vectors = {}
    for case, weights in (("image", ("1", "0")), ("class", ("0", "1")), ("neither", ("0", "0"))):
        guide(runs, tmp_path / case, *flags, "--w-prompt-image", weights[0], "--w-prompt-class", weights[1])
        vectors[case] = load_weights(tmp_path / case / "background_prompts.pt")["state_dict"]["vectors"]
    assert vectors["neither"].std() == pytest.approx(12 ** -0.5, rel=0.05)  # as they were drawn, from U(0, 1)
    assert all((vectors[case] - vectors["neither"]).abs().max() > 0.01 for case in ("image", "class"))
    assert (vectors["image"] - vectors["class"]).abs().max() > 0.01


def test_background_prompts_of_a_run_serve_clims(runs, tmp_path):
    guide(runs, tmp_path / "semples", "--method", "semples", "--match-epochs", "1", "--prompt-epochs", "1")
    stored = tmp_path / "semples" / "background_prompts.pt"
    assert load_weights(stored)["config"]["text"].shape[0] == 6
    log = guide(runs, tmp_path / "clims", "--method", "clims", "--background-prompts", str(stored))
    alone = guide(runs, tmp_path / "alone", "--method", "clims")
    assert log[-2]["suppress"] > alone[-2]["suppress"] > 0  # they come beside the list
    torch.save({"text": torch.zeros(3, 4)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="other.pt: not a checkpoint of this package; expected: learned prompt"):
        guide(runs, tmp_path / "bad", "--method", "clims", "--background-prompts", str(tmp_path / "other.pt"))


def test_manual_with_the_class_template_equals_clims(runs, tmp_path):
    same = ["--w-bg", "1", "--schedule", "cosine", "--background-prompt", "list"]
    one = guide(runs, tmp_path / "clims", "--method", "clims", *same)
    two = guide(runs, tmp_path / "manual", "--method", "manual", "--template", "a photo of {}.", *same)
    assert one[-1] == two[-1] and one[-2]["loss"] == two[-2]["loss"]


def test_interrupted_guidance_resumes_to_the_same_cams(runs, tmp_path, monkeypatch):
    flags = ["--method", "semples", "--match-epochs", "1", "--prompt-epochs", "1"]
    whole = guide(runs, tmp_path / "whole", *flags)
    monkeypatch.setattr(train_prompt, "save_network", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        guide(runs, tmp_path / "cut", *flags)
    monkeypatch.undo()
    resumed = guide(runs, tmp_path / "cut", *flags, "--resume")
    assert resumed == whole


def test_missing_inputs_are_named(runs, tmp_path):
    empty = tmp_path / "empty"
    with pytest.raises(InputError, match="generator.pt: no such checkpoint"):
        train_prompt.main([*FAST, "--runs", str(empty), "--data-root", str(runs / "toy" / "data")])
    cams = tmp_path / "cams"
    shutil.copytree(runs / "toy" / "train_cam" / "cams", cams)
    (cams / "train_00004.npz").unlink()
    with pytest.raises(InputError, match="train_00004"):
        guide(runs, tmp_path / "out", "--method", "pole", "--cams", str(cams))


def test_a_folder_of_clips_own_maps_is_no_start_of_a_generator(runs, tmp_path):
    baseline = tmp_path / "toy" / "train_cam"
    baseline.mkdir(parents=True)
    (baseline / "args.json").write_text('{"generator": "clip"}')
    with pytest.raises(InputError, match="holds CLIP's own maps") as caught:
        train_prompt.main([*FAST, "--runs", str(tmp_path), "--data-root", str(runs / "toy" / "data")])
    other = tmp_path / "toy" / "classifier"
    assert f"--out {other}" in str(caught.value)
    assert f"--init {other}/generator.pt --cams {other}/cams" in str(caught.value)
    (baseline / "args.json").write_text("[1]")
    with pytest.raises(InputError, match="args.json: damaged"):
        train_prompt.main([*FAST, "--runs", str(tmp_path), "--data-root", str(runs / "toy" / "data")])
