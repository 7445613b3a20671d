"""CLIP weights by published name or from a file, read as tensors alone: no stored code ever runs."""
import functools
import hashlib
import http.client
import pickle
import sys
import urllib.error
import urllib.request
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from .model import CLIP

SOURCE = "https://openaipublic.azureedge.net/clip/models/"
PUBLISHED = {  # name: SHA-256 / file name, the end of its URL; from OpenAI's release (github.com/openai/CLIP)
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599/RN101.pt",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd/RN50x4.pt",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa/RN50x16.pt",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c/RN50x64.pt",
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
    "ViT-L/14@336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
}
class CheckpointError(ValueError):
    """Weights cannot be had or read; the message is one line that names the file and what would be right."""


def load(name_or_path: str | Path, device: str | torch.device = "cpu",
         cache: str | Path | None = None) -> CLIP:
    """A frozen CLIP (float32, eval) by published name, downloaded once into `cache`, or from a file.

    A file is OpenAI's TorchScript archive or a state dict of its names, bare or under "state_dict", perhaps
    with "module." before each, of a QuickGELU network. CheckpointError, one line, where it is none of these.
    """
    name = str(name_or_path)
    if name in PUBLISHED:
        path = fetch(name, Path(cache).expanduser() if cache else Path(torch.hub.get_dir()) / "checkpoints")
    else:
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise CheckpointError(f"{path} is neither a file nor a published CLIP ({', '.join(PUBLISHED)})")
    try:
        model = CLIP.from_state_dict(read_tensors(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return model.requires_grad_(False).to(device)


def fetch(name: str, folder: Path) -> Path:
    """The file of a published name in `folder`, downloaded if absent, on from where that stopped before."""
    url, sha256 = SOURCE + PUBLISHED[name], PUBLISHED[name].split("/")[0]
    target = folder / url.rsplit("/", 1)[1]
    if target.is_file():
        if _sha256(target) != sha256:
            raise CheckpointError(f"{target} is damaged or another file (SHA-256 is not {sha256}): "
                                  f"delete it to download it anew, or save {url} there")
        return target
    part = target.with_name(target.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _download(url, part)
    except (OSError, http.client.HTTPException) as error:
        raise CheckpointError(f"{name} was not downloaded ({error}): "
                              f"try again, or save {url} as {target}") from error
    if (received := _sha256(part)) != sha256:
        part.unlink()
        raise CheckpointError(f"{url} arrived with SHA-256 {received}, so it was deleted: "
                              f"try again, or save the right file as {target}")
    return part.replace(target)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, part: Path) -> None:
    """Complete `part` from `url`, asking only for what is missing; OSError when the connection ends early."""
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if done and error.code == 416:  # nothing lies behind these bytes: complete, as the SHA-256 will tell
            return
        raise
    with response, open(part, "ab" if response.status == 206 else "wb") as file:
        done = file.tell()
        total = done + int(response.headers["Content-Length"] or 0)
        print(f"downloading {url} ({total / 1e6:.0f} MB) to {part}", file=sys.stderr)
        while block := response.read(1 << 20):
            file.write(block)
            done += len(block)
            if sys.stderr.isatty():
                print(f"\r{done / 1e6:.0f} of {total / 1e6:.0f} MB", end="" if done < total else "\n",
                      file=sys.stderr, flush=True)
    if done < total:
        raise OSError(f"the connection ended after {done} of {total} bytes")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """State dict of a TorchScript archive or a file of plain tensors; ValueError for anything else."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                if any(name.endswith("/constants.pkl") for name in names):
                    return _read_archive(archive, names[0].split("/")[0])
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:120]
        raise ValueError(f"no CLIP checkpoint or a damaged one ({reason})") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("holds no state dict (names to tensors)")
    return {name.removeprefix("module."): value for name, value in state.items()}


class _StoredTensor(tuple):
    """(key, dtype), offset, size, stride of a tensor in an archive, which no pickle opcode can alter."""


# What an archive's pickle may name, and what stands for it here.
ADMITTED = {"torch.HalfStorage": torch.float16, "torch.BFloat16Storage": torch.bfloat16,
            "torch.FloatStorage": torch.float32, "torch.DoubleStorage": torch.float64,
            "torch.BoolStorage": torch.bool, "torch.ByteStorage": torch.uint8,
            "torch.CharStorage": torch.int8, "torch.ShortStorage": torch.int16,
            "torch.IntStorage": torch.int32, "torch.LongStorage": torch.int64,
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": lambda *arguments: _StoredTensor(arguments[:4])}


class _ArchiveUnpickler(pickle.Unpickler):
    """Reads data.pkl: classes become bags of attributes, tensors _StoredTensor; other globals are refused."""

    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] == "__torch__":
            return type("Attributes", (), {})
        if module == "torch.jit._pickle" and (name.startswith("build_") or name == "restore_type_tag"):
            return lambda value, *_: value
        if f"{module}.{name}" in ADMITTED:
            return ADMITTED[f"{module}.{name}"]
        raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}, which no weights need: refused")

    def persistent_load(self, pid: tuple) -> tuple[str, torch.dtype]:
        _, dtype, key, *_ = pid
        return key, dtype


def _read_archive(archive: zipfile.ZipFile, root: str) -> dict[str, Tensor]:
    """Names and tensors of a TorchScript archive, by walking its modules' attributes."""
    @functools.cache
    def storage(key: str, dtype: torch.dtype) -> Tensor:
        return torch.frombuffer(bytearray(archive.read(f"{root}/data/{key}")), dtype=dtype)

    def walk(module: object, prefix: str) -> dict[str, Tensor]:
        tensors = {}
        for name, value in vars(module).items():
            if isinstance(value, _StoredTensor):
                place, offset, size, stride = value
                tensors[prefix + name] = storage(*place).as_strided(size, stride, offset)
            elif type(value).__name__ == "Attributes":
                tensors.update(walk(value, f"{prefix}{name}."))
        return tensors

    with archive.open(f"{root}/data.pkl") as file:
        return walk(_ArchiveUnpickler(file).load(), "")
