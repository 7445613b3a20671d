"""IRN's and PSA's networks, labels and losses against plain restatements of the published ones."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.models import resnet18, resnet50

from clipwsss.errors import InputError
from clipwsss.networks import resnet
from clipwsss.refine import labels as labels_module
from clipwsss.refine.affinity import (AffinityNet, IRNet, build_affinity, load_affinity, path_affinity,
                                      save_affinity)
from clipwsss.refine.labels import confident_labels, pair_labels, pair_views, shrink_labels
from clipwsss.refine.random_walk import pair_offsets, straight_path
from clipwsss.training import joined_loss

MEAN = torch.tensor(resnet.IMAGENET_MEAN).view(1, 3, 1, 1)
STD = torch.tensor(resnet.IMAGENET_STD).view(1, 3, 1, 1)
EDGE = ((64, 32, 4), (256, 32, 4), (512, 32, 4), (1024, 32, 4), (2048, 32, 4))
# The displacement half, which is in the published file and not in ours.
FIELD = ((64, 64, 8), (256, 128, 16), (512, 256, 16), (1024, 256, 16), (2048, 256, 16), (768, 256, 16),
         (448, 256, 16))


def random_like(shape, generator, name):
    if name.endswith("running_var"):
        return torch.rand(shape, generator=generator) + 0.5
    scale = math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.3
    mean = 0.7 if name.endswith("weight") and len(shape) == 1 else 0.0
    return torch.randn(shape, generator=generator) * scale + mean


@pytest.fixture(scope="module")
def published():
    """A state dict with the names and shapes of IRN's res50_irn.pth (its stages stand there three times)."""
    generator = torch.Generator().manual_seed(0)
    body = {name: value for name, value in resnet50().state_dict().items() if not name.startswith("fc.")}
    state = {f"resnet50.{name}": value for name, value in body.items()}
    state |= {name: random_like(value.shape, generator, name) for name, value in state.items()
              if not name.endswith("tracked")}
    for index, parts in enumerate((("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))):
        for place, part in enumerate(parts):
            for name in [name for name in body if name.startswith(part + ".")]:
                rest = name.removeprefix(part + ".")
                state[f"stage{index + 1}.{place}.{rest}"] = state[f"resnet50.{name}"]
                state[f"backbone.{index}.{place}.{rest}"] = state[f"resnet50.{name}"]
    heads = {"mean_shift.running_mean": (2,), "fc_dp7.4.running_mean": (2,),
             "fc_dp7.3.weight": (2, 256, 1, 1), "fc_edge6.weight": (1, 160, 1, 1), "fc_edge6.bias": (1,)}
    for kind, shapes in (("edge", EDGE), ("dp", FIELD)):
        for level, (width, out, _) in enumerate(shapes, 1):
            heads |= {f"fc_{kind}{level}.0.weight": (out, width, 1, 1), f"fc_{kind}{level}.1.weight": (out,),
                      f"fc_{kind}{level}.1.bias": (out,)}
    state |= {name: random_like(shape, generator, name) for name, shape in heads.items()}
    state["fc_dp7.4.running_mean"] = state["mean_shift.running_mean"]
    for name in list(heads):
        for kind in ("edge", "dp"):
            if name.startswith(f"fc_{kind}"):
                level, rest = name.removeprefix(f"fc_{kind}").split(".", 1)
                state[f"{kind}_layers.{int(level) - 1}.{rest}"] = state[name]
    paths = {f"path_indices{number}": torch.zeros(2, 2, 9, dtype=torch.int64) for number in range(20)}
    return state | paths | {"disp_target": torch.zeros(1, 2, 152, 1)}


def plain_irn(state, images, network=resnet50):
    """The published network, written down once more: normalised images -> boundary logits."""
    body = network()
    body.load_state_dict({name.removeprefix("resnet50."): value for name, value in state.items()
                          if name.startswith("resnet50.")}, strict=False)
    body.eval()
    for module in (body.layer4[0].conv1, body.layer4[0].conv2, body.layer4[0].downsample[0]):
        module.stride = (1, 1)

    def head(name, features, groups, factor=1):
        features = F.conv2d(features, state[f"{name}.0.weight"])
        features = F.group_norm(features, groups, state[f"{name}.1.weight"], state[f"{name}.1.bias"])
        if factor > 1:
            features = F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)
        return F.relu(features)

    levels = [body.maxpool(F.relu(body.bn1(body.conv1(images))))]
    for layer in (body.layer1, body.layer2, body.layer3, body.layer4):
        levels.append(layer(levels[-1]))
    height, width = levels[1].shape[-2:]
    edges = [head(f"fc_edge{i + 1}", level, 4, factor)[..., :height, :width]
             for i, (level, factor) in enumerate(zip(levels, (1, 1, 2, 4, 4)))]
    logits = F.conv2d(torch.cat(edges, 1), state["fc_edge6.weight"], state["fc_edge6.bias"])
    return logits


def test_published_names_load_and_give_the_published_outputs(published, tmp_path):
    torch.save(published, tmp_path / "res50_irn.pth")
    network = load_affinity(tmp_path / "res50_irn.pth", "irn")
    images = torch.rand(1, 3, 70, 90, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = plain_irn(published, (images - MEAN) / STD), network(images)
    assert expected.std() > 0.01 and expected.shape == found.shape == (1, 1, 18, 23)
    assert (expected - found).abs().max() < 1e-4


def test_boundaries_are_those_of_irn_padded_and_of_clims_and_pole_unpadded(published):
    large = build_affinity("irn", "resnet50", "none")[0].eval()
    large.load_state_dict(IRNet.from_published(published), strict=False)
    torch.manual_seed(0)
    small = build_affinity("irn", "resnet18", "none")[0].eval()  # VOC's sizes by fewer layers, for speed
    its_state = {name.replace("backbone.", "resnet50."): value for name, value in small.state_dict().items()}
    for network, state, body, (height, width), pad_to in (
            (large, published, resnet50, (50, 75), 96), (large, published, resnet50, (17, 50), 0),
            (small, its_state, resnet18, (375, 500), 0), (small, its_state, resnet18, (333, 500), 0)):
        image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(2))
        normal = (image - MEAN[0]) / STD[0]
        both = torch.stack([normal, normal.flip(-1)])
        if pad_to:
            both = F.pad(both, (0, pad_to - width, 0, pad_to - height))
        with torch.no_grad():
            logits = plain_irn(state, both, body)[..., :(height - 1) // 4 + 1, :(width - 1) // 4 + 1]
        boundary = network.boundaries(image, pad_to)
        expected = torch.sigmoid(logits[0, 0] / 2 + logits[1, 0].flip(-1) / 2)
        assert boundary.shape == expected.shape and expected.std() > 0.001, (height, width)
        assert (boundary - expected).abs().max() < 1e-4, (height, width)


def test_other_backbones_and_images_larger_than_the_padding():
    for backbone in ("resnet18", "resnet_tiny"):
        torch.manual_seed(0)
        network = build_affinity("irn", backbone, "none")[0].eval()
        boundary = network.boundaries(torch.rand(3, 50, 131), pad_to=64)
        assert boundary.shape == (13, 33), backbone
        assert 0 <= boundary.min() and boundary.max() <= 1, backbone
        square = torch.rand(3, 64, 64)
        once, mirrored = network.boundaries(square, 64), network.boundaries(square.flip(-1), 64)
        assert torch.allclose(once, mirrored.flip(-1), atol=1e-5), backbone


@pytest.mark.smoke
def test_path_affinity_and_its_gradient_equal_a_plain_loop():
    radius, size = 4, (7, 10)
    torch.manual_seed(0)
    boundary = torch.rand(2, *size, requires_grad=True)
    plain, cells = [], [(y, x) for y in range(size[0] - 3) for x in range(3, size[1] - 3)]
    for dy, dx in pair_offsets(radius):
        for y, x in cells:
            path = [boundary[:, y + b, x + a] for b, a in straight_path(dy, dx)]
            plain.append(1 - torch.stack(path).amax(0))
    plain = torch.stack(plain, 1).view(2, len(pair_offsets(radius)), 4, 4)
    found = path_affinity(boundary, radius)
    assert torch.equal(found, plain)
    weights = torch.rand_like(found)
    one, other = (torch.autograd.grad((values * weights).sum(), boundary)[0] for values in (plain, found))
    assert torch.allclose(one, other, atol=1e-6)


def test_pair_labels_by_hand():
    labels = torch.tensor([[[0, 0, 1, 1], [255, 0, 1, 2]]])
    background, foreground, unlike = pair_labels(labels, 2)  # first pixels: row 0, columns 1 and 2
    assert pair_offsets(2) == ((0, 1), (1, -1), (1, 0), (1, 1))
    assert background[0, :, 0].tolist() == [[False, False], [False, False], [True, False], [False, False]]
    assert foreground[0, :, 0].tolist() == [[False, True], [False, False], [False, True], [False, False]]
    assert unlike[0, :, 0].tolist() == [[True, False], [False, True], [False, False], [True, True]]
    with pytest.raises(ValueError, match="3 x 20 hold no pairs of radius 5"):
        pair_views(torch.zeros(3, 20), 5)


def test_shrunk_labels_are_those_of_pillows_nearest_resizing():
    labels = np.random.default_rng(0).integers(0, 9, (64, 96), np.uint8)
    small = np.asarray(Image.fromarray(labels).resize((24, 16), Image.Resampling.NEAREST))
    assert np.array_equal(shrink_labels(torch.from_numpy(labels)[None].long(), (16, 24))[0].numpy(), small)


def test_irn_losses_equal_a_plain_loop():
    radius, (height, width) = 3, (6, 9)
    torch.manual_seed(1)
    logits = torch.randn(2, 1, height, width)
    labels = torch.tensor([0, 0, 1, 2, 255])[torch.randint(0, 5, (2, height, width))]
    sums = {name: [0.0, 1e-5] for name in ("background", "foreground", "negative")}

    def add(name, value):
        sums[name][0] += float(value)
        sums[name][1] += 1

    for image in range(2):
        boundary = torch.sigmoid(logits[image, 0])
        for y in range(height - 2):
            for x in range(2, width - 2):
                for dy, dx in pair_offsets(radius):
                    one, other = int(labels[image, y, x]), int(labels[image, y + dy, x + dx])
                    if 255 in (one, other):
                        continue
                    affinity = 1 - max(float(boundary[y + b, x + a]) for b, a in straight_path(dy, dx))
                    if one != other:
                        add("negative", -math.log(1 + 1e-5 - affinity))
                    elif one == 0:
                        add("background", -math.log(affinity + 1e-5))
                    else:
                        add("foreground", -math.log(affinity + 1e-5))
    means = {name: value / count for name, (value, count) in sums.items()}
    found = joined_loss(IRNet.loss_terms(lambda images: logits, None, labels, radius))
    expected = ((means["background"] + means["foreground"]) / 2 + means["negative"]) / 2
    assert float(found["loss"]) == pytest.approx(expected, rel=1e-4)
    assert float(found["negative"]) == pytest.approx(means["negative"], rel=1e-4)


def test_labels_without_a_sure_pixel_give_a_finite_loss():
    logits = torch.randn(1, 1, 8, 12, requires_grad=True)
    found = joined_loss(IRNet.loss_terms(lambda images: logits, None, torch.full((1, 8, 12), 255), 3))
    found["loss"].backward()
    assert found["loss"].item() == 0 and float(logits.grad.abs().max()) == 0


def test_irn_learns_its_heads_alone_and_finds_the_edge_of_a_square():
    torch.manual_seed(0)
    network = build_affinity("irn", "resnet_tiny", "none")[0].train()
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    labels = torch.zeros(1, 64, 64, dtype=torch.int64)
    labels[:, 16:48, 16:48] = 3
    images = torch.where(labels > 0, 0.8, 0.2)[:, None].repeat(1, 3, 1, 1)
    groups = network.parameter_groups(0.1)
    assert [group["lr"] for group in groups] == [0.1]
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in network.parameters())
    optimizer, losses = torch.optim.SGD(groups, lr=0.1, momentum=0.9), []
    for _ in range(40):
        optimizer.zero_grad()
        loss = joined_loss(network.loss_terms(images, labels, radius=5))["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(before[name], value) for name, value in network.backbone.state_dict().items())
    boundary = network.eval().boundaries(images[0], 64)
    assert boundary[8, 3:5].mean() > 2 * boundary[7:9, 7:9].mean()


def test_psa_affinities_and_losses_equal_a_plain_loop():
    torch.manual_seed(0)
    network, _ = build_affinity("psa", "resnet_tiny", "none")
    network.eval()
    image = torch.rand(3, 30, 43)
    affinities = network.affinities(image, radius=3)
    assert affinities.shape == (len(pair_offsets(3)), 8, 12)  # padded to 32 x 48, stride 4
    padded = F.pad(image[None] - MEAN, (0, 5, 0, 2)) + MEAN
    features = network(padded)[0].detach()
    labels = torch.tensor([0, 1, 2, 255])[torch.randint(0, 4, (1, 8, 12))]
    sums = {name: [0.0, 1e-5] for name in ("background", "foreground", "negative")}
    for index, (dy, dx) in enumerate(pair_offsets(3)):
        for y, x in np.ndindex(8, 12):
            inside = y + dy < 8 and 0 <= x + dx < 12
            value = 0.0
            if inside:
                value = math.exp(-float((features[:, y, x] - features[:, y + dy, x + dx]).abs().mean()))
                one, other = int(labels[0, y, x]), int(labels[0, y + dy, x + dx])
                if y < 6 and 2 <= x < 10 and 255 not in (one, other):
                    name = "negative" if one != other else "foreground" if one else "background"
                    sums[name][0] -= math.log(1 + 1e-5 - value if one != other else value + 1e-5)
                    sums[name][1] += 1
            assert float(affinities[index, y, x]) == pytest.approx(value, abs=1e-5)
    means = {name: value / count for name, (value, count) in sums.items()}
    found = joined_loss(AffinityNet.loss_terms(lambda images: features[None], None, labels, 3))
    assert float(found["loss"]) == pytest.approx(
        means["background"] / 4 + means["foreground"] / 4 + means["negative"] / 2, rel=1e-4)


def test_psa_on_resnet50_has_the_papers_widths_and_stride_and_trains_the_later_stages():
    network, backbone = build_affinity("psa", "resnet50", "none")
    network.train()
    assert backbone == "resnet50" and network.f9.weight.shape == (448, 448, 1, 1)
    assert [network.get_submodule(name).weight.shape[:2] for name in ("f8_3", "f8_4", "f8_5")] == \
        [(64, 512), (128, 1024), (256, 2048)]
    running = network.backbone.bn1.running_mean.clone()
    features = network(torch.rand(1, 3, 64, 96))
    assert features.shape == (1, 448, 8, 12)
    features.sum().backward()
    body = network.backbone
    assert torch.equal(body.bn1.running_mean, running) and body.conv1.weight.grad is None
    assert body.layer1[0].conv1.weight.grad is None and body.layer2[0].bn1.weight.grad is None
    assert body.layer2[0].conv1.weight.grad.abs().max() > 0
    groups = network.parameter_groups(0.01)
    assert groups[1]["lr"] == pytest.approx(0.1) and len(groups[1]["params"]) == 4
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in network.parameters())


def test_saved_networks_return_and_others_are_refused(tmp_path):
    for kind in ("irn", "psa"):
        network, backbone = build_affinity(kind, "resnet_tiny", "none")
        save_affinity(network, tmp_path / f"{kind}.pt", kind, backbone)
        loaded = load_affinity(tmp_path / f"{kind}.pt", kind)
        assert not loaded.training and all(torch.equal(value, loaded.state_dict()[name])
                                           for name, value in network.state_dict().items())
    with pytest.raises(InputError, match=r"psa\.pt: .*irn network"):
        load_affinity(tmp_path / "psa.pt", "irn")
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pt")
    for kind in ("irn", "psa"):
        with pytest.raises(InputError, match=rf"other\.pt: .*{kind} network"):
            load_affinity(tmp_path / "other.pt", kind)
    stored = torch.load(tmp_path / "irn.pt", weights_only=True)
    for change in ({"fc_edge6.bias": torch.zeros(2)}, {"extra": torch.zeros(1)}):
        torch.save(stored | {"state_dict": stored["state_dict"] | change}, tmp_path / "bad.pt")
        with pytest.raises(InputError, match=rf"bad\.pt: not the weights of a IRNet .*{next(iter(change))}"):
            load_affinity(tmp_path / "bad.pt", "irn")


def test_a_generators_file_starts_the_backbone(tmp_path):
    body = resnet.ResNet("resnet_tiny", 4)
    state = {f"backbone.{name}": value for name, value in body.state_dict().items()}
    torch.save({"kind": "generator", "config": {"backbone": "resnet_tiny", "output_stride": 4, "classes": ["a"]},
                "state_dict": state | {"classifier.weight": torch.ones(1, 64, 1, 1)}},
               tmp_path / "generator.pt")
    network, backbone = build_affinity("irn", "resnet50", tmp_path / "generator.pt")
    assert backbone == "resnet_tiny"
    assert torch.equal(network.backbone.layer4[0].conv1.weight, body.layer4[0].conv1.weight)
    with pytest.raises(InputError, match="--weights imagenet: resnet_tiny has no ImageNet weights"):
        build_affinity("irn", "resnet_tiny", "imagenet")


def without_crf(image, energies, *_):
    """Stands for dense_crf: the labels it starts from."""
    return -energies


def test_confident_labels_by_hand(monkeypatch):
    monkeypatch.setattr(labels_module, "dense_crf", without_crf)
    cams = np.array([[[0.9, 0.31, 0.2, 0.04, 0.0]], [[0.1, 0.35, 0.1, 0.01, 0.04]]], np.float32)
    image, keys = np.zeros((1, 5, 3), np.uint8), np.array([4, 19])
    found = confident_labels(image, cams, keys, 0.30, 0.05)
    assert found.dtype == np.uint8 and found.tolist() == [[5, 20, 255, 0, 0]]
    # (1 - max)^2 = .01 .42 .64 .92 .92 and ^10 = 1e-10 .013 .107 .66 .66 against the maxima .9 .35 .2 .04 .04
    found = confident_labels(image, cams, keys, 2, 10, kind="psa")
    assert found.tolist() == [[5, 255, 255, 0, 0]]


def test_crf_moves_confident_labels_to_the_edges_of_the_image(monkeypatch):
    image = np.full((40, 52, 3), 30, np.uint8)
    image[10:30, 12:40] = (220, 60, 60)
    truth = image[..., 0] > 100
    cams = np.where(truth, 0.25, 0.04)[None].astype(np.float32)
    cams[0, 13:29, 14:37] = 0.8  # smaller than the object
    cams[0, 20, 46] = 0.6  # a speck outside
    for kind, values in (("irn", (0.30, 0.05)), ("psa", (4, 32))):
        refined = confident_labels(image, cams, np.array([2]), *values, kind=kind)
        with monkeypatch.context() as patched:
            patched.setattr(labels_module, "dense_crf", without_crf)
            plain = confident_labels(image, cams, np.array([2]), *values, kind=kind)
        assert set(np.unique(refined)) <= {0, 3, 255}, kind
        assert ((refined == 3) & ~truth).sum() == 0 < ((plain == 3) & ~truth).sum(), kind
        assert (refined[truth] == 3).mean() > (plain[truth] == 3).mean(), kind
