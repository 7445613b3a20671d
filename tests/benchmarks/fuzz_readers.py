"""Damaged and made-up files for every reader: our error of one line or a result, nothing else.

    python tests/benchmarks/fuzz_readers.py --inputs 10000 --only cams masks

Each input is a good file with bytes changed, cut, doubled or mixed with another's, or (JSON) with values of other
kinds in places. A reader fails by any other exception, by more than 10 seconds or 4 GB, or by leaving a file.
"""
import argparse
import copy
import json
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clipwsss.cams.cam_files import read_cam, write_cam
from clipwsss.cams.generator import build_generator, load_generator
from clipwsss.datasets import build_dataset
from clipwsss.datasets.image_files import read_image, read_mask
from clipwsss.datasets.coco import compress_mask
from clipwsss.datasets.folder_files import read_classes
from clipwsss.datasets.tags import read_tags
from clipwsss.datasets.voc import read_labels
from clipwsss.errors import InputError
from clipwsss.files import save_network
from clipwsss.guidance.choices import read_choices
from clipwsss.guidance.regions import load_clip
from clipwsss.guidance.words import load_words, read_words
from clipwsss.pictures import voc_palette, write_mask
from clipwsss.refine.affinity import load_affinity
from clipwsss.refine.segments import Segment, read_segments, write_segments
from clipwsss.run import Run
from clipwsss.segment.segmenter import build_segmenter, Segmenter, save_segmenter
from clipwsss.toy.clip import CLIP_WEIGHTS, load_toy_clip

SIZE = (12, 16)
ODD = [None, True, -1, 0, 2**70, 1e400, 0.5, "", "x", "\x00", [], {}, [[]], [0], {"a": 1}]


class Reader(NamedTuple):
    """A file's name in its folder, the contents that inputs are made from, and what reads it there."""
    name: str
    seeds: list[bytes]
    read: Callable[[Path], object]
    structured: bool = False


def written(write: Callable[[Path], object], name: str = "file") -> bytes:
    """What `write` puts into a file."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        return next(path for path in Path(folder).iterdir()).read_bytes()


def a_cam(fmt: str) -> bytes:
    keys, cam, high = np.array([0, 1]), np.random.rand(2, 3, 4), np.random.rand(2, *SIZE)
    return written(lambda path: write_cam(path.parent, "a", keys, cam, fmt, high))


def readers() -> dict[str, Reader]:
    """Every reader by name."""
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, SIZE).astype(np.uint8)
    masks = [np.pad(np.ones((4, 5), bool), ((2, 6), (3, 8))), mask > 1]
    small = _generator()
    generator = written(lambda path: save_network(small, "generator", small.config, path), "generator.pt")
    design = {"network": "deeplabv2", "backbone": "resnet_tiny", "output_stride": 4, "rates": [1], "multi_scale": False,
              "frozen_bn": False}
    network, complete = build_segmenter(design, 3)
    segmenter = written(lambda path: save_segmenter(network, complete, ["boat", "cat"], voc_palette(), path))
    polygon = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [[1, 1, 9, 1, 9, 8, 1, 8]]}
    lengths = {**polygon, "id": 2, "segmentation": {"size": list(SIZE), "counts": [5, 20, 167]}}
    annotations = {"images": [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
                   "categories": [{"id": 1, "name": "boat"}, {"id": 3, "name": "cat"}], "annotations": [polygon, lengths]}
    compressed = json.dumps([{"segmentation": compress_mask(mask)} for mask in masks]).encode()
    rows = [{"image": "a.jpg", "labels": ["boat"], "split": "train"}, {"file_name": "b.jpg", "label": "boat;cat"}]
    choices = {"a": {"boat": {"word": "ship", "similarity": {"boat": 0.2, "ship": 0.3}}}}
    xml = b"<annotation><object><name>boat</name><part><name>sail</name></part></object></annotation>"
    cvat = (b'<annotations><image id="0" name="a.jpg" subset="Train"><tag label="boat" source="manual"/></image>'
            b"</annotations>")
    answers = [{"image": "/data/upload/1/8c1f2a3b-a.jpg", "choice": choice, "annotator": 1, "annotation_id": 2}
               for choice in ("boat", {"choices": ["boat", "cat"]})]
    fiftyone = {"classes": ["boat", "cat"], "labels": {"a": 0, "b": [{"label": 1}, 0], "c": None}}
    labels = {"2007_000032": np.eye(20, dtype=np.float32)[3], np.int32(2007000039): np.ones(20, np.float32)}
    state = {"lr": 0.1, "stage": "train_cam", "inputs": {"cams": ["cams", "0123"]}, "scales": [1.0]}
    return {
        "cams npz": Reader("a.npz", [a_cam("npz"), a_cam("full")], lambda folder: read_cam(folder, "a")),
        "cams npy": Reader("a.npy", [a_cam("irn")], lambda folder: read_cam(folder, "a")),
        "generators": Reader("g.pt", [generator], lambda folder: load_generator(folder / "g.pt", ["boat", "cat"])),
        "segmenters": Reader("s.pt", [segmenter], lambda folder: Segmenter(folder / "s.pt")),
        "affinity": Reader("i.pt", [generator], lambda folder: load_affinity(folder / "i.pt", "irn")),
        "clip": Reader("c.pt", [CLIP_WEIGHTS.read_bytes()[:200_000], generator],
                       lambda folder: load_clip(str(folder / "c.pt"), torch.device("cpu"))),
        "toy clip": Reader("c.pt", [CLIP_WEIGHTS.read_bytes()], lambda folder: load_toy_clip(folder / "c.pt")),
        "masks": Reader("m.png", [written(lambda path: write_mask(path, mask, voc_palette()))],
                        lambda folder: read_mask(folder / "m.png")),
        "images": Reader("p.jpg", [_picture(mask, "JPEG"), _picture(mask, "PNG"), _picture(mask, "BMP")],
                         lambda folder: read_image(folder / "p.jpg", oriented=True)),
        "csv": Reader("t.csv", [b"image,labels,split\na.jpg,boat;cat,train\nb.jpg,cat,val\n",
                                b"image,boat,cat\na.jpg,1,0\nb.jpg,0,1\n"], lambda folder: read_tags(folder / "t.csv")),
        "json tags": Reader("t.json", [json.dumps(rows).encode(), json.dumps(annotations).encode()],
                            lambda folder: read_tags(folder / "t.json"), True),
        "exported json": Reader("t.json", [json.dumps(content).encode() for content in (answers, fiftyone)],
                                lambda folder: read_tags(folder / "t.json", ["boat"]), True),
        "exported xml": Reader("t.xml", [xml, cvat], lambda folder: read_tags(folder / "t.xml")),
        "classes": Reader("c.txt", ["boat: ship, canoe\ncat\nété: a\n".encode()],
                          lambda folder: read_classes(folder / "c.txt")),
        "words": Reader("w.txt", ["ship\nred boat\nété\n".encode()], lambda folder: read_words(folder / "w.txt")),
        "xml": Reader("voc/Annotations/a.xml", [xml], lambda folder: build_dataset("voc12", folder / "voc", "train")),
        "class labels": Reader("cls_labels.npy", [written(lambda path: np.save(path.with_suffix(".npy"), labels))],
                               lambda folder: read_labels(folder / "cls_labels.npy", 20)),
        "coco": Reader("coco/annotations/instances_train2014.json", [json.dumps(annotations).encode()],
                       lambda folder: build_dataset("coco14", folder / "coco", "train").load_mask(0), True),
        "segments json": Reader("x.json", [written(lambda path: write_segments(path.parent, "a", map(Segment, masks))), compressed],
                                lambda folder: read_segments(folder, "x", SIZE), True),
        "segments png": Reader("x.png", [written(lambda path: write_mask(path, mask, voc_palette()))],
                               lambda folder: read_segments(folder, "x", SIZE)),
        "synonyms": Reader("s.json", [b'{"boat": ["ship", "canoe"], "cat": []}'],
                           lambda folder: load_words("folder", ["boat", "cat"], {}, folder / "s.json"), True),
        "choices": Reader("p.json", [json.dumps(choices).encode()], lambda folder: read_choices(folder / "p.json"), True),
        "run settings": Reader("run/args.json", [json.dumps(state).encode()],
                               lambda folder: Run(folder / "run", state, resume=True), True),
    }


def _generator() -> torch.nn.Module:
    return build_generator(["boat", "cat"], "resnet_tiny", "none", output_stride=4)


def _picture(mask: np.ndarray, form: str) -> bytes:
    return written(lambda path: Image.fromarray(np.stack([80 * mask] * 3, -1)).save(path, format=form))


def prepare(folder: Path) -> None:
    """What stands beside the files that are made up."""
    for place in ("voc/JPEGImages", "voc/Annotations", "voc/ImageSets/Segmentation", "coco/annotations",
                  "coco/train2014", "run"):
        (folder / place).mkdir(parents=True)
    (folder / "voc/ImageSets/Segmentation/train.txt").write_text("a\n")
    (folder / "run/generator.pt").touch()
    for path in ("voc/JPEGImages/a.jpg", "coco/train2014/a.png"):
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(folder / path)


def mutated(content: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """A content with one to eight of: bytes changed, cut out, doubled, put in, the end lost, another's end."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        start = int(rng.integers(0, len(data) + 1))
        end = min(len(data), start + int(2 ** rng.uniform(0, 8)))
        kind = rng.integers(0, 7)
        if kind <= 1:
            data[start:end] = rng.integers(0, 256, end - start, np.uint8).tobytes()
        elif kind == 2:
            data[start:end] = b""
        elif kind == 3:
            data[start:start] = data[start:end]
        elif kind == 4:
            data[start:end] = [b"\x00", b"\xff" * 8, b'"', b"-1", b"99999999999", b"\n", b"{}", b"nan"][rng.integers(8)]
        elif kind == 5 and rng.random() < 0.3:
            del data[start:]
        elif kind == 6 and rng.random() < 0.3:
            other = others[rng.integers(len(others))]
            data[start:] = other[int(rng.integers(0, len(other) + 1)):]
    return bytes(data)


def reshaped(content: bytes, rng: np.random.Generator) -> bytes:
    """JSON with one to three values replaced by odd ones, taken away or renamed."""
    root = [json.loads(content)]
    for _ in range(rng.integers(1, 4)):
        node, places = root, []
        stack = [root]
        while stack:
            node = stack.pop()
            for key in (node if isinstance(node, dict) else range(len(node))):
                places.append((node, key))
                if isinstance(node[key], dict | list):
                    stack.append(node[key])
        node, key = places[rng.integers(len(places))]
        if rng.random() < 0.2 and node is not root:
            del node[key]
        else:
            node[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
    return json.dumps(root[0]).encode()


class Hang(BaseException):
    """What no reader catches."""


def hang(*_: object) -> None:
    raise Hang


def fuzz(reader: Reader, inputs: int, seed: int = 0) -> tuple[int, list[str]]:
    """(how many inputs gave a result, what went wrong): `inputs` files read, each by our error or a result."""
    rng, fine, faults = np.random.default_rng(seed), 0, []
    signal.signal(signal.SIGALRM, hang)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        before = {path for path in folder.rglob("*")} | {folder / reader.name, folder / "run/.lock"}
        for number in range(inputs):
            content = reader.seeds[rng.integers(len(reader.seeds))]
            structured = reader.structured and rng.random() < 0.7
            content = reshaped(content, rng) if structured else mutated(content, reader.seeds, rng)
            (folder / reader.name).write_bytes(content)
            signal.alarm(10)
            try:
                reader.read(folder)
                fine += 1
            except InputError as error:
                if "\n" in str(error):
                    faults.append(f"input {number}: several lines: {str(error)[:200]!r}")
            except (Exception, Hang) as error:
                where = traceback.extract_tb(error.__traceback__)
                ours = next((frame for frame in reversed(where) if "clipwsss" in frame.filename), where[-1])
                faults.append(f"input {number}: {type(error).__name__}: {str(error)[:100]} at "
                              f"{Path(ours.filename).name}:{ours.lineno}")
            finally:
                signal.alarm(0)
            if number % 100 == 99 and (left := set(folder.rglob("*")) - before - {folder / "run/log.jsonl"}):
                faults.append(f"input {number}: left {left.pop()}")
                break
    return fine, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+")
    args = parser.parse_args()
    known, bad = readers(), 0
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    for name in args.only or known:
        begin = time.perf_counter()
        fine, faults = fuzz(known[name], args.inputs, args.seed)
        bad += len(faults)
        print(f"{name:<15} {args.inputs} inputs, {fine} results, {args.inputs - fine - len(faults)} errors of one line, "
              f"{len(faults)} faults, {time.perf_counter() - begin:.0f} s", flush=True)
        kinds = {fault.partition(": ")[2]: fault for fault in faults}
        for fault in list(kinds.values())[:10]:
            print(f"    {fault}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
