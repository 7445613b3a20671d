"""Results in the formats of others: folders that other libraries train on, files for evaluation servers."""
import shutil
import tarfile
from pathlib import Path

import numpy as np

from ..distributed import rank
from ..errors import InputError
from ..files import atomic_path, write_json, write_text
from .base import TagDataset
from .image_files import exif_orientation, open_file, read_mask
from .coco import compress_mask, pycocotools_mask
from .instances import read_instances, write_coco

VOC = Path("VOCdevkit", "VOC2012")
LAYOUTS = {  # the places of images, masks (coco: the file of annotations) and the list of names
    "voc": (VOC / "JPEGImages", VOC / "SegmentationClass", VOC / "ImageSets" / "Segmentation"),
    "mmseg": (Path("img_dir", "train"), Path("ann_dir", "train"), Path(".")),
    "coco": (Path("images", "train"), Path("annotations"), Path("."))}
VOC_RESULTS = "results/VOC2012/Segmentation/comp5_test_cls"  # as VOC 2012's development kit names it


def write_layout(layout: str, dataset: TagDataset, masks: Path, folder: Path, workers: int = 0) -> None:
    """Copy every image that has MASKS/NAME.png, as JPEG, and its mask into FOLDER, and print how many.

    layout `voc`: for torchvision's VOCSegmentation(FOLDER, image_set="train"); its folder VOC2012 with
    labelmap.txt and default.txt is also the form that CVAT imports. `mmseg`: for an mmsegmentation data set
    with data_root FOLDER, img_path="img_dir/train" and seg_map_path="ann_dir/train"; detectron2's
    load_sem_seg takes the same folders. In masks, 0 is the background, a class like the others
    (reduce_zero_label=False), and 255 is ignored; metainfo.json has the names and colours of the classes.
    `coco`: one instances file, see `write_coco`. The split is always `train`: pseudo masks are for training.
    All processes take part; the main one writes.
    """
    images, labels, lists = (folder / place for place in LAYOUTS[layout])
    indices = [index for index, name in enumerate(dataset.names) if (masks / f"{name}.png").is_file()]
    names = [dataset.names[index] for index in indices]
    if layout == "coco":
        files = {name: f"{name}.jpg" for name in names}
        write_coco(read_instances(masks, names, workers), files, dataset.classes,
                   labels / "instances_train.json", dataset.category_ids, dataset.image_ids)
    if rank() > 0:
        return
    for index in indices:
        write_jpeg(dataset, index, images / f"{dataset.names[index]}.jpg")
    if layout != "coco":
        labels.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copyfile(masks / f"{name}.png", labels / f"{name}.png")
    classes = ["background", *dataset.classes]
    colors = dataset.palette[:len(classes)].tolist()
    write_text("\n".join(names) + "\n", lists / "train.txt")
    write_json({"classes": classes, "palette": colors, "reduce_zero_label": False, "ignore_index": 255},
               folder / "metainfo.json")
    if layout == "voc":
        write_text("\n".join(names) + "\n", lists / "default.txt")
        rows = [f"{name}:{red},{green},{blue}::" for name, (red, green, blue) in zip(classes, colors)]
        rows.insert(0, "# label:color_rgb:parts:actions")
        write_text("\n".join(rows) + "\n", folder / VOC / "labelmap.txt")
    print(f"{len(names)} images and masks in {folder}")


def write_jpeg(dataset: TagDataset, index: int, path: Path) -> None:
    """Write an image as JPEG: a JPEG's own bytes, or the pixels of another format or of a turned image."""
    source = dataset.entries[index].image
    with open_file(source, "image", dataset.max_pixels) as file:
        turned = dataset.oriented and exif_orientation(file) > 1
        keep_bytes = file.format == "JPEG" and not turned
    with atomic_path(path) as temporary:
        if keep_bytes:
            shutil.copyfile(source, temporary)
        else:
            dataset.load_image(index).save(temporary, format="JPEG", quality=95, subsampling=0)


def write_submission(dataset: TagDataset, folder: Path, target: Path) -> None:
    """Write the label maps FOLDER/NAME.png of a split to one file for an evaluation server.

    A target *.json gets COCO's results: a region for each class in an image, as compressed run lengths.
    Images and classes have COCO's numbers or, in other data, the image's name and 1..K. Any other target is
    a .tgz for the VOC server. InputError names the first image whose label map is missing, has another size
    than the image, or has a value above K. ModuleNotFoundError for COCO's results without pycocotools.
    """
    if target.suffix == ".json":
        pycocotools_mask()
    for index, name in enumerate(dataset.names):
        check_label_map(folder / f"{name}.png", dataset.sizes[index], len(dataset.classes))
    if target.suffix == ".json":
        write_json(coco_results(dataset, folder), target)
        return
    with atomic_path(target) as temporary, tarfile.open(temporary, "w:gz") as packed:
        for name in dataset.names:
            packed.add(folder / f"{name}.png", f"{VOC_RESULTS}/{name}.png")


def check_label_map(path: Path, size: tuple[int, int], n_classes: int) -> None:
    """InputError unless the file is a label map of this (H, W) with values 0..n_classes."""
    if not path.is_file():
        raise InputError(f"{path}: no such label map; every image of the split needs one")
    labels = read_mask(path)
    if labels.shape != size:
        raise InputError(f"{path}: {labels.shape[0]} x {labels.shape[1]}, its image is "
                         f"{size[0]} x {size[1]} (H x W)")
    if labels.max() > n_classes:
        raise InputError(f"{path}: value {labels.max()}; valid are 0..{n_classes}")


def coco_results(dataset: TagDataset, folder: Path) -> list[dict]:
    """A split's label maps as COCO's results: one region for each class in an image."""
    category_ids = dataset.category_ids or range(1, 1 + len(dataset.classes))
    results = []
    for name in dataset.names:
        labels = read_mask(folder / f"{name}.png")
        for label in np.unique(labels[labels > 0]).tolist():
            results.append({"image_id": dataset.image_ids.get(name, name),
                            "category_id": category_ids[label - 1],
                            "segmentation": compress_mask(labels == label),
                            "score": 1.0})
    return results
