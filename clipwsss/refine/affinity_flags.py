"""The flags of make_pseudo.py for the affinity network of its walk."""
import argparse
from pathlib import Path

from ..flags import Ascending, real, whole
from ..networks.resnet import RESNETS


def affinity_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of IRN's and PSA's affinity networks; presets/make_pseudo.py has their values."""
    add = parser.add_argument_group("affinity network (irn, psa)").add_argument
    add("--affinity-checkpoint", type=Path,
        help="affinity.pt of another run, used instead of training a network (for irn also IRN's "
        "res50_irn.pth)")
    add("--confident", type=real(0), nargs=2, default=(0.30, 0.05), metavar=("FG", "BG"),
        help="training labels; irn: two scores of the background; pixels are surely a class where a CAM "
        "exceeds FG, and surely background where none exceeds BG (CLIMS: 0.3 0.1); psa: two exponents of "
        "its background map for the same purpose")
    add("--backbone", choices=RESNETS, default="resnet50", help="backbone of the affinity network")
    add("--weights", default="imagenet", help="initial weights of the backbone: imagenet, none, generator "
        "(the generator.pt of train_prompt.py, or of train_cam.py where that has not run), or a file of "
        "torchvision or of a generator")
    add("--scales", type=real(0.1, 8), nargs=2, default=(0.5, 1.5), metavar=("LO", "HI"), action=Ascending,
        help="range of the random factor by which training images are scaled")
    add("--pad-to", type=whole(0, 4096), default=512, metavar="SIDE",
        help="irn: the trained network sees images padded to squares of this side (IRN); 0 pads nothing "
        "(CLIMS and POLE)")
    add("--train-radius", type=whole(2, 64), default=10,
        help="training uses pairs of cells of the network's grid that are closer than this")
