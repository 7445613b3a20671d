"""Published weights: the one downloader, and the files that networks start from."""
import hashlib
import http.client
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from .errors import InputError
from .files import load_weights, load_weights_into


def download(url: str, sha256_prefix: str, folder: Path | str | None = None) -> Path:
    """The file of a URL in `folder` (default: torch hub's checkpoint folder), downloaded if it is missing.

    The file's SHA-256 must begin with `sha256_prefix`. InputError: the file or the download is damaged.
    FileNotFoundError: the URL cannot be reached. Both messages name the URL and the path of the file.
    """
    folder = Path(folder).expanduser() if folder else Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rpartition("/")[2]
    if path.is_file():
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if not sha256.startswith(sha256_prefix):
            raise InputError(f"{path}: damaged or another file (its SHA-256 does not begin with "
                             f"{sha256_prefix}); delete it, or replace it by {url}")
        return path
    print(f"downloading {url} to {path}", file=sys.stderr)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), sha256_prefix, progress=sys.stderr.isatty())
    except (OSError, http.client.HTTPException) as error:
        raise FileNotFoundError(f"{url}: not downloaded ({error}); download it elsewhere and save it as "
                                f"{path}") from None
    except RuntimeError as error:  # the SHA-256 is another one
        raise InputError(f"{url}: the download is damaged ({error}); try again, or download it elsewhere and "
                         f"save it as {path}") from None
    return path


def start_file(weights: str | Path, backbone: str, published: Mapping[str, tuple[str, str]]) -> Path:
    """The file that a backbone starts from: its ImageNet weights for `imagenet`, else the path `weights`.

    published: (URL, first digits of the SHA-256) by backbone. InputError: a backbone without published
    weights, or no such file. Errors of `download` pass through.
    """
    if str(weights) == "imagenet":
        if backbone not in published:
            raise InputError(f"--weights imagenet: {backbone} has no ImageNet weights; use none or a file")
        return download(*published[backbone])
    if not Path(weights).is_file():
        raise InputError(f"--weights {weights}: no such file; use imagenet, none or a file of weights")
    return Path(weights)


def load_backbone(network: nn.Module, weights: str | Path, backbone: str,
                  published: Mapping[str, tuple[str, str]]) -> None:
    """Load the weights that a ResNet starts from; `none` keeps its random weights.

    weights: `imagenet`, `none`, a file of torchvision, or a checkpoint of this package whose network has a
    `backbone` of this kind. InputError: a file that is missing, damaged or does not fit. FileNotFoundError: a
    download that fails.
    """
    if str(weights) == "none":
        return
    path = start_file(weights, backbone, published)
    state = load_weights(path)
    if "state_dict" in state:  # a checkpoint of this package
        state = {name.removeprefix("backbone."): value for name, value in state["state_dict"].items()
                 if name.startswith("backbone.")}
        if not state:
            raise InputError(f"--weights {path}: its network has no ResNet as backbone; use imagenet, none "
                             "or another file")
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}  # the classifier
    load_weights_into(network, state, path, backbone)
