"""The epoch of best CAMs by true masks, as SemPLeS' release keeps it: no method of tags alone sees them."""
import copy

import torch
from torch import nn

from ..cams.base import MapGenerator
from ..cams.maps import merge_scales, multi_scale_maps
from ..datasets import TagDataset
from ..datasets.loaders import size_loader
from ..distributed import gather
from .metrics import scores, threshold_confusions
from .scoring import THRESHOLDS


@torch.inference_mode()
def cam_miou(generator: MapGenerator, dataset: TagDataset, batch_size: int = 1, workers: int = 0) -> float:
    """Best mIoU in percent over background thresholds of single-scale CAMs of the present classes."""
    device, n_labels, table = next(generator.parameters()).device, len(dataset.classes) + 1, 0
    generator.eval()
    for batch in size_loader(dataset, batch_size, workers):
        size = tuple(batch.images.shape[-2:])
        outputs = multi_scale_maps(generator, batch.images.to(device), (1.0,), False)
        cams = merge_scales(outputs, size, from_minimum=generator.from_minimum).cpu()
        for label, maps, mask in zip(batch.labels, cams, batch.masks):
            keys = label.nonzero()[:, 0]
            table = table + threshold_confusions(maps[keys].numpy(), keys.numpy(), mask.byte().numpy(),
                                                 THRESHOLDS, n_labels)
    return float(scores(sum(gather(table)))["miou"].max())


class BestEpoch(nn.Module):
    """Told the end of each epoch, keeps the generator's weights of the one with the best `cam_miou`.

    ValueError for a data set without masks.
    """

    def __init__(self, generator: MapGenerator, dataset: TagDataset, batch_size: int = 1, workers: int = 0):
        if not dataset.has_masks:
            raise ValueError("this split has no masks to choose an epoch by")
        super().__init__()
        self.watched = [generator]  # in a list: its weights are not this module's
        self.dataset, self.batch_size, self.workers = dataset, batch_size, workers
        self.begin()

    def begin(self) -> None:
        """Keep nothing yet."""
        self.kept = {"epoch": 0, "miou": -1.0, "weights": None}

    def end_epoch(self, epoch: int) -> None:
        miou = cam_miou(self.watched[0], self.dataset, self.batch_size, self.workers)
        if miou > self.kept["miou"]:
            weights = copy.deepcopy(self.watched[0].state_dict())
            self.kept = {"epoch": epoch + 1, "miou": miou, "weights": weights}

    def restore(self) -> None:
        """Give the generator the kept weights, say so and that masks chose them, and begin anew."""
        self.watched[0].load_state_dict(self.kept["weights"])
        print(f"kept epoch {self.kept['epoch']}: CAM mIoU {self.kept['miou']:.2f} at one scale; it was "
              "chosen by true masks, which a method that learns from tags alone does not see")
        self.begin()

    def get_extra_state(self) -> dict:
        return self.kept

    def set_extra_state(self, state: dict) -> None:
        self.kept = state
