"""Generators as a user runs them: methods on WeakTr, prompts from given maps, resumption, clear refusals."""
import json

import pytest
import torch
from PIL import Image

import train_cam
import train_prompt
from clipwsss.cams.cam_files import list_cams, read_cam
from clipwsss.cams.generator import GENERATORS
from clipwsss.datasets.transforms import area_transform, square_transform
from clipwsss.errors import InputError
from clipwsss.files import load_weights
from clipwsss.generator_options import crop_loader
from clipwsss.options import parse
from clipwsss.refine.affinity import build_affinity
from clipwsss.segment.segmenter import build_segmenter
from clipwsss.toy.world import draw_world

FAST = ["--dataset", "toy", "--workers", "0", "--device", "cpu", "--precision", "fp32", "--batch-size", "6"]
METHODS = {"pole": [], "semples": ["--match-epochs", "1"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A runs folder of 6 + 2 images with a generator of each kind and its CAMs."""
    root = tmp_path_factory.mktemp("runs")
    draw_world(root / "toy" / "data", 0, 6, 2)
    for kind in GENERATORS:
        argv = [*FAST, "--runs", str(root), "--epochs", "1", "--generator", kind, "--out", str(root / kind)]
        assert train_cam.main(argv) == 0
    return root


def guide(world, kind, out, *flags):
    argv = [*FAST, "--runs", str(world), "--generator", kind, "--init", str(world / kind / "generator.pt"),
            "--cams", str(world / kind / "cams"), "--epochs", "1", "--prompt-epochs", "1", "--prompt-batch-size", "6",
            "--out", str(out), *flags]
    assert train_prompt.main(argv) == 0
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_every_head_of_the_transformer_is_trained(world):
    log = json.loads((world / "weaktr" / "log.jsonl").read_text().splitlines()[0])
    assert log["loss"] == pytest.approx(log["token"] + log["coarse"] + log["fine"], rel=1e-5)
    assert len(list_cams(world / "weaktr" / "cams")) == 6
    cam = read_cam(world / "weaktr" / "cams", "train_00000").cam
    assert cam.shape[1:] == (24, 24) and cam.min((1, 2)) == pytest.approx(0, abs=1e-3)
    assert (cam.max((1, 2)) > 0.9).all()


def changed_parts(world, out):
    """The parts of the WeakTr generator that guidance has changed."""
    before = load_weights(world / "weaktr" / "generator.pt")["state_dict"]
    after = load_weights(out / "generator.pt")["state_dict"]
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("method", METHODS)
def test_methods_tune_a_transformer(world, tmp_path, method):
    log = guide(world, "weaktr", tmp_path, "--method", method, *METHODS[method])
    rows = {row["label"]: row for row in log}
    assert {"loss", "fg", "bg", "suppress", "area"} <= set(rows["guide"]) and "miou" in rows["result"]
    if method == "semples":  # its release tunes the head alone
        assert changed_parts(world, tmp_path) == {"head", "adaptive_attention_fusion"}
    else:
        assert changed_parts(world, tmp_path) > {"head", "adaptive_attention_fusion"}


def test_parts_that_learn(world, tmp_path):
    flags = ["--method", "semples", "--background-prompt", "none"]
    guide(world, "weaktr", tmp_path / "fusion", *flags, "--tune", "fusion")
    assert changed_parts(world, tmp_path / "fusion") == {"adaptive_attention_fusion"}
    guide(world, "weaktr", tmp_path / "all", *flags, "--tune", "all")
    assert changed_parts(world, tmp_path / "all") > {"blocks", "cls_token", "pos_embed"}


def test_interrupted_tuning_resumes_exactly(world, tmp_path, monkeypatch):
    flags = ["--method", "semples", "--match-epochs", "1", "--drop-path", "0.2", "--tune", "all"]
    whole = guide(world, "weaktr", tmp_path / "whole", *flags)
    monkeypatch.setattr(train_prompt, "save_network", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        guide(world, "weaktr", tmp_path / "cut", *flags)
    monkeypatch.undo()
    (tmp_path / "cut" / "last_guide.pt").unlink()  # as if it had ended while guiding
    resumed = guide(world, "weaktr", tmp_path / "cut", *flags, "--resume")
    assert resumed[-1] == whole[-1]
    one, other = (load_weights(tmp_path / name / "generator.pt")["state_dict"] for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_prompts_are_learned_from_given_maps_without_a_generator(world, tmp_path):
    argv = [*FAST, "--runs", str(tmp_path), "--data-root", str(world / "toy" / "data"), "--method", "semples",
            "--maps", "clip", "--cams", str(world / "resnet" / "cams"), "--prompt-epochs", "2",
            "--prompt-batch-size", "6", "--out", str(tmp_path / "prompts")]
    assert train_prompt.main(argv) == 0
    rows = [json.loads(line) for line in (tmp_path / "prompts" / "log.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == ["background_prompts", "background_prompts", "result"]
    assert rows[1]["image"] < rows[0]["image"] and "miou" in rows[-1]
    assert not (tmp_path / "prompts" / "generator.pt").exists()
    stored = str(tmp_path / "prompts" / "background_prompts.pt")
    log = guide(world, "weaktr", tmp_path / "guided", "--method", "semples", "--match-epochs", "0",
                "--background-prompts", stored)
    assert log[0]["label"] == "guide" and log[0]["suppress"] > 0
    with pytest.raises(InputError, match="nowhere: no such folder of CAM files"):
        train_prompt.main([*argv, "--cams", "nowhere", "--overwrite"])


def test_a_transformer_is_refused_where_a_resnet_is_wanted(world, tmp_path):
    path = world / "weaktr" / "generator.pt"
    for kind in ("irn", "psa"):
        with pytest.raises(InputError, match="generator.pt: the backbone is deit_toy, but an affinity network"):
            build_affinity(kind, "resnet_tiny", path)
    design = {"network": "deeplabv3plus", "backbone": "resnet_tiny", "output_stride": 4, "rates": [1, 2, 4]}
    with pytest.raises(InputError, match="generator.pt: its network has no ResNet as backbone; use imagenet"):
        build_segmenter(design, 7, path)
    for kind, other in (("resnet", "weaktr"), ("weaktr", "resnet")):
        with pytest.raises(InputError, match=f"generator.pt: a {kind} generator; use --generator {kind} with it"):
            guide(world, other, tmp_path, "--init", str(world / kind / "generator.pt"))
    flags = [*FAST, "--runs", str(world), "--out", str(tmp_path), "--generator", "weaktr"]
    with pytest.raises(InputError, match="--backbone resnet18: --generator weaktr has deit_small, deit_toy"):
        train_cam.main([*flags, "--backbone", "resnet18"])
    args = parse(train_cam.get_parser(), [*flags, "--crop-size", "100"], "train_cam")
    with pytest.raises(InputError, match="--crop-size 100: this generator takes multiples of 8"):
        crop_loader(args, None, 4, 8)


def test_strong_and_square_images():
    image = Image.effect_noise((70, 50), 80).convert("RGB")
    for transform, side in ((area_transform(32), 32), (square_transform(24), 24)):
        torch.manual_seed(0)
        first, mask = transform(image, None)
        assert mask is None and first.shape == (3, side, side) and first.dtype == torch.float32
        assert 0 <= first.min() and first.max() <= 1 and type(first) is torch.Tensor
    torch.manual_seed(1)
    one, other = (area_transform(32)(image, None)[0] for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(area_transform(32)(image, None)[0], one) and not torch.equal(one, other)


def test_plain_parts_of_an_image_keep_its_colours():
    """What SemPLeS' prompts learn from: no change of colour, nothing erased."""
    image, gray = Image.new("RGB", (70, 50), (90, 90, 90)), torch.full((3, 32, 32), 90 / 255)
    torch.manual_seed(0)
    plain, strong = ([torch.allclose(area_transform(32, kind)(image, None)[0], gray, atol=0.01)
                      for _ in range(20)] for kind in (False, True))
    assert all(plain) and not all(strong)
