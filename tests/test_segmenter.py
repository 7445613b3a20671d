"""The segmenter's file, its starts, multi-scale probabilities, CRF decision, export, submission archive."""
import tarfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_deeplab import published_state

from clipwsss.pictures import voc_palette
from clipwsss.files import save_atomic
from clipwsss.errors import InputError
from clipwsss.segment.export import export_network
from clipwsss.pictures import write_mask
from clipwsss.segment.predict import decide, probabilities
from clipwsss.segment.segmenter import build_segmenter, load_segmenter, save_segmenter
from clipwsss.segment.submission import FOLDER, pack

CONFIG = dict(network="deeplabv2", backbone="resnet_tiny", output_stride=4, rates=[1, 2],
              classes=["cat", "dog"])


def test_file_round_trip_keeps_network_classes_and_palette(tmp_path):
    for name in ("deeplabv2", "deeplabv3plus"):
        network, config = build_segmenter({**CONFIG, "network": name})
        save_segmenter(network, config, voc_palette(), tmp_path / "segmenter.pt")
        loaded, found, palette = load_segmenter(tmp_path / "segmenter.pt")
        images = torch.rand(1, 3, 24, 40)
        assert found["classes"] == ["cat", "dog"] and np.array_equal(palette, voc_palette())
        assert not loaded.training and torch.equal(loaded(images), network.eval()(images))
    save_atomic({"epoch": 1}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="other.pt: is no checkpoint of these scripts; wanted here: segmenter"):
        load_segmenter(tmp_path / "other.pt")


def test_starts_from_a_generator_and_from_deeplab_pytorch(tmp_path, capsys):
    source, _ = build_segmenter(CONFIG)
    state = {f"backbone.{name}": value for name, value in source.backbone.state_dict().items()}
    state["classifier.weight"] = torch.zeros(2, 64, 1, 1)
    save_atomic({"backbone": "resnet_tiny", "state_dict": state}, tmp_path / "generator.pt")
    network, _ = build_segmenter(CONFIG, tmp_path / "generator.pt")
    assert torch.equal(network.backbone.conv1.weight, source.backbone.conv1.weight)
    del state["backbone.conv1.weight"]
    save_atomic({"backbone": "resnet_tiny", "state_dict": state}, tmp_path / "generator.pt")
    with pytest.raises(InputError, match="generator.pt: not a state dict of this ResNet"):
        build_segmenter(CONFIG, tmp_path / "generator.pt")

    torch.save(published_state(3, "fc"), tmp_path / "deeplabv1.pth")
    deep = {**CONFIG, "backbone": "resnet50", "output_stride": 8, "rates": None}
    network, config = build_segmenter(deep, tmp_path / "deeplabv1.pth")
    assert config["caffe"] and "ASPP starts anew" in capsys.readouterr().out
    first = published_state(3, "fc")["layer1.conv1.conv.weight"].flip(1)
    assert torch.equal(network.backbone.conv1.weight, first)
    torch.save(published_state(4, "aspp"), tmp_path / "deeplabv2.pth")
    with pytest.raises(InputError, match="deeplabv2.pth: not a state dict of this DeepLabV2 .*aspp.0"):
        build_segmenter(deep, tmp_path / "deeplabv2.pth")


def test_probabilities_are_the_mean_over_scales_and_mirrors():
    network = build_segmenter(CONFIG)[0].eval()
    images = torch.rand(2, 3, 25, 38)
    plain = []
    for height, width in ((12, 19), (25, 38), (38, 57)):
        scaled = F.interpolate(images, (height, width), mode="bilinear")
        for mirrored in (False, True):
            logits = network(scaled.flip(-1) if mirrored else scaled)
            found = F.interpolate(logits, (25, 38), mode="bilinear").softmax(1)
            plain.append(found.flip(-1) if mirrored else found)
    result = probabilities(network, images, (0.5, 1.0, 1.5), flip=True)
    assert result.shape == (2, 3, 25, 38)
    assert torch.allclose(result, torch.stack(plain).mean(0), atol=1e-5)
    assert torch.allclose(result.sum(1), torch.ones(2, 25, 38), atol=1e-5)
    assert torch.allclose(probabilities(network, images[:1]), probabilities(network, images)[:1], atol=1e-5)


def test_crf_removes_specks_and_keeps_edges_of_the_image():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 200
    truth = np.zeros((40, 60), int)
    truth[:, 30:] = 2
    noisy = truth.copy()
    noisy[10, 10], noisy[20, 45] = 2, 0
    found = np.full((4, 40, 60), 1e-4, np.float32)
    np.put_along_axis(found, noisy[None], 0.8, 0)
    found[[0, 2]] += 0.1
    assert np.array_equal(decide(image, found / found.sum(0)), noisy)
    assert np.array_equal(decide(image, found / found.sum(0), crf=True), truth)
    alone = np.zeros((3, 4, 5), np.float32)
    alone[1] = 1
    assert (decide(image[:4, :5], alone, crf=True) == 1).all()


def test_exported_program_gives_the_same_logits_at_other_sizes(tmp_path):
    network = build_segmenter({**CONFIG, "network": "deeplabv3plus"})[0].eval()
    export_network(network, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        for size in ((2, 3, 96, 128), (1, 3, 75, 60)):
            images = torch.rand(size)
            expected = F.interpolate(network(images), size[2:], mode="bilinear")
            assert torch.allclose(program(images), expected, atol=1e-5)
    with pytest.raises(InputError, match="valid are .pt2 and .onnx"):
        export_network(network, tmp_path / "model.bin")


class Split:
    """The part of a data set that a submission uses."""
    names, classes = ["a", "b"], ["cat", "dog"]

    def __len__(self) -> int:
        return 2

    def image_size(self, index: int) -> tuple[int, int]:
        return (4, 6) if index else (5, 3)


def test_submission_archive_holds_the_checked_files(tmp_path):
    folder, palette = tmp_path / "predictions", voc_palette()
    write_mask(folder / "a.png", np.full((5, 3), 2, np.uint8), palette)
    write_mask(folder / "b.png", np.ones((4, 6), np.uint8), palette)
    write_mask(folder / "elsewhere.png", np.ones((4, 6), np.uint8), palette)
    pack(Split(), folder, tmp_path / "submit" / "results.tgz")
    with tarfile.open(tmp_path / "submit" / "results.tgz") as packed:
        assert sorted(packed.getnames()) == [f"{FOLDER}/a.png", f"{FOLDER}/b.png"]
        with Image.open(packed.extractfile(f"{FOLDER}/a.png")) as file:
            assert file.mode == "P" and np.array_equal(np.array(file), np.full((5, 3), 2))
    assert (tmp_path / "submit" / FOLDER / "b.png").is_file()
    for spoil, message in ((np.zeros((6, 4), np.uint8), "6 x 4, its image is 4 x 6"),
                           (np.full((4, 6), 255, np.uint8), "value 255; valid are 0..2")):
        write_mask(folder / "b.png", spoil, palette)
        with pytest.raises(InputError, match=f"b.png: {message}"):
            pack(Split(), folder, tmp_path / "bad" / "results.tgz")
    (folder / "b.png").unlink()
    with pytest.raises(InputError, match="b.png: missing"):
        pack(Split(), folder, tmp_path / "bad" / "results.tgz")
    with pytest.raises(InputError, match="takes .tgz"):
        pack(Split(), folder, tmp_path / "bad" / "results.zip")
    assert not (tmp_path / "bad").exists()
