"""Weights by name (download, resume, refusal), from archives and state dicts; files that must be refused."""
import hashlib
import http.server
import io
import os
import pickle
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from clipwsss import clip
from clipwsss.clip import checkpoint


def tiny_clip() -> clip.CLIP:
    torch.manual_seed(0)
    return clip.CLIP(clip.Architecture(32, 32, (1, 1, 1, 1), 8, None, 16, 300, 64, 1, 1)).eval()


def half_state(model: clip.CLIP) -> dict[str, torch.Tensor]:
    return {name: value.half() if value.is_floating_point() else value
            for name, value in model.state_dict().items()}


def assert_same(loaded: clip.CLIP, model: clip.CLIP) -> None:
    """Weights equal to the model's after rounding to half precision, frozen, and ready to use."""
    expected, found = half_state(model), loaded.state_dict()
    assert found.keys() == expected.keys()
    assert all(found[name].equal(value.to(found[name].dtype)) for name, value in expected.items())
    assert not loaded.training
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in loaded.parameters())
    images, tokens = torch.rand(2, 3, 32, 32), torch.tensor([[5, 7, 299, 0]])
    rounded = clip.CLIP.from_state_dict(half_state(model))
    torch.testing.assert_close(loaded.encode_image(images), rounded.encode_image(images))
    torch.testing.assert_close(loaded.encode_text(tokens), rounded.encode_text(tokens))


@pytest.fixture
def archive(tmp_path) -> Path:
    """A TorchScript archive as OpenAI's: traced, half precision, with a size kept as a scalar tensor."""
    model = tiny_clip()
    del model.input_resolution
    model.register_buffer("input_resolution", torch.tensor(32))
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
    assert_same(clip.load(archive), tiny_clip())
    found = checkpoint.read_tensors(archive)
    assert found.keys() == scripted.keys()
    assert all(found[name].equal(value) for name, value in scripted.items())


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


@pytest.mark.parametrize("function, named", [
    (os.mkdir, r"(posix|nt)\.mkdir"), (eval, "__builtin__.eval"), (getattr, "__builtin__.getattr"),
    (torch.hub.load, "torch.hub.load"), (torch.load, "torch.serialization.load")])
def test_archive_with_code_is_refused(archive, tmp_path, function, named):
    mark = tmp_path / "executed"
    arguments = (f"__import__('os').mkdir({str(mark)!r})",) if function is eval else (str(mark),)
    altered = with_pickle(archive, pickle.dumps({"weights": Gadget(function, *arguments)}, protocol=2))
    message = f"^{re.escape(str(altered))}: .*its pickle asks for {named}, .*refused"
    with pytest.raises(clip.CheckpointError, match=message):
        clip.load(altered)
    assert not mark.exists()


def test_archive_cannot_reach_outside_its_storages(archive):
    with zipfile.ZipFile(archive) as source:
        content = source.read("archive/data.pkl")
    storage = re.search(rb"X\x01\x00\x00\x00(0)", content)  # the key of the first storage
    altered = with_pickle(archive, content[:storage.start(1)] + b"Z" + content[storage.end(1):])
    with pytest.raises(clip.CheckpointError, match="no item named 'archive/data/Z'"):
        clip.load(altered)


def test_state_dict_with_code_is_refused(tmp_path):
    mark, path = tmp_path / "executed", tmp_path / "bad.pt"
    torch.save({"weights": Gadget(os.mkdir, str(mark))}, path)
    with pytest.raises(clip.CheckpointError, match=f"^{re.escape(str(path))}: no CLIP checkpoint"):
        clip.load(path)
    path.write_bytes(pickle.dumps({"weights": Gadget(os.mkdir, str(mark))}, protocol=2))
    with pytest.raises(clip.CheckpointError, match=f"^{re.escape(str(path))}: no CLIP checkpoint"):
        clip.load(str(path))
    assert not mark.exists()


@pytest.mark.parametrize("wrapped", [
    lambda state: state, lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    lambda state: {**state, "input_resolution": torch.tensor(32), "context_length": torch.tensor(16)}])
def test_state_dicts(tmp_path, wrapped):
    model = tiny_clip()
    torch.save(wrapped(half_state(model)), tmp_path / "weights.pt")
    assert_same(clip.load(tmp_path / "weights.pt", device=torch.device("cpu")), model)


@pytest.mark.parametrize("content, message", [
    (b"", "no CLIP checkpoint or a damaged one"),
    (b"not a checkpoint", "no CLIP checkpoint or a damaged one"),
    (torch.zeros(3), "holds no state dict"), ({"state_dict": {"epoch": 3}}, "holds no state dict"),
    ({"weight": torch.zeros(3)}, "no CLIP weights: tensor 'visual.layer1.0.conv1.weight' is missing"),
    ({"state_dict": {**tiny_clip().state_dict(), "head": torch.zeros(3)}}, 'Unexpected key.* "head"')])
def test_wrong_files(tmp_path, content, message):
    path = tmp_path / "wrong.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(clip.CheckpointError, match=message) as caught:
        clip.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_files(archive, tmp_path, share):
    torch.save(tiny_clip().state_dict(), tmp_path / "plain.pt")
    for path in (archive, tmp_path / "plain.pt"):
        content = path.read_bytes()
        path.write_bytes(content[:int(share * len(content))])
        with pytest.raises(clip.CheckpointError, match="no CLIP checkpoint or a damaged one") as caught:
            clip.load(path)
        assert "\n" not in str(caught.value)


def test_missing_file_lists_the_names(tmp_path):
    with pytest.raises(clip.CheckpointError, match=r"ViT-B32 is neither a file nor .* \(RN50, .*ViT-B/32"):
        clip.load("ViT-B32")
    with pytest.raises(ValueError, match="is neither a file"):
        clip.load(tmp_path)
    assert len(checkpoint.PUBLISHED) == 9


class FileServer:
    """Serves one file with byte ranges, on request badly."""

    def __init__(self, content: bytes):
        self.content, self.ranges = content, []
        self.break_after: int | None = None
        self.knows_ranges = True
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/"

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        asked = request.headers["Range"]
        self.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.knows_ranges else 0
        if start >= len(self.content):
            return request.send_error(416)
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(self.content) - start))
        request.end_headers()
        request.wfile.write(self.content[start:self.break_after])


@pytest.fixture
def server(monkeypatch, tmp_path) -> Iterator[FileServer]:
    """A local source of "RN50", which is a tiny CLIP here."""
    buffer = io.BytesIO()
    torch.save(half_state(tiny_clip()), buffer)
    served = FileServer(buffer.getvalue())
    threading.Thread(target=served.server.serve_forever, daemon=True).start()
    monkeypatch.setattr(checkpoint, "SOURCE", served.address)
    monkeypatch.setitem(checkpoint.PUBLISHED, "RN50", f"{hashlib.sha256(served.content).hexdigest()}/RN50.pt")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield served
    served.server.shutdown()
    served.server.server_close()


def test_download_once(server, tmp_path, capfd):
    for _ in range(2):
        assert_same(clip.load("RN50", cache=tmp_path / "new" / "cache"), tiny_clip())
    assert server.ranges == [None]
    assert [path.name for path in (tmp_path / "new" / "cache").iterdir()] == ["RN50.pt"]
    assert re.fullmatch(r"downloading http\S+/RN50.pt \(\d MB\) to \S+RN50.pt.part\n", capfd.readouterr().err)


def test_default_cache_is_the_hub_folder(server, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    clip.load("RN50")
    assert (tmp_path / "hub" / "checkpoints" / "RN50.pt").read_bytes() == server.content


def test_broken_download_goes_on(server, tmp_path):
    size, half = len(server.content), len(server.content) // 2
    server.break_after = half
    with pytest.raises(clip.CheckpointError, match=f"the connection ended after {half} of {size} bytes"):
        clip.load("RN50", cache=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["RN50.pt.part"]
    server.break_after = None
    assert_same(clip.load("RN50", cache=tmp_path), tiny_clip())
    assert server.ranges == [None, f"bytes={half}-"]
    assert (tmp_path / "RN50.pt").read_bytes() == server.content


@pytest.mark.parametrize("knows_ranges, complete", [(False, False), (True, True)])
def test_resuming_where_the_server_cannot_or_need_not(server, tmp_path, knows_ranges, complete):
    server.knows_ranges = knows_ranges
    (tmp_path / "RN50.pt.part").write_bytes(server.content if complete else server.content[:1000])
    assert_same(clip.load("RN50", cache=tmp_path), tiny_clip())
    assert [path.name for path in tmp_path.iterdir()] == ["RN50.pt"]


def test_damaged_download_is_refused(server, tmp_path):
    right = server.content
    server.content = right[:5000] + bytes([right[5000] ^ 1]) + right[5001:]
    with pytest.raises(clip.CheckpointError, match=r"arrived with SHA-256 \w{64}, .*deleted: .*RN50.pt$"):
        clip.load("RN50", cache=tmp_path)
    assert not list(tmp_path.iterdir())
    server.content = right
    assert_same(clip.load("RN50", cache=tmp_path), tiny_clip())


def test_wrong_file_in_the_cache_is_refused_and_kept(server, tmp_path):
    (tmp_path / "RN50.pt").write_bytes(b"something else")
    with pytest.raises(clip.CheckpointError, match=r"RN50.pt is damaged or another file .*delete it .*http"):
        clip.load("RN50", cache=tmp_path)
    assert (tmp_path / "RN50.pt").read_bytes() == b"something else" and server.ranges == []


def test_offline_says_where_to_put_the_file(server, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SOURCE", "http://127.0.0.1:9/clip/")
    with pytest.raises(clip.CheckpointError) as caught:
        clip.load("ViT-B/32", cache=tmp_path)
    message = str(caught.value)
    assert "\n" not in message and f"as {tmp_path / 'ViT-B-32.pt'}" in message
    assert message.startswith("ViT-B/32 was not downloaded (")
    assert re.search(r"save http://127.0.0.1:9/clip/40d36571\w{56}/ViT-B-32.pt as", message)


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
    monkeypatch.setitem(checkpoint.PUBLISHED, "RN50", f"{checkpoint._sha256(path)}/RN50.pt")
    ours = clip.load("RN50", cache=tmp_path)
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
