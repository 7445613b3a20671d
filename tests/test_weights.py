"""The downloader, with file: URLs, and the files that networks start from."""
import hashlib
import urllib.error

import pytest
import torch
import torchvision

from clipwsss.errors import InputError
from clipwsss.files import save_network
from clipwsss.networks import resnet
from clipwsss.files import download, load_backbone, start_file

CONTENT = b"published weights"
PREFIX = hashlib.sha256(CONTENT).hexdigest()[:8]


@pytest.fixture
def url(tmp_path, monkeypatch) -> str:
    """The URL of a published file; the hub's folder is tmp_path/hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    (tmp_path / "net.pth").write_bytes(CONTENT)
    return (tmp_path / "net.pth").as_uri()


@pytest.mark.smoke
def test_a_file_is_downloaded_once(url, tmp_path, capsys):
    for folder, expected in ((tmp_path / "new" / "cache", tmp_path / "new" / "cache" / "net.pth"),
                             (None, tmp_path / "home" / "hub" / "checkpoints" / "net.pth")):
        assert download(url, PREFIX, folder) == expected and expected.read_bytes() == CONTENT
        assert [path.name for path in expected.parent.iterdir()] == ["net.pth"]
        assert capsys.readouterr().err == f"downloading {url} to {expected}\n"
    (tmp_path / "net.pth").unlink()
    assert download(url, PREFIX).read_bytes() == CONTENT and capsys.readouterr().err == ""


def test_a_damaged_download_is_refused_and_removed(url, tmp_path):
    (tmp_path / "net.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match=rf"net.pth: the download is damaged .* save it as {tmp_path}/c/net.pth$"):
        download(url, PREFIX, tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []
    (tmp_path / "net.pth").write_bytes(CONTENT)
    assert download(url, PREFIX, tmp_path / "c").read_bytes() == CONTENT


def test_a_damaged_file_is_named_and_kept(url, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "net.pth").write_bytes(b"something else")
    with pytest.raises(InputError, match=rf"{tmp_path}/c/net.pth: damaged or .* begin with {PREFIX}\); .*{url}$"):
        download(url, PREFIX, tmp_path / "c")
    assert (tmp_path / "c" / "net.pth").read_bytes() == b"something else"


def test_without_a_network_the_message_says_where_the_file_goes(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        start_file("imagenet", "resnet18", resnet.RESNET_WEIGHTS)
    assert str(caught.value) == (
        "https://download.pytorch.org/models/resnet18-f37072fd.pth: not downloaded (<urlopen error no network>); "
        f"download it elsewhere and save it as {tmp_path}/hub/checkpoints/resnet18-f37072fd.pth")


def test_starts_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(InputError, match="--weights imagenet: resnet_tiny has no ImageNet weights; use none or"):
        start_file("imagenet", "resnet_tiny", resnet.RESNET_WEIGHTS)
    with pytest.raises(InputError, match="--weights .*gone.pth: no such weights file; use imagenet, none or a path"):
        start_file(tmp_path / "gone.pth", "resnet18", resnet.RESNET_WEIGHTS)


def test_a_backbone_starts_from_torchvisions_files_and_ours(tmp_path, monkeypatch):
    theirs = torchvision.models.resnet18().state_dict()
    body = {name: value for name, value in theirs.items() if not name.startswith("fc.")}
    torch.save(theirs, tmp_path / "resnet18.pth")
    torch.save({f"module.{name}": value for name, value in theirs.items() if "num_batches" not in name},
               tmp_path / "parallel.pth")
    generator = torch.nn.ModuleDict({"backbone": resnet.ResNet("resnet18", 32), "classifier": torch.nn.Conv2d(2, 3, 1)})
    generator["backbone"].load_state_dict(body)
    save_network(generator, "generator", {}, tmp_path / "generator.pt")
    sha256 = hashlib.sha256((tmp_path / "resnet18.pth").read_bytes()).hexdigest()
    published = {"resnet18": ((tmp_path / "resnet18.pth").as_uri(), sha256)}
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    for weights in (tmp_path / "resnet18.pth", tmp_path / "parallel.pth", tmp_path / "generator.pt", "imagenet"):
        network = resnet.ResNet("resnet18", 32)
        load_backbone(network, weights, "resnet18", published)
        assert network.state_dict().keys() == body.keys(), weights
        for name, value in network.state_dict().items():
            assert torch.equal(value, body[name]), (weights, name)


def test_files_that_do_not_fit_are_one_clear_line(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    files = {
        "other.pth": ({name: value for name, value in state.items() if name != "layer1.0.conv1.weight"},
                      "not the weights of a resnet18 .Missing key.*layer1.0.conv1.weight"),
        "shape.pth": ({**state, "conv1.weight": torch.zeros(64, 3, 3, 3)},
                      "not the weights of a resnet18 .size mismatch for conv1.weight"),
        "unknown.pth": ({**state, "head.weight": torch.zeros(1)},
                        "not the weights of a resnet18 .Unexpected key.*head.weight"),
        "list.pth": ([1, 2], "not a checkpoint but a list"),
        "segmenter.pt": ({"state_dict": {"aspp.weight": torch.zeros(1)}}, "its network has no ResNet as backbone"),
    }
    network = resnet.ResNet("resnet18", 32)
    for name, (content, message) in files.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match=f"{name}: {message}") as caught:
            load_backbone(network, tmp_path / name, "resnet18", {})
        assert "\n" not in str(caught.value)
