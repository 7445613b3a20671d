"""OpenAI's CLIP weights: where they are published, and a reader of their archives that runs no code."""
import functools
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

# OpenAI's release (github.com/openai/CLIP).
SOURCE = "https://openaipublic.azureedge.net/clip/models"
RELEASED_FILES = {  # name: SHA-256, file name
    "RN50": ("afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", "RN50.pt"),
    "RN101": ("8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599", "RN101.pt"),
    "RN50x4": ("7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd", "RN50x4.pt"),
    "RN50x16": ("52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa", "RN50x16.pt"),
    "RN50x64": ("be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c", "RN50x64.pt"),
    "ViT-B/32": ("40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "ViT-B-32.pt"),
    "ViT-B/16": ("5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "ViT-B-16.pt"),
    "ViT-L/14": ("b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "ViT-L-14.pt"),
    "ViT-L/14@336px": ("3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
                       "ViT-L-14-336px.pt"),
}
# name: URL, SHA-256
CLIP_RELEASE = {name: (f"{SOURCE}/{sha256}/{file}", sha256)
                for name, (sha256, file) in RELEASED_FILES.items()}


def is_archive(path: Path | str) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI's are, and not damaged at its end."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # no zip file, or one whose table of contents is damaged
        return False


def read_archive(path: Path | str) -> dict[str, Tensor]:
    """The state dict of a TorchScript archive, read as tensors alone: no stored code is run.

    ValueError: a damaged archive, or one whose pickle asks for anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = archive.namelist()[0].split("/")[0]
            return _read_tensors(archive, root)
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:120]
        raise ValueError(f"no CLIP checkpoint or a damaged one ({reason})") from error


class _StoredTensor(tuple):
    """((key, dtype), offset, size, stride) of a tensor in an archive, which no pickle opcode can alter."""


# What an archive's pickle may name, and what replaces it here.
ADMITTED = {"torch.HalfStorage": torch.float16, "torch.BFloat16Storage": torch.bfloat16,
            "torch.FloatStorage": torch.float32, "torch.DoubleStorage": torch.float64,
            "torch.BoolStorage": torch.bool, "torch.ByteStorage": torch.uint8,
            "torch.CharStorage": torch.int8, "torch.ShortStorage": torch.int16,
            "torch.IntStorage": torch.int32, "torch.LongStorage": torch.int64,
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": lambda *arguments: _StoredTensor(arguments[:4])}


class _ArchiveUnpickler(pickle.Unpickler):
    """Reads data.pkl: modules become objects with attributes, tensors _StoredTensor; all else is refused."""

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


def _read_tensors(archive: zipfile.ZipFile, root: str) -> dict[str, Tensor]:
    """Names and tensors of a TorchScript archive, found among the attributes of its modules."""
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
