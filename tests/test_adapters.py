"""POLE's adapters against hand-written products."""
import torch
import torch.nn.functional as F

from clipwsss.guidance.objectives import Adapter


def test_adapter_by_hand():
    features = torch.randn(3, 8)
    for kind in ("fixed", "learnable"):
        adapter = Adapter(8, kind)
        bottleneck = F.relu(features @ adapter.down.weight.T) @ adapter.up.weight.T
        assert adapter.down.weight.shape == (2, 8)
        assert torch.allclose(adapter(features), 0.2 * bottleneck + 0.8 * features, atol=1e-6)
    assert {name for name, _ in Adapter(8, "fixed").named_parameters()} == {"down.weight", "up.weight"}
    assert Adapter(8, "learnable").ratio.requires_grad and Adapter(8, "learnable").ratio.shape == (8,)
    assert Adapter(8, "none")(features) is features and not list(Adapter(8, "none").parameters())
