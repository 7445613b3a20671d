"""CLIP's towers against open_clip's, trimming, learned embeddings and errors."""
import pytest
import torch
import torch.nn.functional as F

from clipwsss import clip
from clipwsss.clip.model import architecture

PROMPTS = ["a photo of a dog.", "", "a clean origami potted plant.", "river " * 60]


def small_clip(vision: str = "resnet", seed: int = 0, **changes) -> clip.CLIP:
    """A small model with every parameter and running statistic away from its neutral start."""
    torch.manual_seed(seed)
    towers = {"resnet": ((1, 1, 1, 1), 12, None), "vit": (2, 64, 16)}[vision]
    sizes = dict(embed_dim=32, image_resolution=64, vision_layers=towers[0], vision_width=towers[1],
                 vision_patch_size=towers[2], context_length=77, vocab_size=49408, text_width=64,
                 text_heads=1, text_layers=2)
    return stirred(clip.CLIP(clip.Architecture(**{**sizes, **changes}))).eval()


@torch.no_grad()
def stirred(model: torch.nn.Module) -> torch.nn.Module:
    for name, value in model.state_dict().items():
        if name.endswith("bn3.weight"):
            value.uniform_(0.1, 0.2)
        elif name.endswith("running_var"):
            value.uniform_(0.8, 1.2)
        elif value.is_floating_point() and value.dim() == 1:
            value.add_(0.1 * torch.randn_like(value))
    return model


@torch.no_grad()
def calibrate(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Give batch norms the statistics of real activations; without them a random ResNet fades to nothing."""
    def measure(norm: torch.nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        norm.running_var.copy_(inputs[0].var((0, 2, 3)))

    hooks = [layer.register_forward_pre_hook(measure) for layer in model.modules()
             if isinstance(layer, torch.nn.BatchNorm2d)]
    model.encode_image(images)
    for hook in hooks:
        hook.remove()


@pytest.fixture
def open_clip():
    package = pytest.importorskip("open_clip")
    package.factory.logging.getLogger().setLevel("ERROR")  # it warns that weights are random
    return package


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "RN50-quickgelu"])
def test_features_and_image_gradients_equal_open_clip(open_clip, name):
    torch.manual_seed(0)
    theirs = stirred(open_clip.create_model(name, pretrained=None)).eval().requires_grad_(False)
    pixels = torch.randn(2, 3, 224, 224)
    calibrate(theirs, pixels)
    ours = clip.CLIP.from_state_dict(theirs.state_dict()).requires_grad_(False)
    assert ours.input_resolution == 224 and ours.context_length == 77
    assert ours.token_embedding.weight.shape == (49408, 512)

    one, other = (pixels.clone().requires_grad_() for _ in range(2))
    mine, expected = ours.encode_image(one, normalised=True), theirs.encode_image(other)
    assert expected.std() > 0.1
    torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0)
    direction = torch.randn_like(expected)
    (mine * direction).sum().backward()
    (expected * direction).sum().backward()
    size = other.grad.abs().max()
    assert size > 1e-3
    torch.testing.assert_close(one.grad / size, other.grad / size, atol=1e-4, rtol=0)
    with torch.no_grad():
        images = pixels * ours.pixel_std + ours.pixel_mean
        torch.testing.assert_close(ours.encode_image(images), expected, atol=1e-4, rtol=0)
        tokens = clip.tokenize(PROMPTS)
        text = theirs.encode_text(tokens)
        torch.testing.assert_close(ours.encode_text(tokens), text, atol=1e-4, rtol=0)
        assert (text[0] - text[2]).abs().max() > 0.1


def test_every_published_architecture_is_inferred(open_clip):
    for name in ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"):
        config = open_clip.get_model_config(name)
        config.pop("quick_gelu", None)
        with torch.device("meta"):
            theirs = open_clip.CLIP(**config, quick_gelu=True)
            state = theirs.state_dict()
            ours = clip.CLIP(architecture(state))
        shapes = {key: value.shape for key, value in ours.state_dict().items()}
        assert shapes == {key: value.shape for key, value in state.items()}, name
        side = ours.input_resolution
        assert theirs.visual.image_size in (side, (side, side)), name
        assert ours.transformer.resblocks[0].attn.heads == theirs.transformer.resblocks[0].attn.num_heads, name
        if "ViT" in name:
            heads = ours.visual.transformer.resblocks[0].attn.heads
            assert heads == theirs.visual.transformer.resblocks[0].attn.num_heads, name
        else:
            assert ours.visual.attnpool.heads == theirs.visual.attnpool.num_heads, name


@pytest.mark.smoke
def test_normalise():
    model = small_clip()
    images = torch.tensor([0.0, 0.4578275, 1.0]).view(1, 3, 1, 1).expand(1, 3, 2, 5)
    expected = torch.tensor([-0.48145466 / 0.26862954, 0.0, (1 - 0.40821073) / 0.27577711])
    torch.testing.assert_close(model.normalise(images)[0, :, 1, 4], expected)


@pytest.mark.smoke
@torch.no_grad()
def test_trimming_changes_nothing():
    model = small_clip()
    tokens = clip.tokenize(["a photo of a dog.", "a dog"])
    lengths = []
    model.transformer.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    features = model.encode_text(tokens)
    whole = model.transformer(model.token_embedding(tokens) + model.positional_embedding, causal=True)
    ends = torch.stack([whole[0, 6 + 1], whole[1, 3]])
    torch.testing.assert_close(features, model.ln_final(ends) @ model.text_projection, atol=1e-6, rtol=1e-5)
    assert lengths == [8, 77]
    tokens[1, 4:] = 17  # behind the end of text
    torch.testing.assert_close(model.encode_text(tokens), features, atol=0, rtol=0)
    torch.testing.assert_close(model.encode_text(tokens[1:]), features[1:], atol=1e-6, rtol=1e-5)


def test_learned_embeddings_get_gradients():
    model = small_clip().requires_grad_(False)
    tokens = clip.tokenize(["a photo of a dog.", "a dog"])
    eot_index = tokens.argmax(dim=-1)
    embeddings = model.embed_tokens(tokens).requires_grad_()
    assert embeddings.shape == (2, 77, 64)
    features = model.encode_text_embeddings(embeddings, eot_index)
    torch.testing.assert_close(features, model.encode_text(tokens), atol=1e-6, rtol=1e-5)
    features.square().sum().backward()
    reached = embeddings.grad.abs().amax(dim=-1) > 0
    assert reached.tolist() == [[True] * 8 + [False] * 69, [True] * 4 + [False] * 73]


@torch.no_grad()
def test_first_token_alone_equals_all_tokens():
    tower = small_clip("vit").visual
    images = torch.randn(3, 3, 64, 64)
    seen = []
    tower.ln_post.register_forward_hook(lambda _, inputs, output: seen.append(output @ tower.proj))
    patches = tower(images, patches=True)
    every = seen[0]
    assert every.shape == (3, 1 + 4 * 4, 32)
    torch.testing.assert_close(tower(images), every[:, 0], atol=1e-6, rtol=1e-5)
    assert patches[:, 1, 2].equal(every[:, 1 + 4 + 2])


@torch.no_grad()
@pytest.mark.parametrize("vision, side", [("resnet", 2), ("vit", 4)])
def test_patches_follow_the_image(vision, side):
    model = small_clip(vision)
    images = torch.rand(2, 3, 64, 64)
    patches = model.encode_image(images, patches=True)
    assert patches.shape == (2, side, side, 32)
    torch.testing.assert_close(patches, model.encode_image(model.normalise(images), normalised=True, patches=True))
    torch.testing.assert_close(patches[1:], model.encode_image(images[1:], patches=True), atol=1e-5, rtol=1e-5)
    if vision == "resnet":  # the pool's projections at one position
        seen = []
        model.visual.layer4.register_forward_hook(lambda _, inputs, output: seen.append(output))
        model.encode_image(images, patches=True)
        pool = model.visual.attnpool
        features = seen[0]
        torch.testing.assert_close(patches[0, 0, 1], pool.c_proj(pool.v_proj(features[0, :, 0, 1])))


@torch.no_grad()
def test_attention_pool_equals_plain_attention():
    pool = stirred(small_clip().visual.attnpool)
    x = torch.randn(3, 384, 2, 2)
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(dim=0, keepdim=True), tokens]) + pool.positional_embedding[:, None]
    bias = torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias])
    plain, _ = F.multi_head_attention_forward(
        tokens[:1], tokens, tokens, 384, pool.heads, None, bias, None, None, False, 0.0, pool.c_proj.weight,
        pool.c_proj.bias, use_separate_proj_weight=True, q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight)
    torch.testing.assert_close(pool(x), plain[0], atol=1e-5, rtol=1e-5)


def test_one_model_scores_images_and_texts():
    model = small_clip("vit")
    images, tokens = torch.rand(3, 3, 64, 64), clip.tokenize(["a dog", "a cat"])
    scores = model(images, tokens)
    cosine = F.cosine_similarity(model.encode_image(images)[2], model.encode_text(tokens)[1], dim=0)
    torch.testing.assert_close(scores[2, 1], cosine / 0.07, atol=1e-4, rtol=1e-4)


def test_from_state_dict_copies_and_casts():
    model = small_clip()
    copied = clip.CLIP.from_state_dict(model.state_dict())
    with torch.no_grad():
        copied.logit_scale.fill_(0)
    assert model.logit_scale > 2


def test_wrong_resolution():
    model = small_clip()
    for height, width in ((63, 64), (64, 96), (128, 128)):
        with pytest.raises(ValueError, match=f"images are {height} x {width}, this CLIP takes 64 x 64"):
            model.encode_image(torch.rand(1, 3, height, width))


def test_wrong_weights():
    state = dict(small_clip().state_dict())
    without_bias = {name: value for name, value in state.items() if name != "visual.layer2.0.bn1.bias"}
    without_text = {name: value for name, value in state.items() if name != "text_projection"}
    for wrong, error, message in (
            (without_bias, RuntimeError, r'Missing key.* "visual.layer2.0.bn1.bias"'),
            ({**state, "extra": torch.ones(1)}, RuntimeError, r'Unexpected key.* "extra"'),
            ({**state, "ln_final.bias": torch.ones(3)}, RuntimeError,
             r"size mismatch for ln_final.bias: .*\(\[3\]\) from checkpoint.*\(\[64\]\)"),
            (without_text, ValueError, "no CLIP weights: tensor 'text_projection' is missing"),
            ({}, ValueError, "no CLIP weights: tensor 'visual.layer1.0.conv1.weight' is missing")):
        with pytest.raises(error, match=message):
            clip.CLIP.from_state_dict(wrong)


def test_a_tower_in_half_precision_takes_pixels_in_single():
    torch.manual_seed(0)
    model = clip.CLIP(clip.Architecture(32, 16, 2, 64, 4, 77, 100, 64, 1, 2)).eval().requires_grad_(False)
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    single = model.encode_image(images)
    model.visual.bfloat16()
    half = model.encode_image(images)
    assert half.dtype == torch.bfloat16
    assert torch.cosine_similarity(half.float(), single).min() > 0.999
    half.float().sum().backward()
    assert images.grad.dtype == torch.float32 and images.grad.abs().max() > 0
