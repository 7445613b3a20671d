"""CLIP's own maps against a plain loop over tags, one core: `python tests/benchmarks/bench_clip_maps.py`.

The loop works as CLIP-ES' release does: every block's attention is kept, each tag runs the last block forward
and backward (the weights' gradients included, which the release does not switch off), and each tag balances the
attention anew. Weights are random. Peaks are those of a process of its own, beyond what it holds before the pass.
"""
import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from clipwsss.cams.clip_maps import class_affinity, clip_maps, enlarged
from clipwsss.cams.maps import min_max
from clipwsss.clip import CLIP, Architecture


def random_clip() -> CLIP:
    """ViT-B/16 with random weights and CLIP's scale of cosines; its text transformer is tiny."""
    torch.manual_seed(0)
    clip = CLIP(Architecture(512, 224, 12, 768, 16, 77, 100, 64, 1, 1)).eval().requires_grad_(False)
    for block in clip.visual.transformer.resblocks:
        block.attn.in_proj_weight *= 2
    clip.logit_scale.fill_(4.6)
    return clip


def attention_layers(clip: CLIP) -> list[torch.nn.MultiheadAttention]:
    """torch's own attention layer with the weights of each block."""
    layers = []
    for block in clip.visual.transformer.resblocks:
        layer = torch.nn.MultiheadAttention(768, 12)
        layer.load_state_dict(block.attn.state_dict())
        layers.append(layer)
    return layers


def run_block(block: torch.nn.Module, layer: torch.nn.Module, x: Tensor, normed: Tensor) -> tuple[Tensor, Tensor]:
    """A block on tokens [L,1,W] by torch's attention layer: (tokens, attention [1,L,L])."""
    mixed, weights = layer(normed, normed, normed, need_weights=True)
    x = x + mixed
    hidden = block.mlp.c_fc(block.ln_2(x))
    return x + block.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden)), weights


def plain_loop(clip: CLIP, layers: list, image: Tensor, text: Tensor, backgrounds: Tensor) -> Tensor:
    """Maps [k,H,W] of one image [1,3,H,W], one tag after another."""
    tower = clip.visual
    last = tower.transformer.resblocks[-1]
    last.requires_grad_(True)
    grid = [side // 16 for side in image.shape[-2:]]
    seen = []
    with torch.no_grad():
        x = tower.embed(clip.normalise(image)).transpose(0, 1)
        for block, layer in zip(tower.transformer.resblocks[:-1], layers):
            x, weights = run_block(block, layer, x, block.ln_1(x))
            seen.append(weights)
    maps = []
    for tag in range(len(text)):
        normed = last.ln_1(x)
        normed.retain_grad()
        out, weights = run_block(last, layers[-1], x, normed)
        feature = F.normalize(tower.ln_post(out.transpose(0, 1))[:, 1:].mean(1) @ tower.proj, dim=-1)
        scores = (clip.logit_scale.exp() * feature @ torch.cat([text, backgrounds]).T).softmax(-1)
        scores[0, tag].backward()
        channels = normed.grad[1:, 0].mean(0)
        one = F.relu(normed[1:, 0].detach() @ channels).reshape(1, *grid)
        one = min_max(min_max(one, 1e-7), 1e-7)
        attention = torch.stack([*seen, weights.detach()])[-8:, 0, 1:, 1:].mean(0)
        maps.append(min_max(class_affinity(one, attention), 1e-7))
    last.requires_grad_(False)
    return enlarged(torch.cat(maps), image.shape[-2:])


def memory(field: str) -> int:
    """A field of this process's status in bytes (Linux)."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def inputs(tags: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """An image [1,3,H,W], texts [k,512] and 25 backgrounds."""
    generator = torch.Generator().manual_seed(tags)
    return (torch.rand(1, 3, *size, generator=generator),
            F.normalize(torch.randn(tags, 512, generator=generator), dim=-1),
            F.normalize(torch.randn(25, 512, generator=generator), dim=-1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(384, 512))
    parser.add_argument("--tags", type=int, nargs="+", default=[1, 3, 6])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="ours computes all but the last block in bfloat16")
    parser.add_argument("--peak", choices=("ours", "loop"), help="print the peak memory of one pass, and stop")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clip = random_clip()
    layers = attention_layers(clip)

    def ours(image: Tensor, text: Tensor, backgrounds: Tensor) -> Tensor:
        image_index = torch.zeros(len(text), dtype=torch.long)
        return clip_maps(clip, image, image_index, text, backgrounds, bf16=args.bf16)

    def loop(image: Tensor, text: Tensor, backgrounds: Tensor) -> Tensor:
        return plain_loop(clip, layers, image, text, backgrounds)

    functions = {"ours": ours, "loop": loop}
    if args.peak:
        functions[args.peak](*inputs(1, (64, 64)))  # allocates what stays
        held = memory("VmRSS")
        functions[args.peak](*inputs(args.tags[-1], args.size))
        print(f"{(memory('VmHWM') - held) / 2 ** 20:.0f}")
        return
    for tags in args.tags:
        made = inputs(tags, args.size)
        difference = (ours(*made) - loop(*made)).abs().max()
        best = {"ours": float("inf"), "loop": float("inf")}
        for _ in range(args.rounds):
            for name, function in functions.items():
                begin = time.process_time()
                function(*made)
                best[name] = min(best[name], time.process_time() - begin)
        print(f"{args.size[0]} x {args.size[1]}, {tags} tags: ours {best['ours']:.2f} s, loop {best['loop']:.2f} s, "
              f"ratio {best['loop'] / best['ours']:.2f}; largest difference {difference:.1e}", flush=True)
    for name in functions:
        command = [sys.executable, __file__, "--peak", name, "--tags", str(args.tags[-1]), "--size",
                   *map(str, args.size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"peak of {name} with {args.tags[-1]} tags: {done.stdout.strip()} MiB beyond the weights")


if __name__ == "__main__":
    main()
