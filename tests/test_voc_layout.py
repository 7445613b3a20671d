"""VOC as it is downloaded: its archive alone, with SBD's list or masks, with a release's file of class labels."""
import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_datasets import fails, save_image, save_mask, write

from clipwsss.cams.generator import build_generator
from clipwsss.datasets import DATASETS, build_dataset
from clipwsss.datasets.__main__ import main as check

README = Path(__file__).resolve().parents[1] / "README.md"
CLASSES = DATASETS["voc12"].classes
TRAIN = {"2007_000032": ["aeroplane", "person"], "2007_000039": ["tvmonitor"], "2007_000063": ["dog", "chair"]}
VAL = {"2007_000033": ["aeroplane"], "2007_000042": ["train"]}
SBD = {"2008_000002": ["tvmonitor"], "2011_003276": ["dog", "person"]}  # images of VOC's archive that SBD has masks of
OBJECT = ("<object><name>{}</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult><bndbox><xmin>5"
          "</xmin><ymin>5</ymin><xmax>30</xmax><ymax>30</ymax></bndbox><part><name>head</name></part></object>")
NETWORK = "--backbone resnet_tiny --weights none"
TRAIN_FLAGS = "--batch-size 2 --crop-size 32 --device cpu"
MAPS = "--resize-long 0 0 --scales 1"
SMALL = {"train_cam": f"{NETWORK} {TRAIN_FLAGS} {MAPS} --output-stride 4",
         "train_prompt": f"{TRAIN_FLAGS} {MAPS} --epochs 1 --clip tiny_clip.pt --n-synonyms 1",
         "make_pseudo": f"{NETWORK} {TRAIN_FLAGS} --epochs 1 --train-radius 3 --exp-times 2",
         "train_seg": f"{NETWORK} {TRAIN_FLAGS} --epochs 1 --output-stride 4 --rates 1 --test-scales 1 --no-crf --accumulate 1 --no-multi-scale",
         "eval": ""}


@pytest.fixture
def archive(tmp_path) -> Path:
    """What VOCtrainval_11-May-2012.tar holds: VOCdevkit/VOC2012 with seven images, of which two are not segmented."""
    root = tmp_path / "VOCdevkit/VOC2012"
    for number, (name, objects) in enumerate((TRAIN | VAL | SBD).items()):
        save_image(root / f"JPEGImages/{name}.jpg", (36, 48), number)
        write(root / f"Annotations/{name}.xml", "<annotation><folder>VOC2012</folder><size><width>48</width></size>"
              f"<segmented>1</segmented>{''.join(map(OBJECT.format, objects))}</annotation>")
        if name not in SBD:
            save_mask(root / f"SegmentationClass/{name}.png", mask_of(objects))
            save_mask(root / f"SegmentationObject/{name}.png", mask_of(objects))
    for split, names in (("train", TRAIN), ("val", VAL), ("trainval", TRAIN | VAL)):
        write(root / f"ImageSets/Segmentation/{split}.txt", "".join(f"{name}\n" for name in names))
    write(root / "ImageSets/Main/dog_train.txt", "2007_000032 -1\n2007_000063  1\n")
    return root


def mask_of(objects):
    mask = np.zeros((36, 48))
    for place, name in enumerate(objects):
        mask[6:30, 4 + 20 * place:20 + 20 * place] = CLASSES.index(name) + 1
    mask[5] = 255
    return mask


def add_list(root):
    write(root / "ImageSets/Segmentation/trainaug.txt", "".join(
        f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png\n" for name in TRAIN | SBD))


def add_masks(root):
    for name, objects in (TRAIN | VAL | SBD).items():
        save_mask(root / f"SegmentationClassAug/{name}.png", mask_of(objects))


def add_labels(root, key=lambda name: np.int32(name.replace("_", ""))):
    """Labels in place of annotations, and the list; IRN and CLIMS call images by numbers."""
    add_list(root)
    labels = {key(name): np.isin(CLASSES, objects).astype(np.float32) for name, objects in (TRAIN | VAL | SBD).items()}
    np.save(root / "cls_labels.npy", labels, allow_pickle=True)
    for path in (root / "Annotations").iterdir():
        path.unlink()


def write_start(path):
    """A small res50_cam.pth: IRN's names, each layer also under the name of its stage."""
    generator = build_generator(CLASSES, "resnet_tiny", "none", output_stride=4)
    state = {name.replace("backbone.", "resnet50."): value for name, value in generator.state_dict().items()}
    stages = {name.replace("resnet50.layer2.", "stage2.0."): value for name, value in state.items() if ".layer2." in name}
    torch.save(state | stages | {"newly_added.0.weight": state["classifier.weight"]}, path)


def commands():
    """The README's first commands for VOC as [script, flags ...]."""
    block = README.read_text().partition("## VOC 2012 and COCO 2014")[2].split("```")[1]
    return [line.split()[1:] for line in block.strip().splitlines()]


@pytest.mark.parametrize("extra, flags", [(None, "--split train"), (add_masks, ""), (add_labels, "")])
def test_the_commands_of_the_readme(archive, tmp_path, monkeypatch, capsys, tiny_clip, extra, flags):
    monkeypatch.chdir(tmp_path)
    sizes = {"input_resolution": torch.tensor(tiny_clip.input_resolution)}  # as OpenAI's state dicts hold them
    torch.save(tiny_clip.state_dict() | sizes, "tiny_clip.pt")
    write_start("res50_cam.pth")
    scripts = commands()
    assert [script for script, *_ in scripts] == ["train_cam.py", "train_prompt.py", "make_pseudo.py", "train_seg.py", "eval.py"]
    if extra:
        extra(archive)
    for script, *argv in scripts:
        name = script.removesuffix(".py")
        own = flags if name != "eval" else ""
        argv += [*SMALL[name].split(), *own.split(), "--workers", "0"]
        assert importlib.import_module(name).main(argv) == 0, argv
    images = TRAIN if extra is None else TRAIN | SBD
    assert {path.stem for path in Path("runs/voc12/make_pseudo/masks").iterdir()} == set(images)
    assert {path.stem for path in Path("runs/voc12/train_seg/predictions").iterdir()} == set(VAL)
    assert re.search(r"mIoU +\d", capsys.readouterr().out)


def test_the_archive_alone_names_what_is_missing(archive, capsys):
    fails("--split train_aug: .* has train, trainval, val; VOC's archive lacks SBD's list .*/trainaug.txt .* --split train",
          "voc12", archive, "train_aug")
    assert check(["check", str(archive.parents[1])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train: 3 images, 3 with masks") and lines[1].startswith("val: 2 images, 2 with masks")
    assert lines[-4] == "what is not there:" and "trainaug.txt" in lines[-3] and lines[-1] == "no errors found"
    add_list(archive)
    assert build_dataset("voc12", archive, "train_aug").names == list(TRAIN | SBD)
    (archive / "SegmentationClass/2007_000042.png").write_bytes(b"torn")
    (archive / "Annotations/2011_003276.xml").unlink()
    assert check(["check", str(archive)]) == 2
    told = capsys.readouterr().out
    assert "nothing is missing" in told and "\ntrain_aug: 4 images" in told.replace("\ntrain: 3", "\n")
    assert "2007_000042.png: not a readable mask" in told and "2011_003276.xml: no such annotation" in told
    (archive / "ImageSets/Segmentation/trainaug.txt").unlink()
    add_masks(archive)  # which stand for the list
    fails("2011_003276.xml: no such annotation, for the image listed in .*SegmentationClassAug/2011_003276.png", "voc12",
          archive, "train_aug")


def test_tags_come_from_labels_where_annotations_are_missing(archive):
    expected = build_dataset("voc12", archive, "train").labels
    for key in (lambda name: np.int32(name.replace("_", "")), str, lambda name: f"{name}.jpg"):
        add_labels(archive, key)
        assert torch.equal(build_dataset("voc12", archive, "train").labels, expected)
        assert build_dataset("voc12", archive, "train_aug").labels.sum(1).tolist() == [2, 1, 2, 1, 2]
    write(archive / "Annotations/2007_000039.xml", f"<annotation>{OBJECT.format('cat')}</annotation>")
    changed = build_dataset("voc12", archive, "train").labels  # an annotation that is there comes first
    assert changed[1].nonzero().tolist() == [[CLASSES.index("cat")]] and torch.equal(changed[::2], expected[::2])


def test_bad_labels_are_one_line(archive, tmp_path):
    add_labels(archive)
    path = archive / "cls_labels.npy"
    name = next(iter(TRAIN))
    for content, message in (({name: np.ones(19)}, "labels of image '2007_000032' are not 20 values of 0 and 1"),
                             ({name: np.full(20, 2.0)}, "labels of image '2007_000032' are not 20 values"),
                             (np.ones(3), r"an array \[3\] of float64, not a dictionary"),
                             ({name: Path}, "its pickle asks for 'pathlib.*not run")):
        np.save(path, content, allow_pickle=True)
        fails(f"cls_labels.npy: .*{message}", "voc12", archive, "train")
    path.write_bytes(path.read_bytes()[:90])
    fails("cls_labels.npy: not a readable file of class labels", "voc12", archive, "train")
    np.save(path, {name: np.ones(20)}, allow_pickle=True)
    fails("2007_000039.xml: no such annotation, for the image listed in .*train.txt:2 .*and 1 more", "voc12", archive, "train")


def test_coco_is_checked_too(tmp_path, capsys):
    write(tmp_path / "annotations/instances_val2014.json", """{"images": [
        {"id": 9, "file_name": "COCO_val2014_000000000009.jpg", "height": 10, "width": 12},
        {"id": 4, "file_name": "COCO_val2014_000000000004.jpg", "height": 10, "width": 12}],
        "annotations": [{"image_id": 9, "category_id": 3, "segmentation": [[2, 2, 8, 2, 8, 6]], "iscrowd": 0},
                        {"image_id": 4, "category_id": 3, "segmentation": [[2, 2, 8, 2, 8, 6]], "iscrowd": 0}],
        "categories": [{"id": 3, "name": "cat"}]}""")
    save_image(tmp_path / "val2014/COCO_val2014_000000000009.jpg", (10, 12))
    assert check(["check", str(tmp_path)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("val: 1 images, 1 with masks; sizes (H x W): smallest 10 x 12")
    assert "train: this split is not there; scripts that need it would stop" in lines
    assert "000000000004.jpg: no such image" in lines[-1]


def test_masks_that_contradict_annotations_and_files_that_are_no_masks(archive, capsys):
    folder = archive / "SegmentationClass"
    assert check(["check", str(archive)]) == 0, capsys.readouterr().out
    save_image(folder / "2007_000032.jpg", (36, 48))
    save_mask(folder / "2007_000032_mask.png", np.ones((36, 48)))
    capsys.readouterr()
    assert check(["check", str(archive)]) == 0
    output = capsys.readouterr().out
    assert "2007_000032.jpg: not used, because a mask is a PNG" in output and "rename it to 2007_000032.png" in output
    for name in TRAIN:
        save_mask(folder / f"{name}.png", np.full((36, 48), 255))
    assert check(["check", str(archive)]) == 2
    line = "3 of 3 masks show no class that their image is tagged with"
    assert f"train: {line}" in capsys.readouterr().out
    build_dataset("voc12", archive, "train")
    assert line in capsys.readouterr().err
