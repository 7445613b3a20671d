"""Files appear whole or not at all; checkpoints come back, and a wrong one is one clear line."""
import argparse
import json
import os
import pathlib
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from clipwsss.errors import InputError
from clipwsss.files import (atomic_path, existing, load_weights, load_weights_into, nfc, read_json, read_network,
                            read_text, save_network, to_json, utf8_name, write_json, write_text)


class Code:
    """A pickled class: what a checkpoint must not hold."""


@pytest.mark.smoke
def test_atomic_path_leaves_nothing_half_written(tmp_path):
    target = tmp_path / "folder" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_json_is_readable_and_knows_paths(tmp_path):
    write_json({"out": tmp_path, "lr": 0.1}, tmp_path / "args.json")
    assert json.loads((tmp_path / "args.json").read_text()) == {"out": str(tmp_path), "lr": 0.1}
    assert (tmp_path / "args.json").read_text().count("\n") == 4


def test_bad_checkpoints_are_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        load_weights(tmp_path / "none.pt")
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(InputError, match="torn.pt: not a readable checkpoint"):
        load_weights(tmp_path / "torn.pt")
    torch.save(Code(), tmp_path / "code.pt")
    with pytest.raises(InputError, match="code.pt: not a readable checkpoint") as caught:
        load_weights(tmp_path / "code.pt")
    assert "\n" not in str(caught.value)
    torch.save(torch.zeros(2), tmp_path / "tensor.pt")
    with pytest.raises(InputError, match="tensor.pt: not a checkpoint but a Tensor"):
        load_weights(tmp_path / "tensor.pt")
    torch.save({"state_dict": {3: torch.zeros(2)}}, tmp_path / "number.pt")
    with pytest.raises(InputError, match="number.pt: not a checkpoint; 3 is not a tensor's name"):
        load_weights(tmp_path / "number.pt")


def other_names(path, target, names):
    """Copy a checkpoint and replace names of modules in its pickle, as another version of NumPy writes them."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for item in source.namelist():
            content = source.read(item)
            if item.endswith("data.pkl"):
                for old, new in names.items():
                    assert old in content
                    content = content.replace(old, new)
            copy.writestr(item, content)


def test_values_of_published_checkpoints_load_and_code_beside_them_does_not(tmp_path):
    # WeakTr's main.py and SemPLeS' store the best mIoU as NumPy computed it; DeiT's main.py its arguments.
    stored = {"model": {"head.bias": torch.ones(2)}, "epoch": 59, "miou": np.float64(65.9), "steps": np.int64(7),
              "train_stats": {"loss": np.float32(0.5)}, "seen": np.bool_(True),
              "args": argparse.Namespace(lr=5e-4, output_dir=pathlib.Path("runs") / "a", data=None)}
    torch.save(stored, tmp_path / "a.pth")
    other_names(tmp_path / "a.pth", tmp_path / "numpy1.pth", {b"numpy._core": b"numpy.core"})
    posix = type(pathlib.Path()).__module__.encode() + b"\n" + type(pathlib.Path()).__name__.encode()
    other_names(tmp_path / "a.pth", tmp_path / "python313.pth", {posix: b"pathlib._local\nPosixPath"})
    other_names(tmp_path / "a.pth", tmp_path / "windows.pth", {posix: b"pathlib\nWindowsPath"})
    for name in ("a", "numpy1", "python313", "windows"):
        loaded = load_weights(tmp_path / f"{name}.pth")
        assert torch.equal(loaded["model"]["head.bias"], torch.ones(2)) and loaded["miou"] == 65.9, name
        assert loaded["steps"] == 7 and loaded["train_stats"] == {"loss": 0.5} and loaded["seen"], name
        assert loaded["args"].lr == 5e-4 and loaded["args"].output_dir.parts == ("runs", "a"), name
    for value in (Code(), Code, np.zeros(2), [print]):
        torch.save(stored | {"args": argparse.Namespace(hook=value)}, tmp_path / "code.pth")
        with pytest.raises(InputError, match="code.pth: not a readable checkpoint"):
            load_weights(tmp_path / "code.pth")


def test_the_prefix_module_is_removed(tmp_path):
    state = {"module.conv.weight": torch.zeros(1), "fc.module.bias": torch.zeros(1)}
    names = ["conv.weight", "fc.module.bias"]
    for content, part in ((state, None), ({"state_dict": state, "epoch": 3}, "state_dict"), ({"model": state}, "model")):
        torch.save(content, tmp_path / "a.pt")
        stored = load_weights(tmp_path / "a.pt")
        assert list(stored[part] if part else stored) == names, part


def network(width: int = 3, scale: float = 1.0) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Dropout(0.5))


def test_a_network_comes_back_from_its_arguments_and_weights(tmp_path):
    saved = network(4).train()
    saved(torch.rand(5, 2))  # batch norm's statistics are not neutral any more
    save_network(saved, "test network", {"width": 4}, tmp_path / "new" / "network.pt")
    config, state = read_network(tmp_path / "new" / "network.pt", "test network")
    assert config == {"width": 4} and state.keys() == saved.state_dict().keys()
    loaded = network(**config)
    load_weights_into(loaded, state, tmp_path / "new" / "network.pt")
    points = torch.rand(3, 2)
    assert torch.equal(loaded.eval()(points), saved.eval()(points))


def test_another_kind_and_another_file_are_named(tmp_path):
    save_network(network(), "generator", {}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a.pt: another kind of checkpoint; expected: segmenter, found: generator$"):
        read_network(tmp_path / "a.pt", "segmenter")
    torch.save(network().state_dict(), tmp_path / "plain.pt")
    with pytest.raises(InputError, match="plain.pt: not a checkpoint of this package; expected: segmenter"):
        read_network(tmp_path / "plain.pt", "segmenter")
    with pytest.raises(InputError, match="none.pt: no such checkpoint"):
        read_network(tmp_path / "none.pt", "segmenter")


def test_weights_that_do_not_fit_are_one_line(tmp_path):
    right = network().state_dict()
    without_bias = {name: value for name, value in right.items() if name != "0.bias"}
    for state, message in ((without_bias, r'Missing key.*"0.bias"'),
                           ({**right, "extra": torch.ones(1)}, r'Unexpected key.*"extra"'),
                           ({**right, "0.bias": torch.ones(9)}, "size mismatch for 0.bias"),
                           ({**right, "0.bias": "text"}, "")):
        with pytest.raises(InputError, match=f"a.pt: not the weights of a test network .{message}") as caught:
            load_weights_into(network(), state, tmp_path / "a.pt", "test network")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
        with pytest.raises(InputError, match="a.pt: not the weights of a Sequential "):
            load_weights_into(network(), state, tmp_path / "a.pt")


def test_text_is_utf8_whatever_the_locale_is(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    write_text("naïve 猫\r\n\udce9\n", path)  # the last name is one that the locale could not decode
    assert path.read_bytes() == "naïve 猫\r\n".encode() + b"\xe9\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):  # spreadsheets and editors write the latter two
        path.write_bytes("猫\r\ncat\n".encode(encoding))
        assert read_text(path) == "猫\ncat\n", encoding
    path.write_bytes("小狗".encode("gbk"))
    with pytest.raises(InputError, match=r"a.txt: not readable as UTF-8 text \(.*\); save it with that encoding$"):
        read_text(path)
    for wrong, told in ((tmp_path / "none", "none: no such file"), (tmp_path, "not readable as text")):
        with pytest.raises(InputError, match=told):
            read_text(wrong)
    for text in ("{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(InputError, match="a.txt: not a readable JSON file"):
            read_json(path)


def test_json_has_null_where_there_is_no_number(tmp_path):
    figures = {"miou": float("nan"), "curve": (np.float32(0.5), np.float64("inf"), torch.tensor(float("nan")), np.int64(3))}
    assert json.loads(to_json(figures)) == {"miou": None, "curve": [0.5, None, None, 3]}
    write_json(figures, tmp_path / "a.json")
    assert "NaN" not in (tmp_path / "a.json").read_text() and read_json(tmp_path / "a.json")["miou"] is None
    (tmp_path / "a.json").write_text("[NaN, -Infinity, 1]")
    assert read_json(tmp_path / "a.json") == [None, None, 1]


def test_files_are_found_in_another_spelling(tmp_path):
    composed, apart = "café.v2 x.png", "cafe\u0301.v2 x.png"
    assert nfc(apart) == composed and utf8_name(apart) == composed
    (tmp_path / apart.replace(".png", ".PNG")).touch()
    assert existing(tmp_path / composed).name == apart.replace(".png", ".PNG")
    assert existing(tmp_path / "none.png") == tmp_path / "none.png"


def test_text_that_is_no_text_and_names_that_no_encoding_knows(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes("image,labels".encode("utf-16-le"))  # without its mark
    with pytest.raises(InputError, match="labels.csv: not readable as UTF-8 text .it holds zero bytes"):
        read_text(path)
    name = os.fsdecode(b"caf\xe9.jpg")
    write_text(name, path)
    assert path.read_bytes() == b"caf\xe9.jpg" and read_text(path, errors="surrogateescape") == name
