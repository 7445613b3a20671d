"""Segmentation and tagging scores from label maps, in numpy (a leaf module: needs numpy and scipy only).

Label maps are uint8 [H,W], 0 background, 255 ignored in the truth. Scores are in percent; a mean runs over
the classes that occur in truth or prediction, as chainercv's and thus IRN's evaluation does.
"""
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import maximum_filter, minimum_filter

IGNORE = 255


def confusion(prediction: NDArray, truth: NDArray, n: int) -> NDArray:
    """Pixels of uint8 [H,W] maps by (true class, predicted class): int64 [n,n], without ignored ones.

    ValueError on other types, unequal sizes and values outside 0..n-1.
    """
    for name, labels in (("prediction", prediction), ("truth", truth)):
        if labels.dtype != np.uint8:
            raise ValueError(f"{name}: label maps are uint8, not {labels.dtype}")
    if prediction.shape != truth.shape:
        raise ValueError(f"the prediction is {_size(prediction)}, the truth {_size(truth)} (height x width)")
    true, predicted = truth.ravel(), prediction.ravel()
    changes = true[1:] != true[:-1]
    changes |= predicted[1:] != predicted[:-1]
    ends = np.append(np.flatnonzero(changes), true.size - 1)
    if ends.size * 8 < true.size:  # label maps are runs of equal pairs: count those instead of pixels
        true, predicted, counts = true[ends], predicted[ends], np.diff(ends, prepend=-1)
    else:
        every = np.bincount(true.astype(np.uint16) << 8 | predicted, minlength=1 << 16)
        pairs = np.flatnonzero(every)
        true, predicted, counts = pairs >> 8, pairs & 255, every[pairs]
    scored = true != IGNORE
    true, predicted, counts = true[scored].astype(np.int64), predicted[scored], counts[scored]
    if (worst := true.max(initial=0)) >= n:
        raise ValueError(f"the truth has value {worst}; classes are 0..{n - 1}, ignored pixels {IGNORE}")
    if (worst := predicted.max(initial=0)) >= n:
        raise ValueError(f"the prediction has value {worst}; classes are 0..{n - 1}")
    return np.bincount(true * n + predicted, weights=counts, minlength=n * n).reshape(n, n).astype(np.int64)


def _size(array: NDArray) -> str:
    return "x".join(map(str, array.shape))


def _ratio(part: ArrayLike, whole: ArrayLike) -> NDArray:
    """Percent, NaN where there is nothing to divide by."""
    return np.divide(100.0 * part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def scores(table: NDArray) -> dict:
    """Scores in percent of a confusion [..., n,n].

    iou, precision, recall [..., n] (NaN: class absent), their means miou, mean_precision, mean_recall [...],
    the pixel accuracy [...], and classes [...], how many occur in truth or prediction.
    """
    hit, true, predicted = np.diagonal(table, axis1=-2, axis2=-1), table.sum(-1), table.sum(-2)
    iou, precision, recall = (_ratio(hit, whole) for whole in (true + predicted - hit, predicted, true))
    return {"iou": iou, "precision": precision, "recall": recall, "miou": mean_present(iou),
            "mean_precision": mean_present(precision), "mean_recall": mean_present(recall),
            "accuracy": _ratio(hit.sum(-1), true.sum(-1))[()], "classes": np.isfinite(iou).sum(-1)}


def mean_present(values: NDArray) -> NDArray:
    """Mean over the last axis without NaN; NaN where nothing is left."""
    counts = np.isfinite(values).sum(-1)
    return np.divide(np.nansum(values, -1), counts, out=np.full(counts.shape, np.nan), where=counts > 0)[()]


def threshold_confusions(cams: NDArray, keys: ArrayLike, truth: NDArray, thresholds: ArrayLike,
                         n: int) -> NDArray:
    """Confusions [T,n,n] of "class of the largest map where it exceeds t, else background" for every t.

    cams: float32 [k,H,W] of the 0-based classes keys [k]; truth: uint8 [H,W]. Pixels are passed once: a
    histogram of (truth, class, number of thresholds below the value) holds all confusions. A tie goes to the
    background, as in IRN's eval_cam. ValueError on values outside the classes and on unequal sizes.
    """
    keys, thresholds = np.asarray(keys, np.int64), np.asarray(thresholds, np.float32)
    if cams.shape[1:] != truth.shape:
        raise ValueError(f"the maps are {_size(cams[:1])[2:]}, the truth {_size(truth)} (height x width)")
    if keys.size and not 0 <= keys.min() <= keys.max() < n - 1:
        raise ValueError(f"the keys {keys.tolist()} are not all in 0..{n - 2}")
    empty = confusion(np.zeros_like(truth), truth, n)
    if not keys.size:
        return np.repeat(empty[None], thresholds.size, 0)
    order, bins = np.argsort(thresholds), thresholds.size + 1
    kept = np.flatnonzero(truth.ravel() != IGNORE)
    flat = cams.reshape(len(keys), -1)[:, kept]
    best = flat.argmax(0)
    above = np.searchsorted(thresholds[order], flat.max(0), side="left")
    index = (truth.ravel()[kept].astype(np.int64) * len(keys) + best) * bins + above
    histogram = np.bincount(index, minlength=n * len(keys) * bins).reshape(n, len(keys), bins)
    # Foreground at the j-th lowest threshold is what lies above more than j of them.
    foreground = np.flip(np.flip(histogram, -1).cumsum(-1), -1)[..., 1:]
    tables = np.zeros((thresholds.size, n, n), np.int64)
    np.add.at(tables, (order[:, None, None], np.arange(n)[None, :, None], keys[None, None, :] + 1),
              foreground.transpose(2, 0, 1))
    tables[:, :, 0] = empty[:, 0] - tables[:, :, 1:].sum(-1)
    return tables


def boundary_confusion(prediction: NDArray, truth: NDArray, n: int, ratio: float = 0.02) -> NDArray:
    """Confusion [n+1,n+1] of the classes' inner boundary bands; class n is "in no band".

    Boundary IoU (Cheng et al., CVPR 2021): pixels of a class within `ratio` of the image diagonal of its edge
    or the image's (chessboard distance, as their 3x3 erosions); scores(...)["iou"][:n]. Tables add up over a
    data set (the paper: per instance). The truth's ignored pixels are taken out of both maps and are an edge.
    """
    confusion(prediction, truth, n)
    reach = 2 * max(1, round(ratio * float(np.hypot(*truth.shape)))) + 1

    def banded(labels: NDArray) -> NDArray:
        low = minimum_filter(labels, reach, mode="constant", cval=0)
        high = maximum_filter(labels, reach, mode="constant", cval=IGNORE)
        return low != high

    ignored = truth == IGNORE
    inner_prediction = np.where(banded(np.where(ignored, IGNORE, prediction)), prediction, n).astype(np.uint8)
    inner_truth = np.where(banded(truth) | ignored, truth, n).astype(np.uint8)
    return confusion(inner_prediction, inner_truth, n + 1)


def average_precision(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Multi-label mAP in percent: mean over the classes with a positive of their average precision.

    predictions [N,K]: any real scores; labels [N,K]: 0/1. Sum of recall steps times precision, equal scores
    entering together (as scikit-learn). NaN without positives; ValueError on bad shapes or scores.
    """
    predictions, labels = np.asarray(predictions, np.float64), np.asarray(labels) > 0
    if predictions.shape != labels.shape or predictions.ndim != 2:
        raise ValueError(f"scores {predictions.shape} and labels {labels.shape} are not both [N,K]")
    if not np.isfinite(predictions).all():
        raise ValueError("the scores are not all finite")
    precisions = []
    for score, positive in zip(predictions.T, labels.T):
        if positive.any():
            order = np.argsort(-score, kind="stable")
            last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
            hits = positive[order].cumsum()[last]
            precisions.append((np.diff(hits, prepend=0) * hits / (last + 1)).sum() / positive.sum())
    return 100 * float(np.mean(precisions)) if precisions else float("nan")
