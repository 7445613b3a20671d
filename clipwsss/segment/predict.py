"""Label maps of whole images: probabilities over scales, the dense CRF's decision, files of many images."""
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..datasets import TagDataset
from ..datasets.base import Size, whole_image
from ..datasets.mmseg_transform import short_side_size
from ..distributed import barrier
from ..files import atomic_path
from ..networks.resnet import fuse_batch_norm
from ..networks.deeplab import multi_scale_logits
from ..pictures import overlay, save, shares, with_legend, write_mask
from ..progress import Progress
from ..refine.crf import dense_crf, unary_from_probabilities
from ..training import use_bf16

CRF_STEPS = 10
CRF_KERNELS = ((1.0, 3.0), (67.0, 3.0, 4.0))  # `gaussian` and `bilateral` of `dense_crf`, deeplab-pytorch's
LIKELY = 1e-3  # a label takes part in the CRF of an image if its probability reaches this somewhere
Kernels = tuple[Sequence[float], Sequence[float]]
FUSIONS = ("mean", "max")  # of scales: mean of the probabilities, or maximum of the logits


@torch.inference_mode()
def class_probabilities(network: nn.Module, images: Tensor, scales: Sequence[float] = (1.0,),
                  flip: bool = False, fusion: str = "mean", short_side: int = 0) -> Tensor:
    """Class probabilities [B,n_labels,H,W] of images [B,3,H,W] in [0,1] over scales.

    short_side: the network sees images that are resized to this short side, see `short_side_size`; 0 leaves
    them as they are.

    flip: average with the probabilities of the mirrored images. fusion: `mean` averages the probabilities of
    the scales; `max` takes the maximum of their logits at the size of the first scale's logits, as DeepLabV2
    is tested (deeplab-pytorch).
    """
    size = images.shape[-2:]
    if short_side:
        seen = short_side_size(tuple(size), short_side)
        images = F.interpolate(images, seen, mode="bilinear", align_corners=False)
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


def refine(image: NDArray, probability: NDArray, kernels: Kernels | None = None) -> NDArray:
    """Probabilities float32 [n_labels,H,W] after the dense CRF, or as they are without `kernels`.

    image: uint8 [H,W,3]. kernels: `gaussian` and `bilateral` of `dense_crf`, such as CRF_KERNELS. The CRF
    decides between the labels that reach LIKELY somewhere; the others would cost most of its time, and their
    probability becomes 0.
    """
    if kernels is None:
        return probability
    highest = probability.reshape(len(probability), -1).max(1)
    labels = np.flatnonzero(highest >= LIKELY)
    refined = np.zeros_like(probability)
    if len(labels) == 1:
        refined[labels] = 1
        return refined
    likely = probability[labels]
    refined[labels] = dense_crf(image, unary_from_probabilities(likely / likely.sum(0)), CRF_STEPS,
                                *kernels)
    return refined


def decide(image: NDArray, probability: NDArray, kernels: Kernels | None = None) -> NDArray:
    """Label map uint8 [H,W] of an image uint8 [H,W,3] and its probabilities float32 [n_labels,H,W].

    Each pixel takes its most probable label, after the dense CRF where `kernels` are given (see `refine`).
    """
    return refine(image, probability, kernels).argmax(0).astype(np.uint8)


def reduced_size(size: Size, max_side: int | None) -> Size:
    """The size (H, W) of an image whose longer side is reduced to `max_side` pixels (None or 0: no limit)."""
    if not max_side or max(size) <= max_side:
        return size
    factor = max_side / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def reduced(image: Image.Image, max_side: int | None) -> Image.Image:
    """The image, smoothed and reduced to `reduced_size` where it is larger."""
    height, width = reduced_size((image.height, image.width), max_side)
    if (height, width) == (image.height, image.width):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def reduced_image(image: Image.Image, mask: None, max_side: int | None) -> tuple[Tensor, None]:
    """`reduced` as the transform of a data set without masks."""
    return whole_image(reduced(image, max_side))


def reduced_images(dataset: TagDataset, max_side: int | None) -> TagDataset:
    """A copy of the data set without masks, whose images are `reduced`, and whose `sizes` are theirs."""
    other = dataset.with_transform(partial(reduced_image, max_side=max_side), masks=False)
    other.sizes = [reduced_size(size, max_side) for size in dataset.sizes]
    return other


def enlarge(maps: NDArray, size: Size) -> NDArray:
    """Maps float32 [n,h,w] at a larger size (H, W), by bilinear interpolation."""
    if maps.shape[1:] == size:
        return maps
    return F.interpolate(torch.from_numpy(maps)[None], size, mode="bilinear", align_corners=False)[0].numpy()


def labels_at(probability: NDArray, size: Size) -> NDArray:
    """The most probable label, uint8 [H,W], of probabilities float32 [n_labels,h,w] at a larger size (H, W).

    Equal to `enlarge(probability, size).argmax(0)`, but never holds the maps of all labels at that size: for
    a large photograph these take gigabytes.
    """
    if probability.shape[1:] == size:
        return probability.argmax(0).astype(np.uint8)
    labels = np.zeros(size, np.uint8)
    highest = enlarge(probability[:1], size)[0]
    for label in range(1, len(probability)):
        if not probability[label].any():
            continue
        candidate = enlarge(probability[label:label + 1], size)[0]
        labels[candidate > highest] = label
        np.maximum(highest, candidate, out=highest)
    return labels


def predict_images(network: nn.Module, loader: DataLoader, scales: Sequence[float], flip: bool, fusion: str,
                   precision: str, short_side: int = 0) -> Iterator[tuple[str, NDArray, NDArray]]:
    """Yield (name, image uint8 [H,W,3], probabilities float32 [n_labels,H,W]) of each image of a loader.

    loader: batches of whole images, as `size_loader` makes them.
    scales, flip, fusion, short_side: see `class_probabilities`.
    precision: `fp32`, `bf16` or `auto`, see `training.use_bf16`. The network computes on its own device.
    """
    device = next(network.parameters()).device
    network = fuse_batch_norm(network)
    progress = Progress("predict", sum(len(batch) for batch in loader.batch_sampler))
    for batch in loader:
        images = batch.images.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(precision, device)):
            likelihoods = class_probabilities(network, images, scales, flip, fusion, short_side)
            likelihoods = likelihoods.cpu().numpy()
        pixels = (batch.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
        yield from zip(batch.names, pixels, likelihoods)
        progress.update(len(batch.names))
    progress.close()


def write_label_maps(predictions: Iterable[tuple[str, NDArray, NDArray]], folder: Path, palette: NDArray,
                     kernels: Kernels | None = None, threads: int = 1, overlay_names: Sequence[str] = (),
                     sizes: Mapping[str, Size] | None = None, probabilities: bool = False) -> None:
    """Write FOLDER/NAME.png, the label map, of each item of `predict_images`.

    palette: uint8 [256,3]. kernels: see `refine`. threads: how many decide and write beside the network.
    overlay_names: the names of all labels, the background's first; where they are given, NAME_overlay.png is
    written too, at the size of the item's image. sizes: (H, W) of each label map, where the items' images are
    reduced ones. probabilities: also write NAME.npz, with `probabilities` float16 [n_labels,h,w] at the size
    of the item's image and `size` (H, W) of the label map. The label map is the last file of an item.
    On return the files of all processes are written.
    """
    waiting: list[Future] = []
    with ThreadPoolExecutor(threads) as pool:
        for name, image, probability in predictions:
            size = sizes[name] if sizes else image.shape[:2]
            waiting.append(pool.submit(_write_results, folder / f"{name}.png", image, probability, palette,
                                       kernels, overlay_names, size, probabilities))
            if len(waiting) > 2 * threads:  # the network waits, so that few probabilities are held at once
                waiting.pop(0).result()
        for job in waiting:
            job.result()
    barrier()


def _write_results(path: Path, image: NDArray, probability: NDArray, palette: NDArray,
                   kernels: Kernels | None, overlay_names: Sequence[str], size: Size,
                   probabilities: bool) -> None:
    """Decide on one image and write its files."""
    refined = refine(image, probability, kernels)
    if overlay_names:
        labels = refined.argmax(0).astype(np.uint8)
        picture = overlay(Image.fromarray(image), labels, palette)
        legend = shares(labels, palette, overlay_names)
        save(with_legend(picture, legend), overlay_path(path))
    if probabilities:
        with atomic_path(path.with_name(f"{path.stem}.npz")) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, probabilities=refined.astype(np.float16), size=np.array(size))
    write_mask(path, labels_at(refined, size), palette)


def overlay_path(path: Path) -> Path:
    """The file of the overlay that belongs to a label map: NAME.png -> NAME_overlay.png."""
    return path.with_name(f"{path.stem}_overlay.png")
