"""Label maps of whole images: probabilities over scales, the dense CRF's decision, files of many images."""
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..datasets import TagDataset
from ..datasets.base import MOST_PIXELS, Entry, files_of
from ..datasets.folder import SUFFIXES
from ..distributed import barrier
from ..errors import InputError
from ..networks.resnet import fuse_batch_norm
from ..networks.deeplab import multi_scale_logits
from ..pictures import overlay, save, shares, with_legend, write_mask
from ..progress import Progress
from ..refine.crf import dense_crf, unary_from_probabilities
from ..training import use_bf16

# The CRF of deeplab-pytorch for VOC 2012: 10 steps, kernels (sxy, weight) and (sxy, srgb, weight).
CRF_STEPS = 10
CRF_KERNELS = ((1, 3), (67, 3, 4))
LIKELY = 1e-3  # a label takes part in the CRF of an image if its probability reaches this somewhere
FUSIONS = ("mean", "max")  # of scales: mean of the probabilities, or maximum of the logits


@torch.inference_mode()
def class_probabilities(network: nn.Module, images: Tensor, scales: Sequence[float] = (1.0,),
                  flip: bool = False, fusion: str = "mean") -> Tensor:
    """Class probabilities [B,n_labels,H,W] of images [B,3,H,W] in [0,1] over scales.

    flip: average with the probabilities of the mirrored images. fusion: `mean` averages the probabilities of
    the scales; `max` takes the maximum of their logits at the size of the first scale's logits, as DeepLabV2
    is tested (deeplab-pytorch).
    """
    size = images.shape[-2:]
    views = [images, images.flip(-1)] if flip else [images]
    maps_per_view = 1 if fusion == "max" else len(scales)
    total = None
    for number, view in enumerate(views):
        for logits in _logits_of_scales(network, view, scales, fusion):
            logits = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
            term = logits.softmax(1).div_(maps_per_view * len(views))
            if number == 1:  # mirror it back
                term = term.flip(-1)
            total = term if total is None else total.add_(term)
    return total


def _logits_of_scales(network: nn.Module, images: Tensor, scales: Sequence[float],
                      fusion: str) -> Iterator[Tensor]:
    """The logits of each scale, or for fusion `max` their maximum alone.

    The largest scale comes first, so that the others fit into the memory that it took.
    """
    if fusion == "max":
        yield multi_scale_logits(network, images, scales)[-1]
        return
    height, width = images.shape[-2:]
    for scale in sorted(scales, reverse=True):
        scaled = images
        if scale != 1:
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
            scaled = F.interpolate(images, size, mode="bilinear", align_corners=False)
        yield network(scaled)


def decide(image: NDArray, probability: NDArray, crf: bool = False) -> NDArray:
    """Label map uint8 [H,W] of an image uint8 [H,W,3] and its probabilities float32 [n_labels,H,W].

    crf: the dense CRF decides between the labels that reach LIKELY somewhere; the others would cost most of
    its time. Without it each pixel takes its most probable label.
    """
    if not crf:
        return probability.argmax(0).astype(np.uint8)
    highest = probability.reshape(len(probability), -1).max(1)
    labels = np.flatnonzero(highest >= LIKELY)
    if len(labels) == 1:
        return np.full(probability.shape[1:], labels[0], np.uint8)
    likely = probability[labels]
    refined = dense_crf(image, unary_from_probabilities(likely / likely.sum(0)), CRF_STEPS, *CRF_KERNELS)
    return labels[refined.argmax(0)].astype(np.uint8)


def predict_images(network: nn.Module, loader: DataLoader, scales: Sequence[float], flip: bool, fusion: str,
                   precision: str) -> Iterator[tuple[str, NDArray, NDArray]]:
    """Yield (name, image uint8 [H,W,3], probabilities float32 [n_labels,H,W]) of each image of a loader.

    loader: batches of whole images, as `size_loader` makes them.
    scales, flip, fusion: see `class_probabilities`.
    precision: `fp32`, `bf16` or `auto`, see `training.use_bf16`. The network computes on its own device.
    """
    device = next(network.parameters()).device
    network = fuse_batch_norm(network)
    progress = Progress("predict", sum(len(batch) for batch in loader.batch_sampler))
    for batch in loader:
        images = batch.images.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(precision, device)):
            likelihoods = class_probabilities(network, images, scales, flip, fusion).cpu().numpy()
        pixels = (batch.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
        yield from zip(batch.names, pixels, likelihoods)
        progress.update(len(batch.names))
    progress.close()


def write_label_maps(predictions: Iterable[tuple[str, NDArray, NDArray]], folder: Path, palette: NDArray,
                     crf: bool = False, threads: int = 1, overlay_names: Sequence[str] = ()) -> None:
    """Write FOLDER/NAME.png, the label map, of each item of `predict_images`.

    palette: uint8 [256,3]. crf: see `decide`. threads: how many decide and write beside the network.
    overlay_names: the names of all labels, the background's first; where they are given, NAME_overlay.png is
    written too. On return the files of all processes are written.
    """
    waiting: list[Future] = []
    with ThreadPoolExecutor(threads) as pool:
        for name, image, probability in predictions:
            waiting.append(pool.submit(_write_label_map, folder / f"{name}.png", image, probability, palette,
                                       crf, overlay_names))
            if len(waiting) > 2 * threads:  # the network waits, so that few probabilities are held at once
                waiting.pop(0).result()
        for job in waiting:
            job.result()
    barrier()


def _write_label_map(path: Path, image: NDArray, probability: NDArray, palette: NDArray, crf: bool,
                     overlay_names: Sequence[str]) -> None:
    """Decide on one image and write its files."""
    labels = decide(image, probability, crf)
    write_mask(path, labels, palette)
    if overlay_names:
        picture = overlay(Image.fromarray(image), labels, palette)
        legend = shares(labels, palette, overlay_names)
        save(with_legend(picture, legend), path.with_name(f"{path.stem}_overlay.png"))


class Photos(TagDataset):
    """A user's image files, turned as their EXIF tags say, without tags, masks or classes.

    A bad file, or one of more than `max_pixels` pixels, raises InputError; with skip_bad it is left out and
    listed in `skipped`.
    """
    oriented = True

    def __init__(self, files: Sequence[Path], skip_bad: bool = False, max_pixels: int = MOST_PIXELS):
        entries = [Entry(path.stem, path, None, None, "--predict") for path in files]
        super().__init__(entries, (), (), skip_bad, max_pixels)


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The image files that --predict names, and those in the folders that it names.

    InputError for a path that does not exist and for a folder without images.
    """
    files = []
    for path in paths:
        if path.is_dir():
            inside = files_of(path, SUFFIXES)
            if not inside:
                raise InputError(f"--predict {path}: no image in this folder (valid: {', '.join(SUFFIXES)})")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"--predict {path}: no such file or folder")
    return files


def refuse_taken_names(files: Sequence[Path], folder: Path, overwrite: bool = False) -> None:
    """InputError where the results of image files in `folder` would replace files.

    That is: a result of another image (a.jpg and a.png both give a.png), one of the images themselves, or,
    without `overwrite`, any file that exists already.
    """
    results = []
    for path in files:
        results += [folder / f"{path.stem}.png", folder / f"{path.stem}_overlay.png"]
    path, count = Counter(results).most_common(1)[0]
    if count > 1:
        raise InputError(f"--predict: {path} would be the result of several images; rename them")
    images = {path.resolve() for path in files}
    for path in results:
        if path.resolve() in images and path.exists():
            raise InputError(f"--predict: {path} would replace an image; choose another folder by --out")
        if path.exists() and not overwrite:
            raise InputError(f"--predict: {path} already exists; choose another folder by --out, or replace "
                             "it by --overwrite")
