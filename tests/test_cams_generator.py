"""The generator: maps, frozen stages, parameter groups, our file and the reference's names."""
import pytest
import torch

from clipwsss.cams.generator import build_generator, load_generator
from clipwsss.errors import InputError
from clipwsss.files import save_network

CLASSES = ["a", "b", "c"]
TINY = {"backbone": "resnet_tiny", "weights": "none", "output_stride": 4, "freeze_stages": 0}


@pytest.mark.smoke
def test_mean_of_maps_is_the_pooled_classifier():
    generator = build_generator(CLASSES, **TINY).eval()
    images = torch.rand(2, 3, 32, 48)
    maps = generator(images)
    pooled = generator.backbone(images)[-1].mean((2, 3)) @ generator.classifier.weight[:, :, 0, 0].T
    assert maps.shape == (2, 3, 8, 12) and torch.allclose(maps.mean((2, 3)), pooled, atol=1e-5)
    assert torch.allclose(maps[:1], generator(images[:1]), atol=1e-5)


def test_frozen_stages_stay_and_groups_hold_the_rest():
    generator = build_generator(CLASSES, "resnet18", "none", freeze_stages=2).train()
    stem = generator.backbone.bn1  # CLIMS fixes its weights, and its statistics follow the batch
    before = stem.running_mean.clone()
    assert stem.training and generator.backbone.layer1[0].bn1.training
    generator(torch.rand(2, 3, 32, 32)).sum().backward()
    assert not stem.running_mean.equal(before) and stem.weight.grad is None
    fixed = build_generator(CLASSES, "resnet18", "none", freeze_stages=2, frozen_bn=True).train().backbone
    assert not fixed.bn1.training and not fixed.layer4[0].bn1.training
    body, head = generator.parameter_groups(0.1, 10)
    frozen = {p for m in (generator.backbone.conv1, generator.backbone.bn1, generator.backbone.layer1)
              for p in m.parameters()}
    assert head["lr"] == 1.0 and body["lr"] == 0.1 and not frozen & set(body["params"])
    assert len(frozen) + len(body["params"]) == len(list(generator.backbone.parameters()))


def test_file_round_trip_and_wrong_classes(tmp_path):
    generator = build_generator(CLASSES, **TINY).eval()
    save_network(generator, "generator", generator.config, tmp_path / "g.pt")
    loaded = load_generator(tmp_path / "g.pt", CLASSES)
    images = torch.rand(1, 3, 32, 32)
    assert loaded.config == {"backbone": "resnet_tiny", "output_stride": 4, "classes": CLASSES}
    assert torch.equal(loaded.eval()(images), generator(images))
    with pytest.raises(InputError, match="made for the classes a, b, c; this data has a, b"):
        load_generator(tmp_path / "g.pt", CLASSES[:2])


def test_reference_names_load(tmp_path):
    """IRN's and CLIMS' files name each layer `resnet50.*` and again under stage and group aliases."""
    generator = build_generator(CLASSES, "resnet18", "none", freeze_stages=0)
    state = {}
    for name, value in generator.state_dict().items():
        state[name.replace("backbone.", "resnet50.")] = value
        if name.startswith("backbone.layer2."):
            state[name.replace("backbone.layer2.", "stage2.0.")] = value
            state[name.replace("backbone.layer2.", "backbone.1.0.")] = value
    state["newly_added.0.weight"] = state["classifier.weight"]
    torch.save(state, tmp_path / "res50_cam.pth")
    loaded = load_generator(tmp_path / "res50_cam.pth", CLASSES, backbone="resnet18").state_dict()
    assert all(torch.equal(value, generator.state_dict()[name]) for name, value in loaded.items())
    with pytest.raises(InputError, match="not the weights of a resnet50 generator of 3 classes"):
        load_generator(tmp_path / "res50_cam.pth", CLASSES, backbone="resnet50")


def test_unfit_backbone_options_are_input_errors(tmp_path):
    (tmp_path / "torn.pth").write_bytes(b"torn")
    unfit = ((4, "imagenet", "resnet_tiny has no ImageNet weights"), (7, "none", "--output-stride 7: resnet_tiny has "),
             (4, str(tmp_path / "torn.pth"), "torn.pth: not a readable checkpoint"))
    for stride, weights, message in unfit:
        with pytest.raises(InputError, match=message):
            build_generator(CLASSES, "resnet_tiny", weights, output_stride=stride)
