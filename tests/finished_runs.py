"""A folder with data and finished runs of all stages, for the tests of what users and machines do to it."""
import importlib
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

DATA = ["--dataset", "folder", "--data-root", "data", "--workers", "0"]
TRAIN = [*DATA, "--device", "cpu", "--epochs", "1", "--batch-size", "2", "--crop-size", "32"]
NETWORK = ["--backbone", "resnet_tiny", "--weights", "none"]
MAPS = ["--resize-long", "0", "0", "--scales", "1", "--brightness", "0"]
BASE = {"train_cam": [*TRAIN, *NETWORK, "--output-stride", "4", *MAPS],
        "train_prompt": [*TRAIN, *MAPS, "--clip", "toy", "--class-prompt", "name", "--background-prompt", "none"],
        "make_pseudo": [*TRAIN, *NETWORK, "--refine", "none", "--train-radius", "3"],
        "train_seg": [*TRAIN, *NETWORK, "--output-stride", "4", "--rates", "1", "--test-scales", "1", "--no-crf", "--no-multi-scale",
                      "--predict-split", "train", "--accumulate", "1"],
        "eval": DATA}
RUNS = "runs/folder"


def png_head(width, height):
    """A PNG that claims to be large and holds nothing."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def draw_data(root):
    """Six images of two classes, their tags and masks."""
    rng, lines = np.random.default_rng(0), ["image,labels"]
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(6):
        pixels, mask = rng.integers(60, 90, (40, 48, 3), np.uint8), np.zeros((40, 48), np.uint8)
        mask[8:30, 10:36] = 1 + number % 2
        pixels[8:30, 10:36, number % 2] = 220
        Image.fromarray(pixels).save(root / "images" / f"im{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"im{number}.png")
        lines.append(f"im{number},{('boat', 'sheep')[number % 2]}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    (root / "classes.txt").write_text("boat\nsheep\n")


def make(root):
    """Data, finished runs of all stages in `root`, and what a user may have lying about; the folder."""
    draw_data(root / "data")
    before = Path.cwd()
    os.chdir(root)
    try:
        for script, flags in BASE.items():
            assert importlib.import_module(script).main([*flags]) == 0
        for place in ("hand/masks", "nothing", "twins"):
            (root / place).mkdir(parents=True)
        shutil.copy("data/masks/im0.png", "hand/masks/im0.png")
        shutil.copy("data/images/im0.png", "twins/im0.png")
        shutil.copy("data/images/im0.png", "twins/im0_overlay.png")
        Image.fromarray(np.full((20, 20), 40000, np.uint16)).save("deep.png")
        Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save("dot.png")
        Path("bomb.png").write_bytes(png_head(60000, 60000))
        Path("notes.txt").write_text("mine\n")
        Path("list.json").write_text("[1]")
        Path("dogs.json").write_text('{"dog": ["hound"]}')
        torch.save({"kind": "generator"}, "bare.pt")
        torch.save({"kind": "segmenter", "config": {"design": 3}, "state_dict": {}}, "odd.pt")
    finally:
        os.chdir(before)
    return root


def snapshot(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


def cut(name, length=100):
    """What leaves only the beginning of a file."""
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:length])
