"""Multi-scale CAMs of a ResNet-50 (four scales with flip) against IRN's plain loop over images and scales.

`python tests/benchmarks/bench_cams.py` alternates both in one process, one thread, and compares CPU seconds: on a
shared machine they tell more than wall time. `--device cuda` compares wall time with the queue emptied.
"""
import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from clipwsss.cams.generator import build_generator
from clipwsss.cams.maps import SCALES, merge_scales, multi_scale_maps
from clipwsss.networks.resnet import fuse_batch_norm


def plain_loop(generator: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """As IRN's make_cam: one image and its mirror image at a time, batch norm as trained."""
    height, width = images.shape[-2:]
    maps = []
    for image in images:
        outputs = []
        for scale in SCALES:
            size = (round(height * scale), round(width * scale))
            scaled = F.interpolate(image[None], size, mode="bicubic", antialias=True).clamp(0, 1)
            both = F.relu(generator(torch.cat([scaled, scaled.flip(-1)])))
            outputs.append(both[0] + both[1].flip(-1))
        small = sum(F.interpolate(item[None], (-(-height // 4), -(-width // 4)), mode="bilinear",
                                  align_corners=False)[0] for item in outputs)
        maps.append(small / (small.amax(dim=(1, 2), keepdim=True) + 1e-5))
    return maps


def ours(generator: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """As `write_cams`: a batch of images of one size, batch norm fused."""
    size = tuple(-(-side // 4) for side in images.shape[-2:])
    return merge_scales(multi_scale_maps(generator, images, SCALES, True), size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(375, 500))
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="ours under autocast too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = build_generator([f"class {k}" for k in range(20)], weights="none").eval()
    for module in generator.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as trained ones, not the identity
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.0)
    generator.to(args.device)
    ready = fuse_batch_norm(generator).to(memory_format=torch.channels_last)
    images = torch.rand(args.images, 3, *args.size, device=args.device)
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    clock = time.perf_counter if args.device == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {"loop": [], "ours": [], "bf16": []}
    with torch.inference_mode():
        for number in range(args.rounds + 1):
            for name, network, make in (("loop", generator, plain_loop), ("ours", ready, ours), ("bf16", ready, ours)):
                if name == "bf16" and not args.bf16:
                    continue
                begin = clock()
                with torch.autocast(args.device, torch.bfloat16, enabled=name == "bf16"):
                    maps = make(network, images)
                wait()
                if number:  # the first round warms up
                    seconds[name].append((clock() - begin) / args.images)
                if name == "loop":
                    expected = torch.stack(maps)
                elif not number:
                    print(f"{name}: largest difference {(maps - expected).abs().max():.1e} (maps reach 1)")
    times = {name: statistics.median(row) for name, row in seconds.items() if row}
    print(f"{args.size[0]} x {args.size[1]}, {args.images} images: IRN's loop {times['loop']:.2f} s an image, "
          + ", ".join(f"{name} {value:.2f} s ({times['loop'] / value:.2f}x)" for name, value in times.items()
                      if name != "loop"))


if __name__ == "__main__":
    main()
