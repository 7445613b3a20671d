"""Networks made ready for inference: batch norm fuse_batch_norm into the convolutions before it."""
import copy
from collections import Counter
from collections.abc import Iterator

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fuse_batch_norm(network: nn.Module) -> nn.Module:
    """A copy in eval mode whose batch norms are part of the convolutions they follow: equal up to rounding.

    Without such pairs, or where torch.fx cannot follow the graph, it is a plain copy; no copy is compiled.
    """
    ready = copy.deepcopy(network).eval()
    for convolution, norm in list(_pairs(ready)):
        fused = fuse_conv_bn_eval(ready.get_submodule(convolution), ready.get_submodule(norm))
        ready.set_submodule(convolution, fused)
        ready.set_submodule(norm, nn.Identity())
    return ready


def _pairs(network: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of convolutions, called once, whose output a batch norm alone takes, and of these norms."""
    modules = dict(network.named_modules())
    if not any(isinstance(module, nn.BatchNorm2d) for module in modules.values()):
        return
    try:
        graph = fx.symbolic_trace(network).graph
    except fx.proxy.TraceError:  # it depends on values
        return
    calls = Counter(node.target for node in graph.nodes)
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], nn.BatchNorm2d):
            before = node.args[0]
            alone = len(before.users) == calls[node.target] == calls[before.target] == 1
            if before.op == "call_module" and isinstance(modules[before.target], nn.Conv2d) and alone:
                yield before.target, node.target
