"""Label maps of whole images: probabilities over scales, a CRF, and their files."""
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..pictures import overlay, save, with_legend, write_mask
from ..progress import Progress
from ..refine.crf import dense_crf, unary_from_probabilities

# deeplab-pytorch's for VOC 2012: (sxy, weight), (sxy, srgb, weight)
CRF_KERNELS = ((1, 3), (67, 3, 4))
LIKELY = 1e-3  # probability that a label needs somewhere in an image to take part in its CRF


@torch.inference_mode()
def probabilities(network: nn.Module, images: Tensor, scales: Sequence[float] = (1.0,),
                  flip: bool = False) -> Tensor:
    """Mean class probabilities [B,n_labels,H,W] of images [B,3,H,W] over scales and mirror images.

    The largest scale comes first, and the others, added to the mean one by one, fit into the memory it took.
    """
    size = images.shape[-2:]
    total, passes = None, len(scales) * (2 if flip else 1)
    for scale in sorted(scales, reverse=True):
        scaled = images
        if scale != 1:
            target = [max(1, round(side * scale)) for side in size]
            scaled = F.interpolate(images, target, mode="bilinear", align_corners=False)
        for mirrored in (False, True)[:2 if flip else 1]:
            logits = network(scaled.flip(-1) if mirrored else scaled).float()
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
            share = logits.softmax(1).div_(passes)
            share = share.flip(-1) if mirrored else share
            total = share if total is None else total.add_(share)
    return total


def decide(image: NDArray, scores: NDArray, crf: bool = False) -> NDArray:
    """Label map uint8 [H,W] of an image uint8 [H,W,3] and its probabilities float32 [n_labels,H,W].

    With `crf` the dense CRF decides, over the labels that reach LIKELY somewhere: most of its time is saved.
    """
    if not crf:
        return scores.argmax(0).astype(np.uint8)
    labels = np.flatnonzero(scores.reshape(len(scores), -1).max(1) >= LIKELY)
    if len(labels) == 1:
        return np.full(scores.shape[1:], labels[0], np.uint8)
    kept = scores[labels] / scores[labels].sum(0)
    refined = dense_crf(image, unary_from_probabilities(kept), 10, *CRF_KERNELS)
    return labels[refined.argmax(0)].astype(np.uint8)


class Predictor(NamedTuple):
    """A segmenter and how it predicts: scales and mirror images averaged, CRF after them.

    palette uint8 [256,3] of the label maps; writers: threads that decide and write beside the device.
    """
    network: nn.Module
    palette: NDArray
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    crf: bool = False
    writers: int = 1

    def write(self, label: str, total: int, batches: Iterator[tuple[list[Path], Tensor]],
              classes: tuple[str, ...] = ()) -> None:
        """Write the label map of every image of `batches` (paths to write, images [B,3,H,W] in [0,1]).

        classes: all labels' names; given, an overlay with a legend is written beside each map.
        """
        device = next(self.network.parameters()).device
        progress, waiting = Progress(label, total), []
        with ThreadPoolExecutor(self.writers) as pool:
            for paths, images in batches:
                scores = probabilities(self.network, images.to(device), self.scales, self.flip).cpu().numpy()
                pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
                waiting += [pool.submit(self._write_one, *item, classes) for item in zip(paths, pixels, scores)]
                progress.update(len(paths))
                while len(waiting) > 2 * self.writers:  # few probabilities are held at once
                    waiting.pop(0).result()
            for job in waiting:
                job.result()
        progress.close()

    def _write_one(self, path: Path, image: NDArray, scores: NDArray, classes: tuple[str, ...]) -> None:
        labels = decide(image, scores, self.crf)
        write_mask(path, labels, self.palette)
        if classes:
            picture = overlay(Image.fromarray(image), labels, self.palette)
            legend = with_legend(picture, labels, self.palette, classes)
            save(legend, path.with_name(f"{path.stem}_overlay.png"))
