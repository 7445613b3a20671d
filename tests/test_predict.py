"""Predictions: multi-scale probabilities against a plain loop, the CRF's decision, files of many images."""
import numpy as np
import torch
import torch.nn.functional as F
from test_segmenter import built

from clipwsss.segment.predict import decide, probabilities


def test_probabilities_are_the_mean_over_scales_and_mirrors():
    network = built().network.eval()
    images = torch.rand(2, 3, 25, 38)
    plain = []
    for height, width in ((12, 19), (25, 38), (38, 57)):
        scaled = F.interpolate(images, (height, width), mode="bilinear")
        for mirrored in (False, True):
            logits = network(scaled.flip(-1) if mirrored else scaled)
            share = F.interpolate(logits, (25, 38), mode="bilinear").softmax(1)
            plain.append(share.flip(-1) if mirrored else share)
    result = probabilities(network, images, (0.5, 1.0, 1.5), flip=True)
    assert result.shape == (2, 3, 25, 38)
    assert torch.allclose(result, torch.stack(plain).mean(0), atol=1e-5)
    assert torch.allclose(result.sum(1), torch.ones(2, 25, 38), atol=1e-5)
    assert torch.allclose(probabilities(network, images[:1]), probabilities(network, images)[:1], atol=1e-5)


def test_crf_removes_specks_and_keeps_edges_of_the_image():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 200
    truth = np.zeros((40, 60), int)
    truth[:, 30:] = 2
    noisy = truth.copy()
    noisy[10, 10], noisy[20, 45] = 2, 0
    scores = np.full((4, 40, 60), 1e-4, np.float32)
    np.put_along_axis(scores, noisy[None], 0.8, 0)
    scores[[0, 2]] += 0.1
    assert np.array_equal(decide(image, scores / scores.sum(0)), noisy)
    assert np.array_equal(decide(image, scores / scores.sum(0), crf=True), truth)
    alone = np.zeros((3, 4, 5), np.float32)
    alone[1] = 1
    assert (decide(image[:4, :5], alone, crf=True) == 1).all()
