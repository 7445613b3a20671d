"""CLIP's weights from archives and state dicts, by published name too; files that must be refused."""
import hashlib
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from clipwsss import clip
from clipwsss.errors import InputError
from clipwsss.guidance.regions import load_clip

CPU = torch.device("cpu")


def tiny_clip() -> clip.CLIP:
    torch.manual_seed(0)
    return clip.CLIP(clip.Architecture(32, 32, (1, 1, 1, 1), 8, None, 16, 300, 64, 1, 1)).eval()


def half_state(model: clip.CLIP) -> dict[str, torch.Tensor]:
    return {name: value.half() if value.is_floating_point() else value
            for name, value in model.state_dict().items()}


def assert_same(loaded: clip.CLIP, model: clip.CLIP) -> None:
    """Weights equal to the model's after rounding to half precision, frozen, and ready to use."""
    expected, weights = half_state(model), loaded.state_dict()
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(value.to(weights[name].dtype)) for name, value in expected.items())
    assert not loaded.training
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in loaded.parameters())
    images, tokens = torch.rand(2, 3, 32, 32), torch.tensor([[5, 7, 299, 0]])
    rounded = clip.CLIP.from_state_dict(half_state(model))
    torch.testing.assert_close(loaded.encode_image(images), rounded.encode_image(images))
    torch.testing.assert_close(loaded.encode_text(tokens), rounded.encode_text(tokens))


@pytest.fixture
def archive(tmp_path) -> Path:
    """A TorchScript archive as OpenAI's: traced, half precision, with its three sizes kept as scalar tensors."""
    model = tiny_clip()
    for name, size in (("input_resolution", 32), ("context_length", 16), ("vocab_size", 300)):
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated and notes every size that becomes a constant
        inputs = torch.rand(1, 3, 32, 32), torch.tensor([[5, 299, 0]])
        traced = torch.jit.trace(model, inputs, check_trace=False)
        traced.half().save(str(tmp_path / "archive.pt"))
    return tmp_path / "archive.pt"


def test_archive_is_read_for_its_tensors_alone(archive, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("an archive must be read without TorchScript or torch.load")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        scripted = torch.jit.load(str(archive)).state_dict()
    assert scripted["visual.conv1.weight"].dtype == torch.float16 and "input_resolution" in scripted
    monkeypatch.setattr(torch.jit, "load", forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    assert_same(load_clip(str(archive), CPU), tiny_clip())
    tensors = clip.read_archive(archive)
    assert tensors.keys() == scripted.keys()
    assert all(tensors[name].equal(value) for name, value in scripted.items())


class Gadget:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def with_pickle(archive: Path, content: bytes) -> Path:
    """The archive with another data.pkl."""
    target = archive.with_name("altered.pt")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            copy.writestr(name, content if name.endswith("/data.pkl") else source.read(name))
    return target


def test_archive_with_code_is_refused(archive, tmp_path):
    mark = tmp_path / "executed"
    code = f"__import__('os').mkdir({str(mark)!r})"
    for function, argument, named in ((os.mkdir, str(mark), r"(posix|nt)\.mkdir"), (eval, code, "__builtin__.eval"),
                                      (getattr, str(mark), "__builtin__.getattr"),
                                      (torch.hub.load, str(mark), "torch.hub.load"),
                                      (torch.load, str(mark), "torch.serialization.load")):
        altered = with_pickle(archive, pickle.dumps({"weights": Gadget(function, argument)}, protocol=2))
        message = f"^{re.escape(str(altered))}: .*its pickle asks for {named}, .*refused"
        with pytest.raises(InputError, match=message):
            load_clip(str(altered), CPU)
        assert not mark.exists(), named


def test_archive_cannot_reach_outside_its_storages(archive):
    with zipfile.ZipFile(archive) as source:
        content = source.read("archive/data.pkl")
    storage = re.search(rb"X\x01\x00\x00\x00(0)", content)  # the key of the first storage
    altered = with_pickle(archive, content[:storage.start(1)] + b"Z" + content[storage.end(1):])
    with pytest.raises(InputError, match="no item named 'archive/data/Z'"):
        load_clip(str(altered), CPU)


def test_state_dict_with_code_is_refused(tmp_path):
    mark = tmp_path / "executed"
    path = tmp_path / "bad.pt"
    torch.save({"weights": Gadget(os.mkdir, str(mark))}, path)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: not a readable checkpoint"):
        load_clip(str(path), CPU)
    path.write_bytes(pickle.dumps({"weights": Gadget(os.mkdir, str(mark))}, protocol=2))
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: not a readable checkpoint"):
        load_clip(str(path), CPU)
    assert not mark.exists()


def test_state_dicts(tmp_path):
    model = tiny_clip()
    state = half_state(model)
    sizes = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16)}
    for content in (state, {"state_dict": state, "epoch": 3}, {**state, **sizes},
                    {"state_dict": {f"module.{name}": value for name, value in state.items()}}):
        torch.save(content, tmp_path / "weights.pt")
        assert_same(load_clip(str(tmp_path / "weights.pt"), CPU, model="quickgelu"), model)


def test_wrong_files(tmp_path):
    path = tmp_path / "wrong.pt"
    torch.save(torch.zeros(3), path)
    tensor = path.read_bytes()
    for content, message in (
            (b"", "not a readable checkpoint"), (b"not a checkpoint", "not a readable checkpoint"),
            (tensor, "not a checkpoint but a Tensor"),
            ({"state_dict": {"epoch": 3}}, "not the weights of a CLIP .*int"),
            ({"weight": torch.zeros(3)}, "CLIP .tensor 'visual.layer1.0.conv1.weight' is missing"),
            ({"state_dict": {**tiny_clip().state_dict(), "head": torch.zeros(3)}}, 'CLIP .Unexpected key.* "head"')):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(InputError, match=f"^{re.escape(str(path))}: .*{message}") as caught:
            load_clip(str(path), CPU)
        assert "\n" not in str(caught.value)


def test_truncated_files(archive, tmp_path):
    torch.save(tiny_clip().state_dict(), tmp_path / "plain.pt")
    for path in (archive, tmp_path / "plain.pt"):
        content = path.read_bytes()
        for share in (0.3, 0.9):
            path.write_bytes(content[:int(share * len(content))])
            with pytest.raises(InputError, match=f"^{re.escape(str(path))}: not a readable checkpoint") as caught:
                load_clip(str(path), CPU)
            assert "\n" not in str(caught.value)


def test_missing_file_lists_the_names(tmp_path):
    with pytest.raises(InputError, match=r"ViT-B32 is neither a file nor .* \(RN50, .*ViT-B/32"):
        load_clip("ViT-B32", CPU)
    with pytest.raises(InputError, match="is neither a file"):
        load_clip(str(tmp_path), CPU)


def test_a_published_name_is_downloaded_into_the_cache(tmp_path, monkeypatch):
    torch.save(half_state(tiny_clip()), tmp_path / "RN50.pt")
    sha256 = hashlib.sha256((tmp_path / "RN50.pt").read_bytes()).hexdigest()
    monkeypatch.setitem(clip.CLIP_RELEASE, "RN50", ((tmp_path / "RN50.pt").as_uri(), sha256))
    assert_same(load_clip("RN50", CPU, tmp_path / "cache"), tiny_clip())
    (tmp_path / "RN50.pt").unlink()
    assert_same(load_clip("RN50", CPU, tmp_path / "cache"), tiny_clip())
    (tmp_path / "cache" / "RN50.pt").write_bytes(b"something else")
    with pytest.raises(InputError, match="cache/RN50.pt: damaged or another file"):
        load_clip("RN50", CPU, tmp_path / "cache")


def test_the_release_has_nine_files_whose_urls_hold_their_sha256():
    assert len(clip.CLIP_RELEASE) == 9
    for url, sha256 in clip.CLIP_RELEASE.values():
        assert re.fullmatch(r"[0-9a-f]{64}", sha256)
        assert re.fullmatch(rf"https://openaipublic\.azureedge\.net/clip/models/{sha256}/[\w-]+\.pt", url)


def test_rn50_weights_load_by_name(tmp_path, monkeypatch):
    """The whole RN50 from a cache folder: same features as the open_clip model whose weights these are."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    with torch.device("meta"):
        theirs = open_clip.CLIP(**open_clip.get_model_config("RN50-quickgelu"))
    theirs = theirs.to_empty(device="cpu").eval()
    noise = 0.02 * torch.randn(2 ** 25 + 1).half()  # larger than the largest tensor
    state = theirs.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            state[name] = noise[-value.numel():].view(value.shape).clone()
        if name.endswith("running_var"):
            state[name].fill_(0.1)
        if name.endswith("num_batches_tracked"):
            value.zero_()
    theirs.load_state_dict(state)
    path = tmp_path / "RN50.pt"
    torch.save(state, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(clip.CLIP_RELEASE, "RN50", (path.as_uri(), sha256))
    ours = load_clip("RN50", CPU, tmp_path)
    path.unlink()
    tokens = clip.tokenize(["a dog", "a photo of a cat"])
    theirs.attn_mask = ours.positional_embedding.new_full((77, 77), float("-inf")).triu(1)
    with torch.no_grad():
        expected = theirs.encode_text(tokens)
        assert expected.std() > 1e-3
        torch.testing.assert_close(ours.encode_text(tokens), expected, atol=1e-4, rtol=1e-4)
        pixels = torch.randn(1, 3, 224, 224)
        torch.testing.assert_close(ours.encode_image(pixels, normalised=True), theirs.encode_image(pixels),
                                   atol=1e-4, rtol=1e-4)
