"""Segmentation and tagging scores in numpy. This module imports nothing else of the package.

A label map is uint8 [H,W]: 0 is background, 1..n-1 are classes, and 255 marks ignored pixels of the truth or
unsure ones of a pseudo mask.
Scores are in percent. A mean runs over the classes that occur in the truth or in the prediction, as in the
evaluation of chainercv and therefore of IRN.
"""
import numpy as np
from numpy.typing import ArrayLike, NDArray

IGNORE = 255


def confusion(prediction: NDArray, truth: NDArray, n: int) -> NDArray:
    """Number of pixels of each (true class, predicted class): int64 [n,n]. Pixels of 255 are left out.

    prediction, truth: label maps uint8 [H,W]. ValueError for another type, for unequal sizes and for values
    outside 0..n-1.
    """
    for name, labels in (("prediction", prediction), ("truth", truth)):
        if labels.dtype != np.uint8:
            raise ValueError(f"{name}: label maps are uint8, not {labels.dtype}")
    if prediction.shape != truth.shape:
        raise ValueError(f"the prediction is {_size(prediction.shape)}, the truth {_size(truth.shape)} "
                         "(height x width)")
    true = truth.ravel()
    predicted = prediction.ravel()
    # Neighbours in a label map are mostly equal, so that counting runs of equal pairs is several times faster
    # than counting pixels. Example:
    #     true       0 0 0 1 1 1
    #     predicted  0 0 2 2 1 1     runs end at 1, 2, 3 and 5 and have 2, 1, 1 and 2 pixels,
    #                  ^ ^ ^   ^     so that the pairs are (0 0 1 1), (0 2 2 1) and their counts (2 1 1 2)
    differs_from_next = true[1:] != true[:-1]
    differs_from_next |= predicted[1:] != predicted[:-1]
    run_ends = np.append(np.flatnonzero(differs_from_next), true.size - 1)
    if run_ends.size * 8 < true.size:
        true = true[run_ends]
        predicted = predicted[run_ends]
        counts = np.diff(run_ends, prepend=-1)
    else:  # runs are too short to save work: count each of the 256 * 256 possible pairs
        pixels_of_pair = np.bincount(true.astype(np.uint16) * 256 + predicted, minlength=256 * 256)
        occurring = np.flatnonzero(pixels_of_pair)
        true = occurring // 256
        predicted = occurring % 256
        counts = pixels_of_pair[occurring]
    scored = (true != IGNORE) & (predicted != IGNORE)
    true = true[scored].astype(np.int64)
    predicted = predicted[scored]
    counts = counts[scored]
    largest = true.max(initial=0)
    if largest >= n:
        raise ValueError(f"the truth has value {largest}; classes are 0..{n - 1}, ignored pixels {IGNORE}")
    largest = predicted.max(initial=0)
    if largest >= n:
        raise ValueError(f"the prediction has value {largest}; classes are 0..{n - 1}")
    table = np.bincount(true * n + predicted, weights=counts, minlength=n * n)
    return table.reshape(n, n).astype(np.int64)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def scores(table: NDArray) -> dict:
    """Scores in percent of a confusion [...,n,n] with rows of true classes.

    Returns `iou`, `precision` and `recall` [...,n], which are NaN for an absent class; their means `miou`,
    `mean_precision` and `mean_recall` [...]; the pixel `accuracy` [...]; and `classes` [...], the number of
    classes that occur in the truth or in the prediction.
    """
    correct = np.diagonal(table, axis1=-2, axis2=-1)
    true = table.sum(-1)
    predicted = table.sum(-2)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: the class is absent
        figures = {"iou": 100.0 * correct / (true + predicted - correct),
                   "precision": 100.0 * correct / predicted,
                   "recall": 100.0 * correct / true,
                   "accuracy": 100.0 * correct.sum(-1) / true.sum(-1)}
        for name, mean in (("iou", "miou"), ("precision", "mean_precision"), ("recall", "mean_recall")):
            present = np.isfinite(figures[name]).sum(-1)
            figures[mean] = np.nansum(figures[name], -1) / present
    figures["classes"] = np.isfinite(figures["iou"]).sum(-1)
    return figures


def threshold_counts(cams: NDArray, keys: ArrayLike, truth: NDArray, thresholds: ArrayLike,
                     n: int) -> tuple[NDArray, NDArray, NDArray]:
    """Confusions of one image's CAMs at T background thresholds, of the classes that occur in the image.

    Returns the true classes [r], the predicted classes [1 + k], background first, and the number of pixels of
    each pair at each threshold, int64 [T, r, 1 + k]. This is small where there are many classes: 99 tables of
    81 x 81 have 5 MB, those of an image's own 4 and 3 classes 10 kB.
    cams: float32 [k,H,W] of the 0-based classes keys [k]; truth: uint8 [H,W]; n: classes with background. A
    pixel belongs to the class of its largest map where that map exceeds the threshold, otherwise to the
    background; a tie goes to the background, as in IRN's eval_cam. ValueError for keys that are not different
    numbers in 0..n-2, for values of the truth outside 0..n-1 and for unequal sizes.
    """
    keys = np.asarray(keys, np.int64)
    thresholds = np.asarray(thresholds, np.float32)
    if cams.shape[1:] != truth.shape:
        raise ValueError(f"the maps are {_size(cams.shape[1:])}, the truth {_size(truth.shape)} "
                         "(height x width)")
    if keys.size and not 0 <= keys.min() <= keys.max() < n - 1:
        raise ValueError(f"the keys {keys.tolist()} are not all in 0..{n - 2}")
    if len(np.unique(keys)) < len(keys):
        raise ValueError(f"the keys {keys.tolist()} are not all different")
    pixels_of_class = confusion(np.zeros_like(truth), truth, n)[:, 0]
    true_classes = np.flatnonzero(pixels_of_class)
    counts = np.zeros((thresholds.size, true_classes.size, 1 + keys.size), np.int64)
    if keys.size:
        # Each pixel has a true class, a largest map and a number of thresholds below the value of that map.
        # Example: of the thresholds 0.1, 0.3 and 0.5, two lie below the value 0.4.
        scored = np.flatnonzero(truth.ravel() != IGNORE)
        true = truth.ravel()[scored].astype(np.int64)
        values = cams.reshape(len(keys), -1)[:, scored]
        ascending = np.argsort(thresholds)
        n_below = np.searchsorted(thresholds[ascending], values.max(0), side="left")
        shape = (n, len(keys), thresholds.size + 1)
        cells = (true * shape[1] + values.argmax(0)) * shape[2] + n_below
        histogram = np.bincount(cells, minlength=shape[0] * shape[1] * shape[2]).reshape(shape)[true_classes]

        # The value 0.4 above exceeds the thresholds of ranks 0 and 1: a value exceeds the threshold of rank r
        # where at least r + 1 thresholds lie below it. Sums from the end count such pixels for all ranks.
        sums = np.flip(np.flip(histogram, -1).cumsum(-1), -1)
        counts[ascending, :, 1:] = np.moveaxis(sums[:, :, 1:], -1, 0)
    counts[:, :, 0] = pixels_of_class[true_classes] - counts.sum(-1)
    return true_classes, np.append(0, keys + 1), counts


def add_counts(tables: NDArray, counts: tuple[NDArray, NDArray, NDArray]) -> None:
    """Add one image's `threshold_counts` to confusions int64 [T,n,n]."""
    true_classes, predicted_classes, pixels = counts
    tables[:, true_classes[:, None], predicted_classes] += pixels


def threshold_confusions(cams: NDArray, keys: ArrayLike, truth: NDArray, thresholds: ArrayLike,
                         n: int) -> NDArray:
    """Confusions int64 [T,n,n] of one image's CAMs at T thresholds; the arguments of `threshold_counts`."""
    tables = np.zeros((np.size(thresholds), n, n), np.int64)
    add_counts(tables, threshold_counts(cams, keys, truth, thresholds, n))
    return tables


def average_precision(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Mean average precision (mAP) of image tags in percent, over the classes that some image has.

    predictions [N,K]: any real scores; labels [N,K]: 0 or 1. The average precision of a class is the sum of
    recall steps times precision, where equal scores enter together (as in scikit-learn). NaN where no image
    has a tag. ValueError for other shapes and for scores that are not finite.
    """
    predictions = np.asarray(predictions, np.float64)
    labels = np.asarray(labels) > 0
    if predictions.shape != labels.shape or predictions.ndim != 2:
        raise ValueError(f"scores {predictions.shape} and labels {labels.shape} are not both [N,K]")
    if not np.isfinite(predictions).all():
        raise ValueError("the scores are not all finite")
    precisions = []
    for score, positive in zip(predictions.T, labels.T):
        if not positive.any():
            continue
        descending = np.argsort(-score, kind="stable")
        # The last image of each group of equal scores. Example: scores 0.9 0.7 0.7 give 0 and 2.
        last = np.append(np.flatnonzero(np.diff(score[descending])), len(score) - 1)
        found = positive[descending].cumsum()[last]
        newly_found = np.diff(found, prepend=0)
        precisions.append((newly_found * found / (last + 1)).sum() / positive.sum())
    if not precisions:
        return float("nan")
    return 100 * float(np.mean(precisions))
