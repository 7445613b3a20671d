"""The toy world as a data set: VOC's layout, drawn on demand."""
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from ..distributed import barrier, is_main
from ..toy.scenes import CLASSES
from ..toy.world import RECIPE, draw_world
from .reading import Checked
from .voc import VocDataset


class ToyDataset(VocDataset):
    """The toy world at `root`; draws it there first (seed 0) when the folder is missing or empty.

    Splits are train and val (held out, with textures of its own). InputError when `root` holds anything else.
    """
    classes = CLASSES

    def __init__(self, root: Path | str, split: str, skip_bad: bool = False, checked: Checked | None = None):
        if is_main() and not (Path(root) / RECIPE).is_file():
            draw_world(root)
        barrier()
        super().__init__(root, split, skip_bad, checked)

    def subtypes(self, index: int) -> dict[str, list[str]]:
        """Truth for judging word selection: for each class in the image the sub-types that are there."""
        path = self.entries[index].image.parents[1] / "Annotations" / f"{self.names[index]}.xml"
        present: dict[str, list[str]] = {}
        for item in ElementTree.parse(path).iter("object"):
            present.setdefault(item.findtext("name"), []).append(item.findtext("subtype"))
        return present
