"""The epoch of best CAMs by true masks, as SemPLeS' release keeps it: no method of tags alone sees them."""
import copy

import torch

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


class BestEpoch:
    """The generator's weights of the epoch with the best CAM mIoU so far."""

    def __init__(self):
        self.epoch = 0
        self.miou = -1.0
        self.weights = None

    def consider(self, epoch: int, generator: MapGenerator, miou: float) -> None:
        """Keep the weights of this epoch, counted from 0, where they are the best."""
        if miou > self.miou:
            self.epoch = epoch + 1
            self.miou = miou
            self.weights = copy.deepcopy(generator.state_dict())

    def restore(self, generator: MapGenerator) -> None:
        """Give the generator the kept weights, and print which epoch they are of."""
        generator.load_state_dict(self.weights)
        print(f"kept epoch {self.epoch}: CAM mIoU {self.miou:.2f} at one scale; it was chosen by true masks, "
              "which a method that learns from tags alone does not see")

    def state_dict(self) -> dict:
        """What a checkpoint keeps."""
        return {"epoch": self.epoch, "miou": self.miou, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        """Take what a checkpoint kept."""
        self.epoch = state["epoch"]
        self.miou = state["miou"]
        self.weights = state["weights"]
