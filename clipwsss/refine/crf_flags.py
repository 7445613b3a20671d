"""The flags of a dense CRF's kernels, for the scripts that run one."""
import argparse
from collections.abc import Sequence

from ..flags import real


def crf_flags(parser: argparse.ArgumentParser, gaussian: Sequence[float], bilateral: Sequence[float]) -> None:
    """--crf-gaussian and --crf-bilateral with these defaults: the kernels of `refine.crf.dense_crf`."""
    add = parser.add_argument_group("dense CRF").add_argument
    add("--crf-gaussian", type=real(0.001), nargs=2, default=list(gaussian), metavar=("SXY", "WEIGHT"),
        help="kernel over positions: its standard deviation in pixels, and its weight")
    add("--crf-bilateral", type=real(0.001), nargs=3, default=list(bilateral),
        metavar=("SXY", "SRGB", "WEIGHT"),
        help="kernel over positions and colours: its standard deviations in pixels and in grey levels, and "
        "its weight")
