"""Short digests of files and folders: by them a result knows what it was made from."""
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

TAIL = 1 << 14  # bytes; where npz, PNG and torch's archives keep their contents' checksums


def digest(values: Iterable[object]) -> str:
    """16 hexadecimal digits of plain values."""
    made = hashlib.blake2b(digest_size=8)
    for value in values:
        made.update(repr(value).encode() + b"\n")
    return made.hexdigest()


def fingerprint(path: Path | str) -> str:
    """Digest of a file's size and end, or of a folder's visible files with their names; no times."""
    path = Path(path)
    if path.is_dir():
        inside = sorted(item for item in path.iterdir() if item.is_file() and not item.name.startswith("."))
        return digest((item.name, *_ends(item)) for item in inside)
    return digest(_ends(path))


def _ends(path: Path) -> tuple[int, bytes]:
    """A file's size and last bytes."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        return size, file.read()
