"""Data sets and the reading of their files: small ones are written by hand; every bad input is one clear line."""
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipwsss.datasets import DATASETS, Batch, build_dataset, collate
from clipwsss.datasets.image_files import SMALLEST, read_image, read_mask
from clipwsss.datasets.loaders import make_loader
from clipwsss.datasets.transforms import train_transform
from clipwsss.errors import InputError, one_line
from clipwsss.pictures import voc_palette


def save_image(path: Path, size: tuple[int, int] = (12, 20), seed: int = 0, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def save_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask.astype(np.uint8), "P") if mask.ndim == 2 else Image.fromarray(mask)
    if mask.ndim == 2:
        image.putpalette(voc_palette().tobytes())
    image.save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def fails(pattern: str, *arguments, **options) -> str:
    """build_dataset fails with one line that matches."""
    with pytest.raises(InputError, match=pattern) as caught:
        build_dataset(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def voc(tmp_path) -> Path:
    """Four images: a (aeroplane, difficult dog; person's part `head`), b (cat), c (both), d (train)."""
    root = tmp_path / "VOC2012"
    objects = {"a": "<object><name>aeroplane</name></object><object><name>dog</name><difficult>1</difficult>"
                    "<part><name>head</name></part></object>",
               "b": "<object><name>cat</name></object>",
               "c": "<object><name>cat</name></object><object><name>dog</name></object>",
               "d": "<object><name>train</name></object>"}
    for seed, (name, content) in enumerate(objects.items()):
        save_image(root / "JPEGImages" / f"{name}.jpg", seed=seed)
        write(root / "Annotations" / f"{name}.xml", f"<annotation>{content}</annotation>")
        mask = np.zeros((12, 20))
        mask[2:5, 3:9], mask[6] = seed + 1, 255
        save_mask(root / "SegmentationClassAug" / f"{name}.png", mask)
    write(root / "ImageSets/Segmentation/train.txt", "a\nb\n")
    write(root / "ImageSets/Segmentation/val.txt", "d\n")
    return root


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "mine"
    for seed, name in enumerate(("one.jpg", "two.png", "three.JPG")):
        save_image(root / "images" / name, seed=seed, **({"quality": 95} if "p" in name[-3:].lower() else {}))
    write(root / "classes.txt", "cat: kitty, tomcat\nhot dog\n")
    write(root / "labels.csv", "image,labels\none.jpg,cat\ntwo,hot dog; cat\n\nthree,hot dog\n")
    return root


@pytest.mark.smoke
def test_voc_reads_tags_masks_and_splits(voc):
    data = build_dataset("voc12", voc, "train")
    assert data.names == ["a", "b"] and len(data.classes) == 20
    assert data.splits == ("train", "val", "train_aug")
    assert [data.classes[k] for k in data.labels[0].nonzero().flatten()] == ["aeroplane", "dog"]
    sample = data[1]
    assert sample.image.shape == (3, 12, 20) and sample.image.dtype == torch.float32
    assert sample.mask.shape == (12, 20) and sample.mask.dtype == torch.int64
    stored = np.asarray(Image.open(voc / "JPEGImages/b.jpg"))
    assert torch.equal((sample.image * 255).round().byte(), torch.from_numpy(stored.copy()).permute(2, 0, 1))
    assert sample.mask.unique().tolist() == [0, 2, 255] and sample.mask[2, 3] == 2
    assert data.sizes[0] == (12, 20) and data.load_image(0).size == (20, 12)
    assert build_dataset("voc12", voc.parent, "train").names == data.names, "the folder around it is accepted"


def test_voc_train_aug_is_listed_or_what_val_leaves(voc):
    assert build_dataset("voc12", voc, "train_aug").names == ["a", "b", "c"]
    write(voc / "ImageSets/Segmentation/train_aug.txt",
          "/JPEGImages/c.jpg /SegmentationClassAug/c.png\n/JPEGImages/a.jpg /SegmentationClassAug/a.png\n")
    assert build_dataset("voc12", voc, "train_aug").names == ["c", "a"]


def test_voc_masks_prefer_the_official_and_are_ignored_where_missing(voc):
    (voc / "SegmentationClassAug/a.png").rename(voc / "moved.png")
    data = build_dataset("voc12", voc, "train")
    assert data.has_masks and data.load_mask(0) is None and data[0].mask.unique().tolist() == [255]
    save_mask(voc / "SegmentationClass/a.png", np.full((12, 20), 7))
    save_mask(voc / "SegmentationClass/b.png", np.full((12, 20), 7))
    data = build_dataset("voc12", voc, "train")
    assert data[0].mask.unique().tolist() == data[1].mask.unique().tolist() == [7]
    assert data.with_transform(data.transform, masks=False)[0].mask is None


def test_voc_test_split_has_neither_tags_nor_masks(voc):
    write(voc / "ImageSets/Segmentation/test.txt", "a\n")
    data = build_dataset("voc12", voc, "test")
    assert not data.has_masks and data.labels.sum() == 0 and data[0].mask is None


def test_palette_follows_the_bit_rule():
    palette = voc_palette()
    assert palette[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert palette[4:9].tolist() == [[0, 0, 128], [128, 0, 128], [0, 128, 128], [128, 128, 128], [64, 0, 0]]
    assert palette[20].tolist() == [0, 64, 128] and palette[255].tolist() == [224, 224, 192]


def test_real_voc_images(voc_sample):
    data = build_dataset("voc12", voc_sample / "VOC2012", "train")
    assert len(data) == 8 and data.has_masks
    for index in range(len(data)):
        present = set(np.unique(data.load_mask(index)).tolist()) - {0, 255}
        assert present <= set((data.labels[index].nonzero().flatten() + 1).tolist())
        assert tuple(data[index].image.shape[1:]) == data.sizes[index]


def test_wrong_names_list_the_valid_ones(voc, tmp_path):
    assert all(name in fails("--dataset voc11: valid are", "voc11", voc, "train") for name in DATASETS)
    fails("--split trian: .* has train, val, train_aug", "voc12", voc, "trian")
    fails("no VOC2012 data", "voc12", tmp_path / "nowhere", "train")
    (voc / "ImageSets/Segmentation/val.txt").write_text("\n")
    fails("val.txt: split val is empty", "voc12", voc, "val")


def test_bad_voc_files_are_all_found_in_one_pass(voc, capsys):
    jpeg = voc / "JPEGImages/b.jpg"
    write(voc / "ImageSets/Segmentation/train.txt", "a\nb\nc\nd\ne\na\n")
    jpeg.write_bytes(jpeg.read_bytes()[:-40])
    write(voc / "Annotations/c.xml", "<annotation></annotation>")
    write(voc / "Annotations/d.xml", "<annotation><object><name>tank</name></object></annotation>")
    write(voc / "Annotations/e.xml", "<annotation><object><name>cat</name></object></annotation>")
    # Without --skip-bad headers alone are read: the end that b.jpg lacks is not missed yet.
    fails(r"d.xml: unknown class 'tank'; valid are aeroplane, .* \(and 3 more; --skip", "voc12", voc, "train")
    capsys.readouterr()
    data = build_dataset("voc12", voc, "train", skip_bad=True)
    assert data.names == ["a"] and len(data.skipped) == 5
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 5 and all(line.startswith("skipped: ") for line in told.splitlines())
    for expected in ("train.txt:6: image a is listed twice", "train.txt:3: image c has no tag", "tank",
                     "b.jpg: not a readable image", "truncated", "e.jpg: no such image, listed in"):
        assert expected in told
    write(voc / "ImageSets/Segmentation/train.txt", "b\n")
    fails("no usable image is left of 1; the first problem: .*b.jpg", "voc12", voc, "train", skip_bad=True)


def test_a_damaged_file_is_skipped_or_named_when_it_is_read(voc):
    """The header is good, what follows is cut: found by --skip-bad, else in one line, also from a worker."""
    image = voc / "JPEGImages/a.jpg"
    mask = voc / "SegmentationClassAug/a.png"
    save_image(image, (64, 64))
    save_mask(mask, np.zeros((64, 64)))
    good = {path: path.read_bytes() for path in (image, mask)}
    for path, length, told in ((image, -2, "not a readable image"), (image, -300, "not a readable image"),
                               (mask, -30, "not a readable mask")):
        path.write_bytes(good[path][:length])
        data = build_dataset("voc12", voc, "train")
        assert data.names == ["a", "b"] and data.sizes[0] == (64, 64)
        for workers in (0, 1):
            with pytest.raises(InputError) as caught:
                for _ in make_loader(data, 1, workers, shuffle=False):
                    pass
            line = one_line(caught.value)
            assert line.startswith(f"{path}: {told} (") and "\n" not in line, (path, length, workers)
        skipping = build_dataset("voc12", voc, "train", skip_bad=True)
        assert skipping.names == ["b"] and str(path) in skipping.skipped[0], (path, length)
        path.write_bytes(good[path])
    image.write_bytes(good[image][:10])
    fails("a.jpg: not a readable image .*train.txt:1", "voc12", voc, "train")
    image.unlink()
    fails("a.jpg: no such image, listed in .*train.txt:1", "voc12", voc, "train")


def test_bad_masks(voc):
    path = voc / "SegmentationClassAug/b.png"
    save_mask(path, np.full((12, 20), 21))
    value = r"b.png: value 21 in the mask; valid are 0 \(background\), 1..20 and 255 \(ignore\)"
    data = build_dataset("voc12", voc, "train")
    for read in (data.load_mask, data.__getitem__):
        with pytest.raises(InputError, match=value):
            read(1)
    assert "value 21" in build_dataset("voc12", voc, "train", skip_bad=True).skipped[0]
    save_mask(path, np.zeros((20, 12)))
    fails(r"b.png: mask is 20 x 12 .H x W., its image 12 x 20", "voc12", voc, "train")
    Image.fromarray(np.zeros((12, 20), np.uint16)).save(path)
    fails(r"b.png: a mask is a palette or 8-bit grey PNG .* this is I;16", "voc12", voc, "train")


def test_building_reads_headers_alone(voc, folder, monkeypatch):
    def decoded(self, *_):
        raise AssertionError("pixels are decoded")
    for kind in ("JpegImagePlugin.JpegImageFile", "PngImagePlugin.PngImageFile"):
        monkeypatch.setattr(f"PIL.{kind}.load", decoded)
    assert build_dataset("voc12", voc, "train").sizes[1] == (12, 20)
    assert build_dataset("folder", folder, "train").sizes[1] == (12, 20)


def test_unusable_images_are_refused_by_their_header(tmp_path):
    path = tmp_path / "images/a.tif"
    write(tmp_path / "labels.csv", "image,labels\na,cat\n")
    write(tmp_path / "classes.txt", "cat\n")
    path.parent.mkdir()
    for pixels, message in ((np.zeros((SMALLEST - 1, 30), np.uint8), "3 x 30 pixels .H x W.; each side needs"),
                            (np.zeros((9, 9), np.uint16), "8 bits a channel"),
                            (np.zeros((9, 9), np.float32), "8 bits a channel"),
                            (np.zeros((20, 30), np.uint8), "20 x 30 pixels .H x W. are more than --max-pixels 599")):
        Image.fromarray(pixels).save(path)
        with pytest.raises(InputError, match=f"a.tif: not a readable image .*{message}"):
            read_image(path, max_pixels=599)
        fails(f"a.tif: not a readable image .*{message}", "folder", tmp_path, "train", max_pixels=599)
    with pytest.raises(InputError, match="a.tif: not a readable mask .*more than --max-pixels 599"):
        read_mask(path, 599)
    assert read_mask(path, 600).shape == build_dataset("folder", tmp_path, "train").sizes[0] == (20, 30)


def test_max_pixels_holds_for_data_sets(voc):
    fails("a.jpg: not a readable image .*12 x 20 pixels .H x W. are more than --max-pixels 239", "voc12", voc, "train",
          max_pixels=239)
    assert len(build_dataset("voc12", voc, "train", max_pixels=240)) == 2


def test_the_fingerprint_knows_tags_and_sizes(voc):
    before = build_dataset("voc12", voc, "train").fingerprint()
    assert before == build_dataset("voc12", voc, "train", skip_bad=True).fingerprint()
    write(voc / "Annotations/b.xml", "<annotation><object><name>dog</name></object></annotation>")
    assert build_dataset("voc12", voc, "train").fingerprint() != before


def test_other_masks_are_checked_and_served(voc, tmp_path):
    data = build_dataset("voc12", voc, "train")
    save_mask(tmp_path / "pseudo/a.png", np.full((12, 20), 3))
    with pytest.raises(InputError, match=r"pseudo/b.png: no such mask \(--skip-bad"):
        data.with_masks(tmp_path / "pseudo")
    other = data.with_masks(tmp_path / "pseudo", skip_bad=True)
    assert other.names == ["a"] and other[0].mask.unique().tolist() == [3] and len(other.skipped) == 1
    assert data.names == ["a", "b"] and 1 in data[0].mask, "the original is unchanged"


def test_collate_stacks_and_refuses_mixed_sizes(voc):
    data = build_dataset("voc12", voc, "train").with_transform(train_transform(8, resize_long=None))
    batch = collate([data[0], data[1]])
    assert isinstance(batch, Batch) and batch.images.shape == (2, 3, 8, 8) and batch.masks.shape == (2, 8, 8)
    assert batch.names == ["a", "b"] and torch.equal(batch.labels, data.labels)
    assert torch.equal(batch.to("cpu").masks, batch.masks) and batch.to("cpu").names == batch.names
    no_mask = collate([data[0]._replace(mask=None)])
    assert no_mask.masks is None and no_mask.to("cpu").masks is None
    wide = data.with_transform(train_transform(9, resize_long=None))[0]
    with pytest.raises(InputError, match="in one batch"):
        collate([data[0], wide])


@pytest.mark.smoke
def test_folder_reads_a_users_table(folder):
    data = build_dataset("folder", folder, "train")
    assert data.names == ["one", "two", "three"] and data.classes == ["cat", "hot dog"] and not data.has_masks
    assert data.synonyms == {"cat": ["kitty", "tomcat"], "hot dog": []}
    assert data.labels.tolist() == [[1, 0], [1, 1], [0, 1]]
    assert data.splits == ("train",) and data[0].mask is None
    save_mask(folder / "masks/two.png", np.full((12, 20), 2))
    data = build_dataset("folder", folder, "train")
    assert data[1].mask.unique().tolist() == [2] and data[0].mask.unique().tolist() == [255]


def test_folder_splits_byte_order_mark_and_rotation(folder, capsys):
    table = "\ufeffImage,Labels,split\none,cat,train\ntwo,cat,val\nthree,hot dog,val\n"
    (folder / "labels.csv").write_text(table, encoding="utf-8")
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(folder / "images/two.png", exif=exif)
    data = build_dataset("folder", folder, "val")
    assert data.splits == ("train", "val") and data.names == ["two", "three"]
    assert data.sizes[0] == (20, 12) and data[0].image.shape == (3, 20, 12)
    save_mask(folder / "masks/zwei.png", np.zeros((12, 20)))
    build_dataset("folder", folder, "val")
    assert "zwei.png: is not used, because it belongs to no image" in capsys.readouterr().err
    fails("--split test: .* has train, val", "folder", folder, "test")


def test_bad_rows_name_their_line(folder):
    Image.fromarray(np.zeros((5, 5), np.uint16)).save(folder / "images/wide.png")
    for name in ("same.jpg", "same.png"):
        save_image(folder / "images" / name)
    for row, pattern in (
            ("four,cat", r"labels.csv:3: image 'four' is not in the folder images"),
            ("two,cat;dog", r"labels.csv:3: unknown class 'dog'; valid are cat, hot dog"),
            ("two,", r"labels.csv:3: image two has no tag"),
            ("two,cat,hot dog", r"labels.csv:3: a value is missing, or there are too many .separate labels by ;"),
            ("wide,cat", r"wide.png: not a readable image .I;16 pixels: save it with 8 bits"),
            ("same,cat", r"labels.csv:3: same.jpg and same.png have the same name")):
        write(folder / "labels.csv", f"image,labels\none.jpg,cat\n{row}\n")
        fails(pattern, "folder", folder, "train")
        assert build_dataset("folder", folder, "train", skip_bad=True).names == ["one"], row


def test_bad_tables(folder):
    for file, text, pattern in (
            ("labels.csv", "one.jpg,cat\n", r"labels.csv:1: the first line must be `image,labels`"),
            ("labels.csv", "image,labels\n", r"labels.csv: no image is listed"),
            ("classes.txt", "cat\ncat\n", r"classes.txt:2: cat is listed twice"),
            ("classes.txt", "cat\nbackground\n", r"classes.txt:2: leave background out"),
            ("classes.txt", "# animals\ncat\n", r"classes.txt:1: '# animals' is not a class"),
            ("classes.txt", "\n", r"classes.txt: no class is listed")):
        before = (folder / file).read_text()
        write(folder / file, text)
        fails(pattern, "folder", folder, "train")
        write(folder / file, before)


def test_missing_parts_of_a_folder(folder):
    (folder / "classes.txt").rename(folder / "klassen.txt")
    fails("classes.txt: no such file", "folder", folder, "train")
    (folder / "klassen.txt").rename(folder / "classes.txt")
    (folder / "images").rename(folder / "bilder")
    fails("images: no such folder", "folder", folder, "train")


def test_names_in_lists_are_taken_whole(voc):
    for number, name in enumerate(("2008.v1", "my photo 2", "cafe\u0301")):
        save_image(voc / "JPEGImages" / f"{name}.jpg", seed=number)
        write(voc / "Annotations" / f"{name}.xml", "<annotation><object><name>cat</name></object></annotation>")
    (voc / "ImageSets/Segmentation/train.txt").write_text(
        "2008.v1\nmy photo 2  \ncaf\u00e9\na 1\n/JPEGImages/b.jpg /SegmentationClassAug/b.png\n", encoding="utf-8")
    data = build_dataset("voc12", voc, "train")
    assert data.names == ["2008.v1", "my photo 2", "caf\u00e9", "a", "b"] and len(data[2].image) == 3
    text = '<?xml version="1.0" encoding="GBK"?><annotation/>'
    (voc / "Annotations/a.xml").write_text(text)
    fails("a.xml: not a readable annotation", "voc12", voc, "train")


def test_entries_that_contradict_each_other_are_all_left_out(voc):
    data = build_dataset("voc12", voc, "train")
    entries = [*data.entries, data.entries[0]._replace(tags=(1,)), data.entries[1]]
    data._keep_good(entries, [], skip_bad=True)
    assert data.names == ["b"] and len(data.skipped) == 2, "a has two kinds of tags; b is only listed twice"
