"""The walks of make_pseudo.py against the published steps."""
import numpy as np
import torch
import torch.nn.functional as F

from clipwsss.cams.cam_files import CamFile
from clipwsss.refine.random_walk import propagate
from clipwsss.refine.stages import constant_background, irn_walk, label_map


def test_irn_walk_equals_the_published_steps():
    """The release's make_sem_seg_labels, step by step, on a stand-in network."""
    generator = torch.Generator().manual_seed(0)
    boundary = torch.rand(12, 17, generator=generator) ** 3

    class Network(torch.nn.Module):
        def boundaries(self, image, pad_to):
            assert image.shape == (3, 45, 66) and image.max() <= 1 and pad_to == 80
            return boundary

    file = CamFile(np.array([1, 4]), torch.rand(2, 12, 17, generator=generator).numpy(), None)
    image = torch.zeros(3, 45, 66, dtype=torch.uint8)
    found = irn_walk(torch.from_numpy(file.cam), image, Network(), pad_to=80).numpy()
    walked = propagate(torch.from_numpy(file.cam), boundary, radius=5, beta=10, exp_times=8)
    plain = F.interpolate(walked[None], scale_factor=4, mode="bilinear", align_corners=False)[0, :, :45, :66]
    assert np.abs(found - (plain / plain.max()).numpy()).max() < 1e-6
    labels = np.concatenate([np.full((1, 45, 66), 0.25), found]).argmax(0)
    mask = label_map(constant_background(torch.from_numpy(found), 0.25).argmax(0), file.keys)
    assert np.array_equal(mask, np.array([0, 2, 5])[labels])
