"""Files appear whole or not at all; checkpoints come back, and a wrong one is one clear line."""
import json

import pytest
import torch
from torch import nn

from clipwsss.errors import InputError
from clipwsss.files import (atomic_path, load_weights_into, load_network, load_weights, read_network, save_network,
                            write_json)


class Code:
    """A pickled class: what a checkpoint must not hold."""


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


def network(width: int = 3, scale: float = 1.0) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Dropout(0.5))


def test_a_network_comes_back_from_its_arguments_and_weights(tmp_path):
    saved = network(4).train()
    saved(torch.rand(5, 2))  # batch norm's statistics are not neutral any more
    save_network(saved, "test network", {"width": 4}, tmp_path / "new" / "network.pt")
    loaded = load_network(tmp_path / "new" / "network.pt", "test network", network)
    assert not loaded.training and saved.training
    points = torch.rand(3, 2)
    assert torch.equal(loaded(points), saved.eval()(points))
    config, state = read_network(tmp_path / "new" / "network.pt", "test network")
    assert config == {"width": 4} and state.keys() == saved.state_dict().keys()


def test_another_kind_and_another_file_are_named(tmp_path):
    save_network(network(), "generator", {}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a.pt: holds: generator; wanted here: segmenter$"):
        load_network(tmp_path / "a.pt", "segmenter", network)
    torch.save(network().state_dict(), tmp_path / "plain.pt")
    with pytest.raises(InputError, match="plain.pt: is no checkpoint of these scripts; wanted here: segm"):
        read_network(tmp_path / "plain.pt", "segmenter")
    with pytest.raises(InputError, match="none.pt: no such checkpoint"):
        load_network(tmp_path / "none.pt", "segmenter", network)


@pytest.mark.parametrize("change, message", [
    (lambda state: state.pop("0.bias"), r'Missing key.*"0.bias"'),
    (lambda state: state.update(extra=torch.ones(1)), r'Unexpected key.*"extra"'),
    (lambda state: state.update({"0.bias": torch.ones(9)}), "size mismatch for 0.bias")])
def test_weights_that_do_not_fit_are_one_line(tmp_path, change, message):
    state = network().state_dict()
    change(state)
    with pytest.raises(InputError, match=f"a.pt: not the weights of a test network .{message}") as caught:
        load_weights_into(network(), state, tmp_path / "a.pt", "test network")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    with pytest.raises(InputError, match="a.pt: not the weights of a Sequential "):
        load_weights_into(network(), state, tmp_path / "a.pt")
