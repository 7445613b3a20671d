"""Networks that learn the affinity of neighbouring pixels from CAMs: IRN's boundaries and PSA's features."""
from .checkpoint import NETWORKS, build_affinity, load_affinity, save_affinity
from .irn import IRNet
from .labels import confident_labels
from .psa import AffinityNet

__all__ = ["NETWORKS", "AffinityNet", "IRNet", "build_affinity", "confident_labels", "load_affinity",
           "save_affinity"]
