"""Label maps of whole images: probabilities over scales, the CRF's decision, files of many images."""
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..datasets import TagDataset
from ..datasets.base import Entry, files_of
from ..datasets.folder import SUFFIXES
from ..datasets.loaders import size_loader
from ..datasets.reading import MOST_PIXELS, Checked
from ..datasets.transforms import eval_transform
from ..distributed import barrier
from ..errors import InputError
from ..pictures import overlay, save, shares, with_legend, write_mask
from ..progress import Progress
from ..networks.deeplab import multi_scale_logits
from ..networks.batch_norm import fuse_batch_norm
from ..refine.crf import dense_crf, unary_from_probabilities
from ..training import autocast
from .segmenter import Segmenter

# deeplab-pytorch's for VOC 2012: (sxy, weight), (sxy, srgb, weight)
CRF_KERNELS = ((1, 3), (67, 3, 4))
LIKELY = 1e-3  # probability that a label needs somewhere in an image to take part in its CRF
FUSIONS = ("mean", "max")  # of scales: mean of probabilities, maximum of logits


class Prediction(NamedTuple):
    """How to predict: the scales and how they are joined (one of FUSIONS), mirror images too, dense CRF.

    batch_size: images of one size per forward pass; workers: threads that decide and write, and processes
    that load.
    """
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    crf: bool = False
    batch_size: int = 1
    workers: int = 0
    precision: str = "fp32"
    fusion: str = "mean"


@torch.inference_mode()
def probabilities(network: nn.Module, images: Tensor, scales: Sequence[float] = (1.0,),
                  flip: bool = False, fusion: str = "mean") -> Tensor:
    """Class probabilities [B,n_labels,H,W] of images [B,3,H,W] over scales, averaged over mirror images.

    fusion `mean` averages the scales' probabilities; `max` takes the maximum of their logits at the size of
    the first scale's, as DeepLabV2 is tested (deeplab-pytorch).
    """
    size, total, mirrors = images.shape[-2:], None, 2 if flip else 1
    outputs = 1 if fusion == "max" else len(scales)
    for mirrored in range(mirrors):
        for logits in _logits(network, images.flip(-1) if mirrored else images, scales, fusion):
            logits = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
            share = logits.softmax(1).div_(outputs * mirrors)
            share = share.flip(-1) if mirrored else share
            total = share if total is None else total.add_(share)
    return total


def _logits(network: nn.Module, images: Tensor, scales: Sequence[float], fusion: str) -> Iterator[Tensor]:
    """Each scale's logits, the largest first: the others fit into the memory it took; or their maximum."""
    if fusion == "max":
        yield multi_scale_logits(network, images, scales)[-1]
        return
    for scale in sorted(scales, reverse=True):
        target = [max(1, round(side * scale)) for side in images.shape[-2:]]
        yield network(images if scale == 1 else
                      F.interpolate(images, target, mode="bilinear", align_corners=False))


def decide(image: NDArray, likelihood: NDArray, crf: bool = False) -> NDArray:
    """Label map uint8 [H,W] of an image uint8 [H,W,3] and its probabilities float32 [n_labels,H,W].

    With `crf` the dense CRF decides, over the labels that reach LIKELY somewhere: most of its time is saved.
    """
    if not crf:
        return likelihood.argmax(0).astype(np.uint8)
    labels = np.flatnonzero(likelihood.reshape(len(likelihood), -1).max(1) >= LIKELY)
    if len(labels) == 1:
        return np.full(likelihood.shape[1:], labels[0], np.uint8)
    kept = likelihood[labels] / likelihood[labels].sum(0)
    refined = dense_crf(image, unary_from_probabilities(kept), 10, *CRF_KERNELS)
    return labels[refined.argmax(0)].astype(np.uint8)


def predict_dataset(segmenter: Segmenter, dataset: TagDataset, folder: Path, prediction: Prediction,
                    done: Container[str] = (), overlays: bool = False) -> None:
    """Write FOLDER/NAME.png, the label map, of a data set's images but those in `done`.

    overlays: NAME_overlay.png too. Afterwards those of all processes are there. The network's device computes
    probabilities, threads decide and write.
    """
    def write(path: Path, image: NDArray, likelihood: NDArray) -> None:
        labels = decide(image, likelihood, prediction.crf)
        write_mask(path, labels, segmenter.palette)
        if overlays:
            picture = overlay(Image.fromarray(image), labels, segmenter.palette)
            legend = shares(labels, segmenter.palette, ("background", *segmenter.classes))
            save(with_legend(picture, legend), path.with_name(f"{path.stem}_overlay.png"))

    plain = dataset.with_transform(eval_transform(), masks=False)
    loader = size_loader(plain, prediction.batch_size, prediction.workers, done)
    network, device = fuse_batch_norm(segmenter.network), next(segmenter.network.parameters()).device
    progress, threads = Progress("predict", sum(map(len, loader.batch_sampler))), max(1, prediction.workers)
    waiting = []
    with ThreadPoolExecutor(threads) as pool:
        for batch in loader:
            with autocast(prediction.precision, device):
                likelihoods = probabilities(network, batch.images.to(device, non_blocking=True),
                                            prediction.scales, prediction.flip,
                                            prediction.fusion).cpu().numpy()
            pixels = (batch.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
            waiting += [pool.submit(write, folder / f"{name}.png", *image)
                        for name, *image in zip(batch.names, pixels, likelihoods)]
            progress.update(len(batch.names))
            while len(waiting) > 2 * threads:  # few probabilities are held at once
                waiting.pop(0).result()
        for job in waiting:
            job.result()
    progress.close()
    barrier()


class Photos(TagDataset):
    """A user's image files, turned as their EXIF tags say; no tags, no masks, no classes.

    Bad ones, and those of more than `most` pixels, are an InputError, or with skip_bad in `skipped`.
    """
    oriented = True

    def __init__(self, files: Sequence[Path], skip_bad: bool = False, most: int = MOST_PIXELS):
        entries = [Entry(path.stem, path, None, None, "--predict") for path in files]
        super().__init__(entries, (), (), skip_bad, checked=Checked(most=most))


def image_files(paths: Iterable[Path], folder: Path, overwrite: bool = False) -> list[Path]:
    """The image files that --predict's files and folders name; InputError says what is missing.

    Also where their results in `folder` would take each other's or an image's place, or that of files which
    are there, unless these may be overwritten.
    """
    files = []
    for path in paths:
        inside = files_of(path, SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"--predict {path}: no image in this folder ({', '.join(SUFFIXES)})")
        if not inside[0].is_file():
            raise InputError(f"--predict {path}: no such file or folder")
        files += inside
    results = Counter(folder / f"{path.stem}{end}.png" for path in files for end in ("", "_overlay"))
    path, count = results.most_common(1)[0]
    if count > 1:
        raise InputError(f"--predict: {path} would be the result of several images; rename them")
    present = [path for path in results if path.exists()]
    taken = {path.resolve() for path in present} & {path.resolve() for path in files}
    if present and (taken or not overwrite):
        raise InputError(f"--predict: {present[0]} is there; --out names another folder, --overwrite "
                         "replaces all but the images themselves")
    return files
