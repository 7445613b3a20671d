"""WeakTr against a plain reference, what learns, checkpoints of the releases, bad files."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipwsss.cams.generator import build_generator, load_generator
from clipwsss.cams.maps import merge_scales, multi_scale_maps
from clipwsss.cams.weaktr import WeakTr
from clipwsss.errors import InputError
from clipwsss.files import save_network
from clipwsss.networks import vit

CLASSES = ["a", "b", "c"]
SPEC = vit.ViTSpec(24, 3, 2, patch=8, grid=4)


def make(pooling="max", seed=0):
    """A small generator whose weights are large enough for attention to choose."""
    torch.manual_seed(seed)
    generator = WeakTr(SPEC, {"backbone": "deit_toy", "pooling": pooling, "classes": CLASSES}, (4, 3))
    with torch.no_grad():
        for name, value in generator.named_parameters():
            value.normal_(std=0.4 if value.dim() > 1 else 0.1)
            value.add_(1.0 if name.endswith(("norm1.weight", "norm2.weight")) else 0.0)
    return generator.eval()


def reference(w, images, pooling, depth=3, heads=2, n_classes=3):
    """Zhu et al., secs. 3.2 and 3.3, head by head and block by block; `w` is the state dict."""
    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    x = (images - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=8)
    height, width = x.shape[-2:]
    patches = w["pos_embed"][:, n_classes:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    if (height, width) != (4, 4):
        patches = F.interpolate(patches, scale_factor=((height + 0.1) / 4, (width + 0.1) / 4), mode="bicubic")
    positions = torch.cat([w["pos_embed"][:, :n_classes], patches.flatten(2).transpose(1, 2)], 1)
    x = torch.cat([w["cls_token"].repeat(len(x), 1, 1), x.flatten(2).transpose(1, 2)], 1) + positions
    maps, features = {}, {}
    for l in range(depth):
        name = f"blocks.{l}"
        q, k, v = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").chunk(3, -1)
        mixed = []
        for h in range(heads):
            part = slice(12 * h, 12 * h + 12)
            maps[h, l] = (q[..., part] @ k[..., part].transpose(1, 2) / 12 ** 0.5).softmax(-1)
            mixed.append(maps[h, l] @ v[..., part])
        added = linear(torch.cat(mixed, -1), f"{name}.attn.proj")
        for h in range(heads):  # every second channel from h on
            features[h, l] = added[..., h::heads].amax(1) if pooling == "max" else added[..., h::heads].mean(1)
        x = x + added
        x = x + linear(F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
    order = [(h, l) for h in range(heads) for l in range(depth)]
    fusion = "adaptive_attention_fusion."
    numbers = torch.cat([linear(linear(features[key], f"{fusion}attn_feat_ffn.0"), f"{fusion}attn_feat_ffn.1")
                         for key in order], 1)
    weights = torch.sigmoid(linear(F.relu(linear(numbers, f"{fusion}attn_head_ffn.0")), f"{fusion}attn_head_ffn.2"))
    fused = sum(weights[:, i, None, None] * maps[key] for i, key in enumerate(order)) / len(order)
    coarse = F.conv2d(x[:, n_classes:].transpose(1, 2).reshape(len(x), -1, height, width), w["head.weight"],
                      w["head.bias"], padding=1)
    seen = fused[:, :n_classes, n_classes:].reshape(coarse.shape) * coarse.clamp(min=0)
    fine = (seen.flatten(2) @ fused[:, n_classes:, n_classes:].transpose(1, 2)).reshape(coarse.shape)
    return x[:, :n_classes].mean(-1), coarse.mean((2, 3)), fine.mean((2, 3)), seen, fine


@pytest.mark.smoke
@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_outputs_equal_a_plain_reference(pooling):
    generator = make(pooling)
    for size in ((32, 32), (40, 64), (45, 30)):
        images = torch.rand(3, 3, *size)
        with torch.no_grad():
            found = generator.outputs(images)
            expected = reference(generator.state_dict(), images, pooling)
            for name, ours, plain in zip(found._fields, found, expected):
                assert plain.abs().max() > 1e-3 and torch.allclose(ours, plain, atol=1e-5), (size, name)
            assert torch.allclose(generator(images), expected[-1], atol=1e-5), size  # one image at a time
        assert (found.maps >= 0).all() and found.maps.shape == (3, 3, size[0] // 8, size[1] // 8), size


def test_deits_weights_start_the_transformer(tmp_path):
    torch.manual_seed(0)
    deit = vit.VisionTransformer(vit.VIT_SPECS["deit_toy"])
    torch.save({"model": {**deit.state_dict(), "head.weight": torch.rand(9, 64)}}, tmp_path / "deit.pth")
    torch.manual_seed(1)
    random = build_generator(CLASSES, "deit_toy", "none").state_dict()
    torch.manual_seed(1)
    started = build_generator(CLASSES, "deit_toy", tmp_path / "deit.pth").state_dict()
    for name, value in started.items():
        if name in ("cls_token", "pos_embed"):
            assert torch.equal(value[:, :3], deit.state_dict()[name][:, :1].expand(-1, 3, -1))
        else:
            expected = random if name.startswith(("head.", "adaptive_attention_fusion.")) else deit.state_dict()
            assert torch.equal(value, expected[name]), name


def test_bad_starts_are_named(tmp_path):
    (tmp_path / "torn.pth").write_bytes(b"torn")
    torch.save({"model": {"conv1.weight": torch.zeros(1)}}, tmp_path / "resnet.pth")
    torch.save(vit.VisionTransformer(SPEC).state_dict(), tmp_path / "narrow.pth")
    for weights, message in ((tmp_path / "torn.pth", "torn.pth: not a readable checkpoint"),
                             (tmp_path / "resnet.pth", "resnet.pth: not the weights of a vision transformer"),
                             (tmp_path / "narrow.pth", "narrow.pth: not the weights of a deit_toy .*size mismatch"),
                             (tmp_path / "gone.pth", "gone.pth: no such weights file"),
                             ("imagenet", "deit_toy has no ImageNet weights")):
        with pytest.raises(InputError, match=message) as caught:
            build_generator(CLASSES, "deit_toy", weights)
        assert "\n" not in str(caught.value)


def test_what_each_loss_teaches():
    generator, images = make(), torch.rand(2, 3, 32, 40)

    def taught(value):
        generator.zero_grad()
        value.sum().backward()
        return {name.split(".")[0] for name, p in generator.named_parameters() if p.grad is not None and p.grad.any()}

    body = {"cls_token", "pos_embed", "patch_embed", "blocks"}
    logits = generator.classify(images)
    assert list(logits) == ["token", "coarse", "fine"] and all(value.shape == (2, 3) for value in logits.values())
    assert taught(generator.classify(images)["token"]) == body
    assert taught(generator.classify(images)["coarse"]) == body | {"head"}
    assert taught(generator.classify(images)["fine"]) == {"adaptive_attention_fusion"}
    assert taught(generator(images)) == body | {"head", "adaptive_attention_fusion"}  # through the coarse maps
    for part, learned in (("head", {"head", "adaptive_attention_fusion"}), ("fusion", {"adaptive_attention_fusion"})):
        generator.learn_only(part)
        assert taught(generator(images)) == learned
        groups = generator.parameter_groups(0.1, 2.0)
        assert not groups[0]["params"] and groups[1]["lr"] == 0.2
        assert len(groups[1]["params"]) == sum(p.requires_grad for p in generator.parameters())


def test_a_part_that_is_not_there_is_named():
    generator = build_generator(CLASSES, "resnet_tiny", "none", output_stride=4)
    with pytest.raises(InputError, match="--tune head: this generator has all"):
        generator.learn_only("head")
    assert all(p.requires_grad for p in generator.classifier.parameters())


def test_checkpoints_of_the_releases_and_our_own_files_load(tmp_path):
    generator, images = make("avg"), torch.rand(1, 3, 32, 32)
    # All fields that the releases' main.py writes; their mIoU is NumPy's number.
    torch.save({"model": generator.state_dict(), "epoch": 3, "miou": np.float64(65.9)},
               tmp_path / "checkpoint_best_mIoU.pth")
    loaded = load_generator(tmp_path / "checkpoint_best_mIoU.pth", CLASSES, pooling="avg").eval()
    assert loaded.spec == SPEC and loaded.config["pooling"] == "avg"
    with torch.no_grad():
        assert torch.equal(loaded(images), generator(images))
        save_network(loaded, "generator", loaded.config, tmp_path / "generator.pt")
        again = load_generator(tmp_path / "generator.pt", CLASSES, pooling="max").eval()
        assert again.config == loaded.config and torch.equal(again(images), generator(images))  # it says its pooling
    with pytest.raises(InputError, match="best_mIoU.pth: made for 3 classes; this data has 2: a, b"):
        load_generator(tmp_path / "checkpoint_best_mIoU.pth", CLASSES[:2])
    with pytest.raises(InputError, match="made for the classes a, b, c; this data has a, b, d"):
        load_generator(tmp_path / "generator.pt", ["a", "b", "d"])
    state = {name: value for name, value in generator.state_dict().items() if name != "head.bias"}
    torch.save({"model": state}, tmp_path / "part.pth")
    with pytest.raises(InputError, match=r'part.pth: not the weights of a .* generator of 3 classes .*"head.bias"'):
        load_generator(tmp_path / "part.pth", CLASSES)
    torch.save({"model": {name: value for name, value in state.items() if name != "cls_token"}}, tmp_path / "cut.pth")
    with pytest.raises(InputError, match="cut.pth: not the weights of WeakTr; cls_token is missing"):
        load_generator(tmp_path / "cut.pth", CLASSES)
    torch.save({"model": {"fc.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other.pth: not the weights of a generator \(resnet, weaktr\)"):
        load_generator(tmp_path / "other.pth", CLASSES)


def test_a_file_with_a_token_for_each_category_number_gives_the_classes_outputs(tmp_path):
    """COCO's releases have 90 tokens; all take part in the attention, 80 are classes. Here 3 of 5."""
    torch.manual_seed(1)
    released = WeakTr(SPEC, {"backbone": "deit_toy", "pooling": "max", "classes": list("vwxyz")}, (4, 3)).eval()
    with torch.no_grad():
        for value in released.parameters():
            value.normal_(std=0.4 if value.dim() > 1 else 0.1)
    torch.save({"model": released.state_dict(), "epoch": 3, "miou": np.float64(42.6)}, tmp_path / "coco.pth")
    generator = load_generator(tmp_path / "coco.pth", CLASSES, "weaktr", [1, 3, 4]).eval()
    save_network(generator, "generator", generator.config, tmp_path / "generator.pt")
    again = load_generator(tmp_path / "generator.pt", CLASSES).eval()
    images = torch.rand(2, 3, 40, 64)
    with torch.no_grad():
        expected = reference(released.state_dict(), images, "max", n_classes=5)
        for network in (generator, again):
            for name, value, plain in zip(network.outputs(images)._fields, network.outputs(images), expected):
                assert value.shape[1] == 3 and torch.allclose(value, plain[:, [0, 2, 3]], atol=1e-5), name
    for numbers in ((), [1, 3, 6]):
        with pytest.raises(InputError, match="coco.pth: made for 5 classes; this data has 3: a, b, c"):
            load_generator(tmp_path / "coco.pth", CLASSES, "weaktr", numbers)


def test_published_sizes():
    generator = build_generator(["x"] * 20, "deit_small", "none")
    shapes = {name: tuple(value.shape) for name, value in generator.state_dict().items()}
    assert shapes["cls_token"] == (1, 20, 384) and shapes["pos_embed"] == (1, 216, 384)
    assert shapes["head.weight"] == (20, 384, 3, 3) and shapes["blocks.11.mlp.fc1.weight"] == (1536, 384)
    assert shapes["adaptive_attention_fusion.attn_head_ffn.0.weight"] == (9, 72)
    assert shapes["adaptive_attention_fusion.attn_feat_ffn.0.weight"] == (8, 64)
    assert generator.input_multiple == 16 and not any(name.startswith(("mean", "std")) for name in shapes)


def test_multi_scale_maps_round_sides_to_patches_and_start_at_the_minimum():
    generator, images = make(), torch.rand(2, 3, 45, 30)
    outputs = multi_scale_maps(generator, images, (1.0, 1.2, 0.1))
    assert [tuple(maps.shape) for maps in outputs] == [(2, 3, 6, 4), (2, 3, 7, 4), (2, 3, 1, 1)]
    with torch.no_grad():
        scaled = F.interpolate(images, (48, 32), mode="bicubic", antialias=True).clamp(0, 1)
        expected = generator(scaled) + generator(scaled.flip(-1)).flip(-1)
    assert torch.allclose(outputs[0], expected, atol=1e-5)
    merged = merge_scales(outputs[:2], (12, 8), from_minimum=generator.from_minimum)
    assert torch.allclose(merged.amin((2, 3)), torch.zeros(2, 3)) and torch.allclose(merged.amax((2, 3)), torch.ones(2, 3))
