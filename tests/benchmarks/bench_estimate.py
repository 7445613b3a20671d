"""An estimate of what POLE's whole pipeline costs on VOC and COCO, from operations that are counted and times measured.

`python tests/benchmarks/bench_estimate.py --tflops 60 --cores 16` counts the floating-point operations of every network
of every stage at the presets' sizes. Nothing is computed for that: the tensors are on torch's meta device. It measures
decoding, confident labels, walk and CRF on one core of this machine. A stage's hours are its operations over --tflops
or its core-seconds over --cores, whichever is more. N GPUs with N times the cores need an N-th of both.
"""
import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import make_pseudo
import train_cam
import train_prompt
import train_seg
from clipwsss.cams.generator import build_generator
from clipwsss.clip import CLIP, Architecture
from clipwsss.datasets.image_files import read_image
from clipwsss.datasets.transforms import train_transform
from clipwsss.networks import deeplab
from clipwsss.refine.affinity import build_affinity
from clipwsss.refine.labels import confident_labels
from clipwsss.refine.random_walk import propagate
from clipwsss.segment.predict import CRF_KERNELS, decide

# CLIP's ViT-B/32.
CLIP_SIZES = Architecture(
    embed_dim=512, image_resolution=224, vision_layers=12, vision_width=768, vision_patch_size=32,
    context_length=77, vocab_size=49408, text_width=512, text_heads=8, text_layers=12)
# Training images, validation images, classes, mean number of classes in an image, mean (H, W).
DATA = {"voc12": (10_582, 1_449, 20, 1.5, (375, 500)), "coco14": (82_081, 40_137, 80, 2.9, (480, 640))}


def settings(script: object, *flags: str) -> dict:
    """A script's settings on a data set, read from its --dry-run."""
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        script.main([*flags, "--data-root", "none", "--dry-run"])
    return json.loads(shown.getvalue())["settings"]


def operations(work: Callable[[], torch.Tensor], backward: bool = False) -> float:
    """Floating-point operations of a forward pass and, with `backward`, of its backward pass."""
    with FlopCounterMode(display=False) as counter:
        result = work()
        if backward:
            result.sum().backward()
    return float(counter.get_total_flops())


def over_scales(network: nn.Module, scales: list[float], size: tuple[int, int], flip: bool) -> float:
    """Operations of testing one image at these scales, with `flip` also its mirror image."""
    with torch.no_grad():
        return sum(operations(lambda: network(images(1 + flip, [round(scale * side) for side in size])))
                   for scale in scales)


def images(count: int, size: list[int]) -> torch.Tensor:
    """Images [count, 3, H, W] on the meta device."""
    return torch.empty(count, 3, *size, device="meta")


def seconds(work: Callable[[], object], rounds: int = 3) -> float:
    """CPU seconds of a call, the smallest of `rounds` measurements."""
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return min(times)


def processor(size: tuple[int, int], classes: int, crop: int) -> dict[str, float]:
    """Core-seconds for one image: reading and cropping, IRN's confident labels and walk, the segmenter's CRF."""
    photo = nn.functional.interpolate(torch.rand(1, 3, 8, 10), size, mode="bicubic")[0]  # smooth, with some grain
    photo = ((photo + 0.02 * torch.randn(3, *size)).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    seen = (torch.arange(classes + 1) < 4)[:, None, None]  # a trained segmenter sees about four labels in an image
    scores = (4 * torch.randn(1, classes + 1, 6, 8) - 30 * ~seen).softmax(1)
    scores = nn.functional.interpolate(scores, size, mode="bilinear")[0].numpy()
    cams = scores[1:3] / scores[1:3].max()
    boundary = torch.rand(size[0] // 4, size[1] // 4)
    maps = torch.rand(2, size[0] // 4, size[1] // 4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        Image.fromarray(photo).save(path, quality=92)
        transform = train_transform(crop)
        return {"read": seconds(lambda: transform(read_image(path), None)),
                "walk": seconds(lambda: propagate(maps, boundary)),
                "labels": seconds(lambda: confident_labels(photo, cams, np.array([0, 1]), 0.3, 0.1), 1),
                "crf": seconds(lambda: decide(photo, scores, CRF_KERNELS), 1)}


def stages(dataset: str) -> dict[str, tuple[float, float]]:
    """Operations and core-seconds of every stage of POLE's pipeline on a data set."""
    train, val, classes, present, size = DATA[dataset]
    flags = ("--dataset", dataset)
    cam = settings(train_cam, *flags)
    guide = settings(train_prompt, *flags, "--method", "pole")
    irn = settings(make_pseudo, *flags)
    seg = settings(train_seg, *flags, "--weights", "deeplabv1_resnet101-coco.pth")
    labels = [str(number) for number in range(classes)]
    crop = images(1, [cam["crop_size"]] * 2)
    clip = CLIP(CLIP_SIZES).requires_grad_(False).to("meta")
    classifier, generator = (build_generator(
        labels, "resnet50", "none", freeze_stages=stage["freeze_stages"]).to("meta") for stage in (cam, guide))
    affinity = build_affinity("irn", irn["backbone"], "none")[0].to("meta")
    design = deeplab.Design(seg["network"], seg["backbone"], seg["output_stride"],
                            multi_scale=seg["multi_scale"])
    segmenter = deeplab.build_deeplab(design, classes + 1).to("meta")
    regions = images(1, [clip.input_resolution] * 2).requires_grad_()
    guided = (operations(lambda: generator(crop), True)
              + 2 * present * operations(lambda: clip.encode_image(regions), True))
    maps = over_scales(generator, cam["scales"], size, cam["flip"])
    shown = images(1, [seg["crop_size"]] * 2)
    learned = operations(lambda: segmenter.training_logits(shown)[-1], True)  # the last is the maximum of all scales
    steps = seg["iterations"] * seg["accumulate"] * seg["batch_size"]
    time_of = processor(size, classes, cam["crop_size"])
    return {
        "train_cam, training": (train * cam["epochs"] * operations(lambda: classifier(crop), True),
                                train * cam["epochs"] * time_of["read"]),
        "train_cam, CAMs": (train * maps, train * time_of["read"]),
        "train_prompt, training": (train * guide["epochs"] * guided, train * guide["epochs"] * time_of["read"]),
        "train_prompt, CAMs": (train * maps, train * time_of["read"]),
        "make_pseudo, learning edges": (train * irn["epochs"] * operations(lambda: affinity(crop), True),
                                        train * irn["epochs"] * time_of["read"] + train * time_of["labels"]),
        "make_pseudo, walk": (train * operations(lambda: affinity(images(2, [512, 512]))), train * time_of["walk"]),
        "train_seg, training": (steps * learned, steps * time_of["read"]),
        "train_seg, prediction, CRF": (val * over_scales(segmenter, seg["test_scales"], size, seg["test_flip"]),
                                       val * time_of["crf"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tflops", type=float, default=60.0, help="10^12 operations per second of one GPU")
    parser.add_argument("--cores", type=float, default=16.0, help="processor cores for each GPU")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for dataset, (train, val, *_) in DATA.items():
        print(f"\n{dataset}: {train} training and {val} validation images; hours at {args.tflops:g} Tflop/s and {args.cores:g} "
              f"cores a GPU\n{'stage':<28} {'Pflop':>8} {'core-hours':>10} {'1 GPU':>7} {'8 GPUs':>7}")
        total = np.zeros(3)
        for stage, (count, cpu) in stages(dataset).items():
            hours = max(count / args.tflops / 1e12, cpu / args.cores) / 3600
            total += count / 1e15, cpu / 3600, hours
            print(f"{stage:<28} {count / 1e15:8.0f} {cpu / 3600:10.1f} {hours:7.2f} {hours / 8:7.2f}")
        print(f"{'all':<28} {total[0]:8.0f} {total[1]:10.1f} {total[2]:7.2f} {total[2] / 8:7.2f}")


if __name__ == "__main__":
    main()
