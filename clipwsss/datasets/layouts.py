"""Images and masks in the folders that other libraries read as they are."""
import shutil
from pathlib import Path

from PIL import Image

from ..files import atomic_path, write_json
from .base import TagDataset
from .reading import EXIF_ORIENTATION

VOC = Path("VOCdevkit", "VOC2012")
LAYOUTS = {  # the places of images, masks and the list of names
    "voc": (VOC / "JPEGImages", VOC / "SegmentationClass", VOC / "ImageSets" / "Segmentation"),
    "mmseg": (Path("img_dir", "train"), Path("ann_dir", "train"), Path("."))}


def write_layout(layout: str, dataset: TagDataset, masks: Path, folder: Path) -> None:
    """Copy the images that have MASKS/NAME.png, as JPEG, and these masks into FOLDER, and say how many.

    voc: torchvision's VOCSegmentation(FOLDER, image_set="train"). mmseg: data_root of an mmsegmentation data
    set with img_path="img_dir/train" and seg_map_path="ann_dir/train", and what detectron2's load_sem_seg
    takes. The masks have 0 for the background, a class like others (reduce_zero_label=False), and 255 to be
    ignored; metainfo.json names classes and colours. The split is `train`: pseudo masks are to train on.
    """
    images, labels, lists = (folder / place for place in LAYOUTS[layout])
    for place in (images, labels, lists):
        place.mkdir(parents=True, exist_ok=True)
    masked = [index for index, name in enumerate(dataset.names) if (masks / f"{name}.png").is_file()]
    names = [dataset.names[index] for index in masked]
    for index, name in zip(masked, names):
        write_jpeg(dataset, index, images / f"{name}.jpg")
        shutil.copyfile(masks / f"{name}.png", labels / f"{name}.png")
    (lists / "train.txt").write_text("\n".join(names) + "\n")
    classes = ["background", *dataset.classes]
    write_json({"classes": classes, "palette": dataset.palette[:len(classes)].tolist(),
                "reduce_zero_label": False, "ignore_index": 255}, folder / "metainfo.json")
    print(f"{len(names)} images and masks in {folder}")


def write_jpeg(dataset: TagDataset, index: int, path: Path) -> None:
    """An image as it is trained on: a JPEG's bytes, or pixels of another format or turned ones anew."""
    source = dataset.entries[index].image
    with Image.open(source) as file:
        turned = dataset.oriented and file.getexif().get(EXIF_ORIENTATION, 1) > 1
        same = file.format == "JPEG" and not turned
    with atomic_path(path) as temporary:
        if same:
            shutil.copyfile(source, temporary)
        else:
            dataset.load_image(index).save(temporary, format="JPEG", quality=95, subsampling=0)
