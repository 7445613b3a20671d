"""Batch norm fused into convolutions: the same outputs, no norm left, the network itself unchanged."""
import pytest
import torch
from torch import nn

from clipwsss.cams.generator import build_generator
from clipwsss.networks import deeplab
from clipwsss.networks.batch_norm import fuse_batch_norm


def trained(network):
    """The network with batch norms that do something."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
    return network


@pytest.mark.parametrize("network", [
    build_generator(["a", "b"], "resnet18", "none"),
    deeplab.build(deeplab.Design("deeplabv3plus", "resnet_tiny", 4), 3)], ids=["generator", "deeplabv3plus"])
def test_outputs_are_equal_and_the_network_is_kept(network):
    images, before = torch.rand(2, 3, 50, 66), trained(network).state_dict().keys()
    ready = fuse_batch_norm(network.train())
    with torch.inference_mode():
        expected, answer = network.eval()(images), ready(images)
    assert (answer - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ready.modules())
    assert network.state_dict().keys() == before and ready is not network


def test_what_cannot_be_fused_is_copied_as_it_is():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, images):
            return self.norm(images) if images.sum() > 0 else images

    for network in (nn.Conv2d(3, 4, 1), Branching()):
        ready, state = fuse_batch_norm(network.train()), network.state_dict()
        assert network.training and not ready.training and type(ready) is type(network)
        assert all(torch.equal(value, state[name]) for name, value in ready.state_dict().items())
