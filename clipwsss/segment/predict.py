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
from ..datasets.base import files_of
from ..datasets.folder import SUFFIXES
from ..datasets.loaders import size_loader
from ..datasets.reading import MOST_PIXELS, read_image
from ..datasets.transforms import eval_transform
from ..distributed import barrier, gather, share
from ..errors import InputError
from ..pictures import overlay, save, shares, with_legend, write_mask
from ..progress import Progress
from ..networks.folding import folded
from ..refine.crf import dense_crf, unary_from_probabilities
from ..training import autocast
from .segmenter import Segmenter

# deeplab-pytorch's for VOC 2012: (sxy, weight), (sxy, srgb, weight)
CRF_KERNELS = ((1, 3), (67, 3, 4))
LIKELY = 1e-3  # probability that a label needs somewhere in an image to take part in its CRF


class Prediction(NamedTuple):
    """How to predict: the scales whose probabilities are averaged, mirror images too (flip), dense CRF.

    batch_size: images of one size per forward pass; workers: threads that decide and write, and processes
    that load.
    """
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    crf: bool = False
    batch_size: int = 1
    workers: int = 0
    precision: str = "fp32"


@torch.inference_mode()
def probabilities(network: nn.Module, images: Tensor, scales: Sequence[float] = (1.0,),
                  flip: bool = False) -> Tensor:
    """Mean class probabilities [B,n_labels,H,W] of images [B,3,H,W] over scales and mirror images.

    The largest scale comes first, and the others, added to the mean one by one, fit into the memory it took.
    """
    size, total = images.shape[-2:], None
    mirrors = (False, True) if flip else (False,)
    for scale in sorted(scales, reverse=True):
        scaled = images
        if scale != 1:
            target = [max(1, round(side * scale)) for side in size]
            scaled = F.interpolate(images, target, mode="bilinear", align_corners=False)
        for mirrored in mirrors:
            logits = network(scaled.flip(-1) if mirrored else scaled).float()
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
            share = logits.softmax(1).div_(len(scales) * len(mirrors))
            share = share.flip(-1) if mirrored else share
            total = share if total is None else total.add_(share)
    return total


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
                    done: Container[str] = ()) -> None:
    """Write FOLDER/NAME.png, the label map, of a data set's images but those in `done`."""
    plain = dataset.with_transform(eval_transform(), masks=False)
    loader = size_loader(plain, prediction.batch_size, prediction.workers, done)
    batches = (([folder / f"{name}.png" for name in batch.names], batch.images) for batch in loader)
    _write_all(segmenter, batches, prediction, sum(map(len, loader.batch_sampler)))


def predict_files(segmenter: Segmenter, files: Sequence[Path], folder: Path, prediction: Prediction,
                  skip_bad: bool = False, most: int = MOST_PIXELS) -> list[str]:
    """Write FOLDER/NAME.png, the label map, and NAME_overlay.png of image files; the bad ones, if skipped.

    Images of more than `most` pixels are bad.
    """
    problems, files = [], share(files)

    def batches() -> Iterator[tuple[list[Path], Tensor]]:
        for file in files:
            try:
                image = read_image(file, True, most)
            except InputError as error:
                if not skip_bad:
                    raise
                problems.append(str(error))
                continue
            yield [folder / f"{file.stem}.png"], eval_transform()(image, None)[0][None]

    _write_all(segmenter, batches(), prediction, len(files), overlays=True)
    return [problem for part in gather(problems) for problem in part]


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


def _write_all(segmenter: Segmenter, batches: Iterable[tuple[list[Path], Tensor]], prediction: Prediction,
               total: int, overlays: bool = False) -> None:
    """Write the label map of every image of `batches` (paths to write, images [B,3,H,W] in [0,1]).

    Afterwards those of all processes are there.
    The network's device computes probabilities, threads decide and write.
    """
    def write(path: Path, image: NDArray, likelihood: NDArray) -> None:
        labels = decide(image, likelihood, prediction.crf)
        write_mask(path, labels, segmenter.palette)
        if overlays:
            picture = overlay(Image.fromarray(image), labels, segmenter.palette)
            legend = shares(labels, segmenter.palette, ("background", *segmenter.classes))
            picture = with_legend(picture, legend)
            save(picture, path.with_name(f"{path.stem}_overlay.png"))

    network, device = folded(segmenter.network), next(segmenter.network.parameters()).device
    progress, waiting, threads = Progress("predict", total), [], max(1, prediction.workers)
    with ThreadPoolExecutor(threads) as pool:
        for paths, images in batches:
            with autocast(prediction.precision, device):
                likelihoods = probabilities(network, images.to(device, non_blocking=True), prediction.scales,
                                            prediction.flip).cpu().numpy()
            pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
            waiting += [pool.submit(write, *image) for image in zip(paths, pixels, likelihoods)]
            progress.update(len(paths))
            while len(waiting) > 2 * threads:  # few probabilities are held at once
                waiting.pop(0).result()
        for job in waiting:
            job.result()
    progress.close()
    barrier()
