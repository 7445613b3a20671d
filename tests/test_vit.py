"""The transformer against timm's, its positions, its ImageNet start, and that it lifts out alone."""
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from clipwsss.networks import vit

SMALL = vit.ViTSpec(48, 3, 4, patch=8, grid=5)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return vit.VisionTransformer(SMALL, n_tokens=3).eval()


def test_it_equals_timm_on_random_weights():
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("deit_small_patch16_224", pretrained=False).eval()
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "norm" not in name:
                value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())) * 0.06)
    ours = vit.VisionTransformer(vit.SPECS["deit_small"]).eval()
    vit.start_from(ours, theirs.state_dict(), "timm")
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = theirs.forward_features((images - ours.mean) / ours.std)
        assert expected.std() > 0.1 and torch.allclose(ours(images), expected, atol=2e-5)


def test_attention_weights_are_those_of_the_output(network):
    tokens, grid = network.embed(torch.rand(2, 3, 32, 48))
    block = network.blocks[0]
    weights = vit.attention_weights(*block.queries(tokens))
    assert grid == (4, 6) and weights.shape == (2, 4, 27, 27)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 27), atol=1e-5)
    mixed = weights @ block.attn.split(block.norm1(tokens))[2]
    assert torch.allclose(block.attn.proj(mixed.transpose(1, 2).flatten(2)), block(tokens)[1], atol=1e-5)


@pytest.mark.parametrize("size", [(40, 40), (32, 56), (64, 24), (80, 80)])
def test_positions_of_any_grid_keep_the_class_tokens_and_the_layout(network, size):
    grid = (size[0] // 8, size[1] // 8)
    with torch.no_grad():  # a field that rises along both axes, which resizing must keep in place
        rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij")
        network.pos_embed[0, 3:, 0], network.pos_embed[0, 3:, 1] = rows.flatten(), columns.flatten()
        found = network.positions(grid)
    assert found.shape == (1, 3 + grid[0] * grid[1], 48) and torch.equal(found[:, :3], network.pos_embed[:, :3])
    down, right = found[0, 3:, :2].unflatten(0, grid).unbind(-1)
    assert (down.diff(dim=0) > -0.2).all() and (right.diff(dim=1) > -0.2).all()
    assert down[0].mean() < 0.5 and down[-1].mean() > 3.5 and right[:, -1].mean() > 3.5
    assert torch.allclose(down[:, 0], down[:, -1], atol=1e-4)
    if grid == (5, 5):
        assert torch.equal(found, network.pos_embed)
    assert network(torch.rand(1, 3, *size)).shape == (1, found.shape[1], 48)


def test_what_is_over_at_the_right_and_below_is_not_seen(network):
    images = torch.rand(1, 3, 47, 39)
    assert torch.equal(network(images), network(images[..., :40, :32]))


def test_a_start_copies_the_class_token_and_resizes_positions(tmp_path):
    torch.manual_seed(0)
    one = vit.VisionTransformer(SMALL._replace(grid=4))
    torch.save({"model": {**one.state_dict(), "head.weight": torch.rand(9, 48)}}, tmp_path / "deit.pth")
    three = vit.VisionTransformer(SMALL, 3)
    vit.start_from(three, vit.read_weights(tmp_path / "deit.pth", "deit_small"), "deit.pth")
    assert torch.equal(three.cls_token, one.cls_token.expand(-1, 3, -1))
    assert torch.equal(three.pos_embed[:, :3], one.pos_embed[:, :1].expand(-1, 3, -1))
    patches = one.pos_embed[:, 1:].mT.unflatten(-1, (4, 4))
    expected = F.interpolate(patches, (5, 5), mode="bicubic", align_corners=False).flatten(2).mT
    assert torch.allclose(three.pos_embed[:, 3:], expected, atol=1e-6)
    assert torch.equal(three.blocks[2].mlp["fc1"].weight, one.blocks[2].mlp["fc1"].weight)


def test_bad_weights_are_named(tmp_path, monkeypatch):
    (tmp_path / "torn.pth").write_bytes(b"torn")
    torch.save({"model": {"conv1.weight": torch.zeros(1)}}, tmp_path / "resnet.pth")
    torch.save(vit.VisionTransformer(SMALL._replace(width=24)).state_dict(), tmp_path / "narrow.pth")
    for name, message in (("torn.pth", "torn.pth: not a readable state dict"),
                          ("resnet.pth", "resnet.pth: not the weights of a vision transformer")):
        with pytest.raises(ValueError, match=message):
            vit.read_weights(tmp_path / name, "deit_small")
    with pytest.raises(ValueError, match="narrow.pth: not weights of this transformer .*size mismatch"):
        vit.start_from(vit.VisionTransformer(SMALL), vit.read_weights(tmp_path / "narrow.pth", ""), "narrow.pth")
    with pytest.raises(FileNotFoundError, match="gone.pth: no such weights file"):
        vit.read_weights(tmp_path / "gone.pth", "deit_small")
    with pytest.raises(ValueError, match="deit_toy has no ImageNet weights"):
        vit.read_weights("imagenet", "deit_toy")

    def offline(*_, **__):
        raise OSError("no route")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    place = tmp_path / "checkpoints" / "deit_small_patch16_224-cd65a155.pth"
    with pytest.raises(FileNotFoundError, match=f"dl.fbaipublicfiles.com/.* put it at {place}"):
        vit.download("deit_small")
    place.write_bytes(b"another file")
    with pytest.raises(ValueError, match="cd65a155.pth: damaged weights, not those published; delete the file"):
        vit.download("deit_small")
    digest = hashlib.sha256(b"another file").hexdigest()[:8]
    monkeypatch.setitem(vit.WEIGHTS, "deit_small", f"https://example.org/deit-{digest}.pth")
    place.rename(place.with_name(f"deit-{digest}.pth"))
    assert vit.download("deit_small").read_bytes() == b"another file"


def test_it_lifts_out_alone(tmp_path):
    shutil.copy(Path(vit.__file__), tmp_path)
    code = ("import sys, torch, vit; network = vit.VisionTransformer(vit.SPECS['deit_toy']); "
            "print(*network(torch.rand(1, 3, 96, 64)).shape); sys.exit('clipwsss' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("1 97 64"), done.stderr
