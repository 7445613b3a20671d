"""Pictures: exact values of overlays, heat maps, sheets and palette PNGs; whole files or none."""
import numpy as np
import pytest
from PIL import Image

from clipwsss import pictures

PALETTE = np.zeros((256, 3), np.uint8)
PALETTE[1], PALETTE[2] = (200, 0, 0), (0, 100, 0)


@pytest.mark.smoke
def test_mask_round_trip_keeps_values_and_palette(tmp_path):
    mask = np.array([[0, 1, 2], [255, 2, 1]], np.uint8)
    pictures.write_mask(tmp_path / "a" / "mask.png", mask, PALETTE)
    with Image.open(tmp_path / "a" / "mask.png") as file:
        assert file.mode == "P" and np.array_equal(np.array(file), mask)
        assert np.array_equal(np.array(file.convert("RGB"))[0, 1], PALETTE[1])
    assert [item.name for item in (tmp_path / "a").iterdir()] == ["mask.png"]
    with pytest.raises(ValueError, match="uint8, not int64"):
        pictures.write_mask(tmp_path / "b.png", mask.astype(np.int64), PALETTE)
    assert not (tmp_path / "b.png").exists() and len(list(tmp_path.iterdir())) == 1


def test_overlay_tints_classes_and_outlines_regions():
    mask = np.zeros((9, 12), np.uint8)
    mask[2:7, 3:9] = 1
    picture = np.array(pictures.overlay(Image.new("RGB", (12, 9), (100, 100, 100)), mask, PALETTE))
    assert picture[0, 0].tolist() == [100, 100, 100] and picture[4, 5].tolist() == [150, 50, 50]
    assert picture[2, 5].tolist() == [255] * 3 and picture[1, 5].tolist() == [255] * 3
    assert (picture == 255).all(2).sum() == 2 * 6 + 2 * 3 + 2 * 6 + 2 * 5
    with pytest.raises(ValueError, match="differ in size"):
        pictures.overlay(Image.new("RGB", (9, 12)), mask, PALETTE)


def test_legend_lists_the_classes_by_share():
    mask = np.zeros((40, 150), np.uint8)
    mask[:5], mask[5:25] = 1, 2
    plain, names = Image.new("RGB", (150, 40), "blue"), ["background", "cat", "dog"]
    picture = pictures.with_legend(plain, pictures.shares(mask, PALETTE, names))
    line = pictures.TEXT_SIZE + 6
    assert picture.size == (150, 40 + 2 * line) and picture.getpixel((75, 20)) == (0, 0, 255)
    assert picture.getpixel((9, 40 + line // 2)) == tuple(PALETTE[2])
    assert picture.getpixel((9, 40 + line + line // 2)) == tuple(PALETTE[1])


def test_heat_runs_from_blue_to_red_and_fits_the_image():
    picture = np.array(pictures.heat(np.array([[0.0, 0.2, 1.0, 3.0]])))
    assert np.array_equal(picture[0, [0, 1, 2, 3]], pictures.HEAT[[0, 1, 5, 5]])
    assert pictures.heat(np.zeros((3, 4)), Image.new("RGB", (40, 30))).size == (40, 30)


def test_contact_sheet_places_pictures_in_rows_and_columns():
    red, blue = Image.new("RGB", (40, 20), "red"), Image.new("RGB", (10, 20), "blue")
    rows = [[red, blue], [None, red]]
    sheet = pictures.contact_sheet(rows, ["one", "two"], ["first", "second"], cell=40, gap=4)
    line = pictures.TEXT_SIZE + 6
    assert sheet.size == (2 * 44 + 4, line + 40 + line + 20 + line)
    assert sheet.getpixel((24, line + 20)) == (255, 0, 0) and sheet.getpixel((68, line + 20)) == (0, 0, 255)
    assert sheet.getpixel((50, line + 20)) == (255, 255, 255)
    assert sheet.getpixel((24, line + 40 + line + 10)) == (255, 255, 255)
    with pytest.raises(ValueError, match="shorter"):
        pictures.contact_sheet([[red]], ["one", "two"])
