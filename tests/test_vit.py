"""The transformer against timm's, its positions, its ImageNet start."""
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import StochasticDepth

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
    ours = vit.VisionTransformer(vit.VIT_SPECS["deit_small"]).eval()
    ours.load_state_dict(vit.adapt_weights(ours, theirs.state_dict()))
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


@pytest.mark.smoke
def test_positions_of_any_grid_keep_the_class_tokens_and_the_layout(network):
    with torch.no_grad():  # a field that rises along both axes, which resizing must keep in place
        rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij")
        network.pos_embed[0, 3:, 0] = rows.flatten()
        network.pos_embed[0, 3:, 1] = columns.flatten()
    for size in ((40, 40), (32, 56), (64, 24), (80, 80)):
        grid = (size[0] // 8, size[1] // 8)
        with torch.no_grad():
            found = network.positions(grid)
        assert found.shape == (1, 3 + grid[0] * grid[1], 48), size
        assert torch.equal(found[:, :3], network.pos_embed[:, :3]), size
        down, right = found[0, 3:, :2].unflatten(0, grid).unbind(-1)
        assert (down.diff(dim=0) > -0.2).all() and (right.diff(dim=1) > -0.2).all(), size
        assert down[0].mean() < 0.5 and down[-1].mean() > 3.5 and right[:, -1].mean() > 3.5, size
        assert torch.allclose(down[:, 0], down[:, -1], atol=1e-4), size
        if grid == (5, 5):
            assert torch.equal(found, network.pos_embed)
        assert network(torch.rand(1, 3, *size)).shape == (1, found.shape[1], 48), size


def test_what_is_over_at_the_right_and_below_is_not_seen(network):
    images = torch.rand(1, 3, 47, 39)
    assert torch.equal(network(images), network(images[..., :40, :32]))


def test_drop_path_draws_and_computes_as_torchvisions_bit_for_bit():
    branch = torch.randn(16, 5, 8)
    for rate in (0.0, 0.3):
        theirs = StochasticDepth(rate, "row")
        ours = vit.DropPath(rate)
        torch.manual_seed(1)
        expected = theirs(branch)
        after = torch.rand(3)
        torch.manual_seed(1)
        assert torch.equal(ours(branch), expected) and torch.equal(torch.rand(3), after), rate
        assert torch.equal(ours.eval()(branch), branch), rate
    assert (expected == 0).all(2).any() and (expected != 0).all(2).any()


def test_a_start_copies_the_class_token_and_resizes_positions():
    torch.manual_seed(0)
    one = vit.VisionTransformer(SMALL._replace(grid=4))
    three = vit.VisionTransformer(SMALL, 3)
    three.load_state_dict(vit.adapt_weights(three, {**one.state_dict(), "head.weight": torch.rand(9, 48)}))
    assert torch.equal(three.cls_token, one.cls_token.expand(-1, 3, -1))
    assert torch.equal(three.pos_embed[:, :3], one.pos_embed[:, :1].expand(-1, 3, -1))
    patches = one.pos_embed[:, 1:].mT.unflatten(-1, (4, 4))
    expected = F.interpolate(patches, (5, 5), mode="bicubic", align_corners=False).flatten(2).mT
    assert torch.allclose(three.pos_embed[:, 3:], expected, atol=1e-6)
    assert torch.equal(three.blocks[2].mlp["fc1"].weight, one.blocks[2].mlp["fc1"].weight)


def test_other_weights_are_refused():
    with pytest.raises(ValueError, match="not the weights of a vision transformer .*: cls_token is missing"):
        vit.adapt_weights(vit.VisionTransformer(SMALL), {"conv1.weight": torch.zeros(1)})
