"""Networks made ready for inference: batch norm becomes part of the convolutions before it."""
import copy
from collections import Counter

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fuse_batch_norm(network: nn.Module) -> nn.Module:
    """A copy in eval mode whose batch norms are fused into the convolutions before; equal up to rounding.

    A network that has no such pairs, or whose graph torch.fx cannot trace, is copied as it is. The copy is
    not compiled.
    """
    ready = copy.deepcopy(network).eval()
    for convolution, norm in _convolutions_with_norm(ready):
        fused = fuse_conv_bn_eval(ready.get_submodule(convolution), ready.get_submodule(norm))
        ready.set_submodule(convolution, fused)
        ready.set_submodule(norm, nn.Identity())
    return ready


def _convolutions_with_norm(network: nn.Module) -> list[tuple[str, str]]:
    """Names of (convolution, batch norm), each called once, where the norm alone takes the output."""
    modules = dict(network.named_modules())
    if not any(isinstance(module, nn.BatchNorm2d) for module in modules.values()):
        return []
    try:
        graph = fx.symbolic_trace(network).graph
    except fx.proxy.TraceError:  # the computation depends on values
        return []
    calls = Counter(node.target for node in graph.nodes)
    pairs = []
    for norm in graph.nodes:
        if norm.op != "call_module" or not isinstance(modules[norm.target], nn.BatchNorm2d):
            continue
        before = norm.args[0]
        if before.op != "call_module" or not isinstance(modules[before.target], nn.Conv2d):
            continue
        if len(before.users) == 1 and calls[norm.target] == 1 and calls[before.target] == 1:
            pairs.append((before.target, norm.target))
    return pairs
