"""Dictionaries that others' scripts pickle into .npy files, read without running code.

IRN's and PSA's CAM files are such files, and the class labels that IRN's, CLIMS' and WeakTr's releases hold.
"""
import io
import pickle
import re
from pathlib import Path

import numpy as np
import torch

from .errors import InputError, one_line


def read_dictionary(path: Path | str) -> dict:
    """The dictionary in an .npy file that holds one pickled object; its arrays and tensors are kept as such.

    InputError, which does not name the file: it holds another array or object, or its pickle asks for
    anything but arrays, tensors and plain values. A damaged file may raise any error.
    """
    formats = np.lib.format
    with open(path, "rb") as file:
        version = formats.read_magic(file)
        header = formats.read_array_header_1_0 if version == (1, 0) else formats.read_array_header_2_0
        shape, _, dtype = header(file)
        if not dtype.hasobject or shape != ():
            raise InputError(f"an array {list(shape)} of {dtype}, not a dictionary")
        contents = _TensorUnpickler(file).load().value
    if not isinstance(contents, dict):
        raise InputError(f"holds a {type(contents).__name__}, not a dictionary")
    return {key: value.value if isinstance(value, _Array) else value for key, value in contents.items()}


def read_class_labels(path: Path | str, n_classes: int) -> dict[str, tuple[int, ...]]:
    """Image -> its 0-based classes, from a pickled dictionary: image -> array [n_classes] of 0 and 1.

    An image is called by a name or a number. InputError: a damaged file, or one that holds something else.
    """
    try:
        contents = read_dictionary(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise InputError(f"{path}: not a readable file of class labels ({one_line(error)})") from error
    labels = {}
    for image, marks in contents.items():
        if not isinstance(image, str | int | np.integer):
            raise InputError(f"{path}: an image is called by a {type(image).__name__}, not by a name")
        fits = isinstance(marks, np.ndarray) and marks.shape == (n_classes,)
        if not fits or not np.isin(marks, (0, 1)).all():
            raise InputError(f"{path}: the labels of image {ascii(str(image))[:40]} are not {n_classes} "
                             "values of 0 and 1")
        labels[str(image)] = tuple(marks.nonzero()[0].tolist())
    return labels


class _Dtype:
    """Replaces numpy.dtype in a pickle: types of numbers, without its other state, which may be forged."""

    def __init__(self, code: str, *_: object):
        if not re.fullmatch(r"[biuf][1248]|O8?", code):
            raise pickle.UnpicklingError(f"an array of type {ascii(code)}")
        self.code = code
        self.order = "="

    def __setstate__(self, state: tuple) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")

    def read(self, data: bytes, shape: tuple, order: str = "C") -> np.ndarray:
        """The array of these bytes; ValueError if they do not fill the shape."""
        return np.frombuffer(data, self.order + self.code).reshape(shape, order=order).copy()


class _Array:
    """Replaces numpy.ndarray in a pickle; `value` is the array, or the object in a 0-d array of objects."""
    value: object = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if dtype.code[0] != "O":
            self.value = dtype.read(data, shape, "F" if fortran else "C")
        elif shape == () and len(data) == 1:
            self.value = data[0]
        else:
            raise pickle.UnpicklingError("an array of objects")


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays, torch tensors and plain values; every other name is refused before its look-up.

    numpy's own functions are not used, because a forged dtype makes them crash. The replacements are made
    anew for each file, because a pickle may set attributes of what it is given.
    """

    def __init__(self, file: io.BufferedIOBase):
        super().__init__(file)
        self.admitted = {
            "numpy.ndarray": _Array, "numpy.dtype": _Dtype, "collections.OrderedDict": dict,
            "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
            "numpy.core.multiarray.scalar": lambda dtype, data: dtype.read(data, ())[()],
            "numpy.core.numeric._frombuffer": lambda data, dtype, *rest: dtype.read(data, *rest),
            "_codecs.encode": lambda text, encoding: {"latin1": text}[encoding].encode("latin1"),
            "torch.storage._load_from_bytes":
                lambda data: torch.load(io.BytesIO(data), map_location="cpu", weights_only=True),
            "torch._utils._rebuild_tensor_v2":  # as_strided refuses what lies outside the storage
                lambda storage, offset, size, stride, *_:
                torch.empty(0, dtype=storage.dtype).set_(storage).as_strided(size, stride, offset)}

    def find_class(self, module: str, name: str) -> object:
        # numpy 2 renamed numpy.core to numpy._core; published files have both names.
        asked = f"{module.replace('numpy._core', 'numpy.core')}.{name}"
        if asked not in self.admitted:
            raise InputError(f"its pickle asks for {ascii(f'{module}.{name}')}; only numpy arrays and torch "
                             "tensors are admitted, so that it was not run")
        return self.admitted[asked]
