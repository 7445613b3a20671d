"""Mask2Former through transformers: a tiny configuration learns, predicts, survives its file; bad starts."""
import sys

import pytest
import torch

from clipwsss.errors import InputError
from clipwsss.pictures import voc_palette
from clipwsss.segment.predict import class_probabilities
from clipwsss.segment.segmenter import build_segmenter, Segmenter, save_segmenter
from clipwsss.training import joined_loss

DESIGN = {"network": "mask2former"}


@pytest.fixture
def tiny(tmp_path) -> str:
    """A folder with the configuration of a very small Mask2Former."""
    transformers = pytest.importorskip("transformers")
    swin = transformers.SwinConfig(image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2],
                                   window_size=4, out_features=["stage1", "stage2", "stage3", "stage4"])
    config = transformers.Mask2FormerConfig(
        backbone_config=swin, hidden_dim=32, feature_size=32, mask_feature_size=32, encoder_layers=1,
        decoder_layers=2, dim_feedforward=64, encoder_feedforward_dim=64, num_queries=8,
        num_attention_heads=2, train_num_points=256)
    config.save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def built(weights: str, n_labels: int = 3) -> torch.nn.Module:
    network, _ = build_segmenter(DESIGN, n_labels, weights)
    return network


def squares() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images of a bright square with their masks; a column is ignored."""
    images, masks = torch.full((2, 3, 64, 48), 0.3), torch.zeros(2, 64, 48, dtype=torch.int64)
    for index in range(2):
        images[index, index, 16:48, 8:40] = 1.0
        masks[index, 16:48, 8:40] = index + 1
    masks[:, :, 0] = 255
    return images, masks


def training_loss(network, images, masks):
    """The loss that `fit` makes of the terms in one process."""
    return joined_loss(network.loss_terms(images, masks))["loss"]


def test_the_loss_reaches_all_that_learns(tiny):
    """Else several processes, which average gradients, would wait for each other for ever."""
    network = built(tiny).train()
    training_loss(network, *squares()).backward()
    silent = [name for name, item in network.named_parameters() if item.requires_grad and item.grad is None]
    assert silent == [] and sum(not item.requires_grad for item in network.parameters()) <= 2


def test_decay_is_that_of_mmsegmentation(tiny):
    """Biases and the pixel decoder's level embedding decay; norms, tables, queries, the decoder's levels do not."""
    network = built(tiny)
    groups = network.parameter_groups(1e-5, 0.05)
    decays = {id(item): group["weight_decay"] for group in groups for item in group["params"]}
    names = {name: decays[id(item)] for name, item in network.model.named_parameters()}
    free = {name for name, decay in names.items() if decay == 0}
    rest = {name for name in names if "norm" not in name} - {
        name for name in names if ".input_projections." in name and ".1." in name[-12:]}
    assert {name for name in free & rest if "adapter_1.1" not in name and "layer_1.1" not in name} == {
        *(name for name in names if name.endswith("relative_position_bias_table")),
        "model.transformer_module.queries_embedder.weight", "model.transformer_module.queries_features.weight",
        "model.transformer_module.level_embed.weight"}
    assert all(names[name] == 0 for name in names if "layernorm" in name or "layer_norm" in name)
    for name in ("model.pixel_level_module.decoder.level_embed", "class_predictor.bias",
                 "model.transformer_module.decoder.mask_predictor.mask_embedder.0.0.weight",
                 "model.pixel_level_module.encoder.swin.embeddings.patch_embeddings.projection.weight"):
        assert names[name] == 0.05, name


def test_learns_and_predicts_at_image_size(tiny):
    torch.manual_seed(0)
    network = built(tiny)
    images, masks = squares()
    groups = network.parameter_groups(1e-3, 0.05)
    assert {group["lr"] for group in groups} == {1e-3, 1e-2}
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    optimizer = torch.optim.AdamW(groups)
    losses = []
    for _ in range(25):
        loss = training_loss(network.train(), images, masks)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    shares = class_probabilities(network.eval(), images, (1.0, 1.5), flip=True)
    assert shares.shape == (2, 3, 64, 48)
    assert torch.allclose(shares.sum(1), torch.ones(2, 64, 48), atol=1e-4)
    assert (shares.argmax(1) == masks)[:, :, 1:].float().mean() > 0.7
    empty = torch.full_like(masks, 255)
    assert torch.isfinite(training_loss(network, images, empty))


def test_images_are_padded_by_the_mean_colour_to_multiples_of_32(tiny):
    network = built(tiny).eval()
    images = torch.rand(2, 3, 50, 70)
    padded = network.mean.repeat(2, 1, 64, 96)
    padded[..., :50, :70] = images
    with torch.no_grad():
        answer = network(images)
        assert torch.allclose(answer, network(padded)[..., :50, :70], atol=1e-5)
    assert answer.shape == (2, 3, 50, 70)


def test_file_rebuilds_the_network(tiny, tmp_path):
    network, design = build_segmenter(DESIGN, 3, tiny)
    save_segmenter(network, design, ("cat", "dog"), voc_palette(), tmp_path / "segmenter.pt")
    loaded = Segmenter(tmp_path / "segmenter.pt", "cpu").network
    images = squares()[0]
    with torch.no_grad():
        assert torch.allclose(loaded(images), network.eval()(images), atol=1e-4)
    more, _ = build_segmenter(DESIGN, 4, tmp_path / "segmenter.pt", ["dog", "cow", "cat"])  # goes on, by class
    old, new = (item.model.class_predictor.weight for item in (network, more))
    assert torch.equal(new[[0, 1, 3, 4]], old[[0, 2, 1, 3]])  # "no object" is last
    assert loaded.model.class_predictor.out_features == 4  # background, two classes, no object
    network.model.save_pretrained(tmp_path / "published")
    other = built(str(tmp_path / "published"), n_labels=2)
    body = "model.pixel_level_module.decoder.mask_projection.weight"
    assert torch.equal(other.model.state_dict()[body], network.model.state_dict()[body])
    assert other.model.class_predictor.out_features == 3


def test_bad_starts_are_one_clear_line(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="--weights imagenet: mask2former starts from a model"):
        built("imagenet")
    with pytest.raises(InputError, match="nowhere") as caught:
        built(str(tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="--balanced"):
        built(tiny).loss_terms(*squares(), balanced=True)


def test_without_the_package_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="pip install transformers"):
        built("none")


def test_a_swin_backbone_alone_starts_the_network(tmp_path):
    transformers = pytest.importorskip("transformers")
    swin = transformers.SwinModel(transformers.SwinConfig(image_size=64, embed_dim=8, depths=[1, 1, 1, 1],
                                                          num_heads=[1, 1, 1, 1], window_size=4))
    swin.save_pretrained(tmp_path / "swin")
    network = built(str(tmp_path / "swin"))
    inner = network.model.model.pixel_level_module.encoder
    place = "embeddings.patch_embeddings.projection.weight"
    kept = [value for name, value in inner.named_parameters() if name.endswith(place)]
    assert len(kept) == 1 and torch.equal(kept[0], dict(swin.named_parameters())[place]) and kept[0].std() > 0
    assert network(torch.rand(1, 3, 64, 64)).shape == (1, 3, 64, 64)
    groups = network.parameter_groups(1e-5, 0.05, 10.0)
    assert {round(group["lr"], 8) for group in groups} == {1e-5, 1e-4}
