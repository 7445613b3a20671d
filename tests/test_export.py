"""Exported programs: the network's logits at other sizes than they were traced with."""
import pytest
import torch
import torch.nn.functional as F
from test_segmenter import built

from clipwsss.errors import InputError
from clipwsss.segment.export import export_network


def test_exported_program_gives_the_same_logits_at_other_sizes(tmp_path):
    network = built(network="deeplabv3plus").network.eval()
    export_network(network, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        for size in ((2, 3, 96, 128), (1, 3, 75, 60)):
            images = torch.rand(size)
            expected = F.interpolate(network(images), size[2:], mode="bilinear")
            assert torch.allclose(program(images), expected, atol=1e-5)
    with pytest.raises(InputError, match="valid are .pt2 and .onnx"):
        export_network(network, tmp_path / "model.bin")
