"""Class-agnostic segments: painting by hand, and their two file formats."""
import json

import numpy as np
import pytest
from PIL import Image

from clipwsss.datasets.coco import encode_mask
from clipwsss.errors import InputError
from clipwsss.refine.segments import UNKNOWN, Segment, paint, write_segments
from clipwsss.refine.segments import read_segments as read_levelled


def read_segments(*place):
    return [segment.mask for segment in read_levelled(*place)]


def area(size, rows, columns):
    segment = np.zeros(size, bool)
    segment[rows, columns] = True
    return segment


def test_written_regions_read_back_equal(tmp_path):
    rng = np.random.default_rng(0)
    segments = [rng.random((5, 7)) > 0.5, np.ones((5, 7), bool), np.zeros((5, 7), bool)]
    write_segments(tmp_path, "x", map(Segment, segments))
    assert np.array_equal(read_segments(tmp_path, "x", (5, 7)), segments)
    assert json.loads((tmp_path / "x.json").read_text())[1]["segmentation"] == encode_mask(np.ones((5, 7), bool))
    assert [item.name for item in tmp_path.iterdir()] == ["x.json"]


def test_sa1b_dictionary_with_runs_and_polygons(tmp_path):
    # rows and columns 1 and 2 of a 4 x 4 image, counted down the columns
    regions = [{"segmentation": {"size": [4, 4], "counts": [5, 2, 2, 2, 5]}},
               {"segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]}]
    (tmp_path / "a.json").write_text(json.dumps({"image": {}, "annotations": regions}))
    for segment in read_segments(tmp_path, "a", (4, 4)):
        assert (segment == area((4, 4), slice(1, 3), slice(1, 3))).all()


def test_label_map_png(tmp_path):
    for mode in ("L", "I;16", "P"):
        labels = np.array([[0, 1, 1], [2, 2, 200]], np.uint16 if mode == "I;16" else np.uint8)
        if mode == "I;16":
            labels[labels == 200] = 40000
        picture = Image.fromarray(labels)
        if mode == "P":
            picture.putpalette(list(range(256)) * 3)
        picture.save(tmp_path / "a.png")
        segments = read_segments(tmp_path, "a", (2, 3))
        assert len(segments) == 3 and [segment.sum() for segment in segments] == [2, 2, 1], mode


def test_bad_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.png \(or \.json\): no such file"):
        read_segments(tmp_path, "none", (2, 2))
    Image.new("L", (3, 2)).save(tmp_path / "size.png")
    with pytest.raises(InputError, match=r"size\.png: the segments are \[2, 3\], their image is \[3, 2\]"):
        read_segments(tmp_path, "size", (3, 2))
    Image.new("RGB", (3, 2)).save(tmp_path / "rgb.png")
    with pytest.raises(InputError, match=r"rgb\.png: .*one channel, this image is RGB"):
        read_segments(tmp_path, "rgb", (2, 3))
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "list.json").write_text('[{"area": 3}]')
    (tmp_path / "runs.json").write_text('[{"segmentation": {"size": [2, 2], "counts": [1, 2]}}]')
    for name, what in (("cut", "not a readable label map"), ("text", "not a readable JSON file"),
                       ("list", "region 1 is no segment"), ("runs", "region 1 is no segment")):
        with pytest.raises(InputError, match=rf"{name}\.(png|json): {what}"):
            read_segments(tmp_path, name, (2, 2))
    (tmp_path / "cut.json").write_text("[]")
    with pytest.raises(InputError, match="cut.png and cut.json: both exist"):
        read_segments(tmp_path, "cut", (2, 2))


@pytest.mark.smoke
def test_painting_by_hand_with_nested_segments():
    """A whole with two parts: the whole is painted last; what no segment covers is background."""
    maps = np.zeros((2, 4, 8), np.float32)
    maps[0, :, :3], maps[1, :, 3:6] = 1.0, 0.6
    maps[1, 0, 0] = -5.0  # cut to zero
    left, right = np.zeros((4, 8), bool), np.zeros((4, 8), bool)
    left[:, :3], right[:, 3:6] = True, True
    far = np.zeros((4, 8), bool)
    far[:2, 6:] = True
    whole = left | right
    parts = [Segment(left, 0), Segment(right, 0), Segment(far, 0)]
    # scores: map 0: left 1, right 0, far 0; map 1: left 0, right 0.6 -> 1, far 0; background of far (1 - 0)^0.6 = 1
    expected = np.zeros((4, 8), np.uint8)
    expected[:, :3], expected[:, 3:6] = 1, 2
    assert np.array_equal(paint(maps, parts), expected)
    # with the whole: map 0 scores 0.5 there, map 1 0.3 -> 0.5; the first wins the tie, over (1 - 0.5)^0.6 = 0.66: background
    assert np.array_equal(paint(maps, [*parts, Segment(whole, 2)]), np.zeros((4, 8), np.uint8))
    assert np.array_equal(paint(maps, [*parts, Segment(whole, 2)], power=3.0)[:, :6], np.ones((4, 6), np.uint8))
    assert not paint(maps, []).any()


def test_levels_and_confidences_are_kept_or_counted(tmp_path):
    whole, part = np.zeros((6, 9), bool), np.zeros((6, 9), bool)
    whole[1:5, 1:8], part[2:4, 2:5] = True, True
    write_segments(tmp_path, "a", [Segment(part, UNKNOWN), Segment(whole, UNKNOWN)])
    assert [segment.level for segment in read_levelled(tmp_path, "a", (6, 9))] == [0, 1]
    write_segments(tmp_path, "b", [Segment(part, 2, 0.87654), Segment(whole, 0, 0.5)])
    assert [segment[1:] for segment in read_levelled(tmp_path, "b", (6, 9))] == [(2, 0.8765), (0, 0.5)]


def test_a_dog_on_a_sofa_of_cushions_is_seen_with_levels_and_without(tmp_path):
    """Levels without a limit would paint the sofa, which holds six segments, over the dog, which holds two."""
    size = (40, 60)
    dog = area(size, slice(10, 30), slice(20, 45))  # 500 pixels
    wholes = [area(size, slice(2, 38), slice(2, 58)), dog]
    parts = [area(size, slice(10, 30), slice(20, 30)), area(size, slice(10, 30), slice(30, 45))]  # of the dog
    parts += [area(size, slice(30, 38), slice(left, left + 10)) for left in (2, 22, 42)]  # cushions
    maps = np.zeros((2, *size), np.float32)
    maps[0, 2:38, 2:58] = 0.9  # the sofa
    maps[0][dog] = 0.0
    maps[1][dog] = 1.0
    levels = [*[Segment(mask, 2) for mask in wholes], *[Segment(mask, 1) for mask in parts]]
    write_segments(tmp_path, "levels", levels)
    write_segments(tmp_path, "none", [segment._replace(level=UNKNOWN) for segment in levels])
    for name in ("levels", "none"):
        segments = read_levelled(tmp_path, name, size)
        assert [segment.level for segment in segments[:2]] == [2, 2]
        painted = paint(maps, segments)
        assert (painted[dog] == 2).sum() == 500, name
        assert (painted[wholes[0] & ~dog] == 1).all(), name
