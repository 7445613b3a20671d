"""open_clip's weights: heads, widths and activations as open_clip itself has them; files of unknown kind."""
import pytest
import torch

from clipwsss import clip
from clipwsss.clip.model import HEAD_WIDTH, WIDER_HEADS
from clipwsss.clip.open_clip import GELU_FILES, MODELS, QUICK, QUICK_GELU_FILES, find_kind
from clipwsss.clip.tokenizer import VOCABULARY, byte_pairs
from clipwsss.errors import InputError
from clipwsss.guidance.regions import load_clip
from test_clip_model import stirred

CPU = torch.device("cpu")


@pytest.fixture
def open_clip():
    package = pytest.importorskip("open_clip")
    package.factory.logging.getLogger().setLevel("ERROR")
    return package


def shallow(open_clip, name: str, vocabulary: int = 400) -> torch.nn.Module:
    """open_clip's model of this name with random weights, one block a tower and small images and vocabulary."""
    config = open_clip.get_model_config(name)
    vision = {**config["vision_cfg"], "layers": 1, "image_size": 2 * config["vision_cfg"]["patch_size"]}
    text = {**config["text_cfg"], "layers": 1, "vocab_size": vocabulary, "context_length": 8}
    torch.manual_seed(0)
    model = open_clip.CLIP(config["embed_dim"], vision, text, quick_gelu=config.get("quick_gelu", False))
    return stirred(model).eval()


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-B-32-quickgelu", "ViT-H-14", "ViT-H-14-quickgelu", "ViT-g-14",
                                  "ViT-bigG-14"])
def test_features_equal_open_clip(open_clip, name):
    theirs = shallow(open_clip, name)
    state = theirs.state_dict()
    ours = clip.CLIP.from_state_dict(state, find_kind(name).quick_gelu)
    tokens = torch.tensor([[398, 7, 8, 399, 0, 0, 0, 0], [398, 300, 5, 6, 7, 8, 9, 399]])
    side = ours.input_resolution
    with torch.no_grad():
        pixels = torch.randn(2, 3, side, side)
        for mine, expected in ((ours.encode_image(pixels, normalised=True), theirs.encode_image(pixels)),
                               (ours.encode_text(tokens), theirs.encode_text(tokens))):
            torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-4)
        other = clip.CLIP.from_state_dict(state, not find_kind(name).quick_gelu).encode_text(tokens)
        assert ours.state_dict().keys() == state.keys() and torch.equal(ours.logit_scale, theirs.logit_scale)
        assert (other - expected).abs().max() > 1e-3  # the activation counts


def test_the_table_is_open_clips(open_clip):
    """Size of every model and width of its heads; address, digits, activation and colours of every published file."""
    for name, sizes in MODELS.items():
        config = open_clip.get_model_config(name)
        vision = config["vision_cfg"]
        layers = tuple(vision["layers"]) if isinstance(vision["layers"], list) else vision["layers"]
        assert sizes == (layers, vision["width"], vision["patch_size"], vision["image_size"]), name
        assert config["text_cfg"]["width"] // config["text_cfg"]["heads"] == 64, name
        if vision["patch_size"]:
            assert WIDER_HEADS.get(vision["width"], HEAD_WIDTH) == vision.get("head_width", 64), name
    released = {f"{model}/openai" for model in ("RN50", "ViT-B-32", "ViT-B-16", "ViT-L-14-336")}
    for name in GELU_FILES | QUICK_GELU_FILES | dict.fromkeys(released):
        model, tag = name.split("/")
        theirs = open_clip.pretrained.get_pretrained_cfg(model, tag)
        kind = find_kind(name)
        assert (kind.name, kind.model) == (name, model)
        assert kind.quick_gelu == theirs.get("quick_gelu", False), name
        assert (kind.pixel_mean, kind.pixel_std) == (theirs["mean"], theirs["std"]), name
        assert kind.url == theirs["url"] or theirs["hf_hub"].strip("/") in kind.url, name
        assert not kind.sha256 or theirs["url"].find(kind.sha256) > 0, name
        assert kind.sha256 or "mlfoundations" not in kind.url, name


def test_names():
    assert find_kind("ViT-B-16/laion2b") == find_kind("ViT-B-16/laion2b_s34b_b88k")
    assert find_kind("ViT-B/16") == find_kind("ViT-B-16/openai") and find_kind("ViT-B/16").quick_gelu
    assert find_kind("ViT-L/14@336px").model == "ViT-L-14-336"
    assert not find_kind("ViT-B-16").quick_gelu and find_kind("ViT-B-16" + QUICK).quick_gelu
    for name, message in (("ViT-B-32/laion2b", "2 weights; the names are .*laion2b_e16, .*s34b_b79k"),
                          ("ViT-B-16/none", "no weights; the names are ViT-B-16/laion400m_e31, .*openai"),
                          ("ViT-B-16-quickgelu/laion2b", "no weights; ViT-B-16/laion2b_s34b_b88k has GELU"),
                          ("RN50", "RN50 may be OpenAI's, which is RN50/openai here, or open_clip's RN50, whose"),
                          ("coca_ViT-B-32/laion2b", "no CLIP is called coca"), ("", "no CLIP")):
        with pytest.raises(ValueError, match=message):
            find_kind(name)


@pytest.mark.parametrize("form", ["plain", "training", "safetensors"])
def test_files_of_open_clip(open_clip, tmp_path, form):
    """A plain state dict, a checkpoint of its training, safetensors: only with their kind, then open_clip's features."""
    theirs = shallow(open_clip, "ViT-B-16")
    state = theirs.state_dict()
    path = tmp_path / "open_clip_pytorch_model.bin"
    if form == "training":
        optimizer = torch.optim.AdamW(theirs.parameters())
        state = {"epoch": 32, "name": "2023_01_01-model_ViT-B-16", "optimizer": optimizer.state_dict(),
                 "state_dict": {f"module.{name}": value for name, value in state.items()},
                 "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7}}
    if form == "safetensors":
        path = tmp_path / "open_clip_model.safetensors"
        pytest.importorskip("safetensors.torch").save_file(state, path)
    else:
        torch.save(state, path)
    with pytest.raises(InputError, match=f"^{path}: tensors do not tell the activation of a CLIP; .*--clip-model"):
        load_clip(str(path), CPU)
    with pytest.raises(InputError, match=f"^{path}: its sizes are those of another model, not of ViT-B-16; change"):
        load_clip(str(path), CPU, model="ViT-B-16/laion2b_s34b_b88k")
    ours = load_clip(str(path), CPU, model="gelu")
    with torch.no_grad():
        pixels = torch.randn(1, 3, 32, 32)
        torch.testing.assert_close(ours.encode_image(pixels, normalised=True), theirs.encode_image(pixels),
                                   atol=1e-4, rtol=1e-4)


def test_published_weights_by_name(open_clip, tmp_path, monkeypatch):
    """A name of open_clip downloads its file under a name of its own, with its activation and colours."""
    state = shallow(open_clip, "ViT-L-14").state_dict()
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    name = "ViT-L-14/laion2b_s32b_b82k"
    monkeypatch.setitem(GELU_FILES, name, (tmp_path / "open_clip_pytorch_model.bin").as_uri())
    monkeypatch.setitem(MODELS, "ViT-L-14", (1, 1024, 14, 28))
    for _ in range(2):
        ours = load_clip("ViT-L-14/laion2b", CPU, tmp_path / "cache")
        (tmp_path / "open_clip_pytorch_model.bin").unlink(missing_ok=True)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["ViT-L-14-laion2b_s32b_b82k.bin"]
    assert not ours.visual.transformer.resblocks[0].quick_gelu and not ours.transformer.resblocks[0].quick_gelu
    assert ours.normalise(torch.ones(1, 3, 1, 1)).eq(1).all()
    with pytest.raises(InputError, match="ViT-B-16 is neither a file nor .*a model of open_clip; name its weights"):
        load_clip("ViT-B-16", CPU)
    with pytest.raises(InputError, match="--clip-model ViT-B-16: only a file needs it, and --clip ViT-B/16 names none"):
        load_clip("ViT-B/16", CPU, model="ViT-B-16")


def test_wide_towers_need_an_activation(open_clip, tmp_path):
    state = shallow(open_clip, "ViT-H-14").state_dict()
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(InputError, match="tensors do not tell the activation of a CLIP; name its kind by --clip-model"):
        load_clip(str(tmp_path / "open_clip_pytorch_model.bin"), CPU)
    with pytest.raises(ValueError, match="OpenAI has published no CLIP with 1280 channels"):
        clip.CLIP.from_state_dict(state)
    state["visual.conv1.weight"] = torch.zeros(100, 3, 14, 14)
    with pytest.raises(ValueError, match="heads of a tower of 100 channels is not known"):
        clip.CLIP.from_state_dict(state, quick_gelu=False)


def test_texts_for_another_tokenizer_are_refused(open_clip, tmp_path):
    """As those of MetaCLIP 2, whose tensors have the names of OpenAI's, and its image tower the sizes of ViT-H-14."""
    assert len(byte_pairs().symbols) == VOCABULARY
    torch.save(shallow(open_clip, "ViT-B-16", VOCABULARY + 1).state_dict(), tmp_path / "worldwide.bin")
    with pytest.raises(InputError, match="worldwide.bin: the vocabulary has 49409 tokens, .* has 49408: CLIPs of another"):
        load_clip(str(tmp_path / "worldwide.bin"), CPU, model="gelu")
