"""The epoch of a generator's training after which its CAMs agree best with true masks."""
import copy

import torch

from ..cams.maps import MapGenerator, merge_scales, multi_scale_maps
from ..datasets import TagDataset
from ..datasets.loaders import size_loader
from ..distributed import gather
from .metrics import add_counts, scores, threshold_counts
from .scoring import THRESHOLDS, empty_tables


@torch.inference_mode()
def cam_miou(generator: MapGenerator, dataset: TagDataset, batch_size: int = 1, workers: int = 0) -> float:
    """Best mIoU in percent over all THRESHOLDS of a generator's CAMs of the tagged classes.

    The CAMs are those of the image and its mirror image at one scale, by which WeakTr's and SemPLeS' releases
    choose a checkpoint. Leaves the generator in eval mode. ValueError for a data set without masks.
    """
    if not dataset.has_masks:
        raise ValueError("this split has no masks to score CAMs with")
    device = next(generator.parameters()).device
    n_labels = len(dataset.classes) + 1
    tables = empty_tables(dataset, THRESHOLDS)
    generator.eval()
    for batch in size_loader(dataset, batch_size, workers):
        size = tuple(batch.images.shape[-2:])
        outputs = multi_scale_maps(generator, batch.images.to(device), scales=(1.0,), flip=True)
        cams = merge_scales(outputs, size, from_minimum=generator.from_minimum).cpu()
        for label, maps, mask in zip(batch.labels, cams, batch.masks):
            keys = label.nonzero()[:, 0]
            truth = mask.byte().numpy()
            counts = threshold_counts(maps[keys].numpy(), keys.numpy(), truth, THRESHOLDS, n_labels)
            add_counts(tables, counts)
    return float(scores(sum(gather(tables)))["miou"].max())


class BestEpoch:
    """The weights of the epoch with the best CAM mIoU so far, as WeakTr's and SemPLeS' releases choose.

    generator: the network in training. validation: images with true masks, see `cam_miou`. The choice uses
    true masks, which a method that is trained on image tags alone does not have. A training that is
    interrupted keeps it in its checkpoint (`state_dict`).
    """

    def __init__(self, generator: MapGenerator, validation: TagDataset, batch_size: int = 1,
                 workers: int = 0):
        self.generator = generator
        self.validation = validation
        self.batch_size = batch_size
        self.workers = workers
        self.epoch = 0
        self.miou = -1.0
        self.weights = None

    def consider(self, epoch: int) -> None:
        """Keep the generator's weights if its mIoU after this epoch (from 0) is higher than any before."""
        miou = cam_miou(self.generator, self.validation, self.batch_size, self.workers)
        if miou > self.miou:
            self.epoch = epoch + 1
            self.miou = miou
            self.weights = copy.deepcopy(self.generator.state_dict())

    def restore(self) -> None:
        """Load the kept weights into the generator and print their epoch; nothing if there was no epoch."""
        if self.weights is None:
            return
        self.generator.load_state_dict(self.weights)
        print(f"kept epoch {self.epoch}: CAM mIoU {self.miou:.2f} at one scale. This choice uses true masks, "
              "which a method trained on image tags alone does not have.")

    def state_dict(self) -> dict:
        """The epoch's number from 1, its mIoU and its weights."""
        return {"epoch": self.epoch, "miou": self.miou, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` gave."""
        self.epoch = state["epoch"]
        self.miou = state["miou"]
        self.weights = state["weights"]
