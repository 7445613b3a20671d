"""Pictures of images and label maps: overlays, heat maps, contact sheets, and PNG files with a palette."""
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .files import atomic_path

HEAT = np.array([[12, 10, 60], [40, 70, 190], [30, 160, 160], [120, 205, 70], [250, 220, 50], [210, 30, 30]])
TEXT_SIZE = 12


def voc_palette() -> np.ndarray:
    """The 256 colours of PASCAL VOC's label maps, uint8 [256, 3].

    The bits of a label go to red, green and blue in turn, the lowest first, and fill each of them from its
    highest bit down. Example: label 11 is 1011 in binary. Red takes its bits 0 and 3, which makes 11000000,
    green its bit 1, 10000000, and blue its bit 2, 00000000: the colour is (192, 128, 0).
    """
    labels = np.arange(256, dtype=np.uint8)
    bits = np.unpackbits(labels[:, None], axis=1, bitorder="little")
    channels = [np.packbits(bits[:, channel::3], axis=1) for channel in range(3)]
    return np.hstack(channels)


def save(picture: Image.Image, path: Path | str) -> None:
    """Write a PNG file; an interruption leaves no partial file."""
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def write_mask(path: Path | str, mask: np.ndarray, palette: np.ndarray) -> None:
    """Write label map uint8 [H,W] as a PNG with a palette uint8 [256,3]; no partial file is ever left.

    ValueError where the label map is not uint8.
    """
    save(colored(mask, palette), path)


def colored(mask: np.ndarray, palette: np.ndarray) -> Image.Image:
    """A label map uint8 [H,W] as an image with a palette uint8 [256,3]; ValueError for another type."""
    if mask.dtype != np.uint8:
        raise ValueError(f"a label map is uint8, not {mask.dtype}")
    picture = Image.fromarray(mask, "L")
    picture.putpalette(np.asarray(palette, np.uint8).tobytes())
    return picture


def overlay(image: Image.Image, mask: np.ndarray, palette: np.ndarray, opacity: float = 0.5) -> Image.Image:
    """An image with the classes of its label map uint8 [H,W] tinted and their regions outlined in white.

    opacity: share in [0,1] of the class's colour (palette uint8 [256,3]). The background keeps its colour;
    ignored pixels (255) are tinted white. ValueError where image and label map differ in size.
    """
    pixels = np.asarray(image.convert("RGB"), np.float32)
    if pixels.shape[:2] != mask.shape:
        raise ValueError(f"image {pixels.shape[:2]} and mask {mask.shape} differ in size (height, width)")
    share = np.where(mask == 0, 0, opacity).astype(np.float32)[..., None]
    colors = np.asarray(palette, np.float32).copy()
    colors[255] = 255
    mixed = pixels * (1 - share) + colors[mask] * share
    # The outline is every pixel whose left, right, upper or lower neighbour has another label.
    outline = np.zeros(mask.shape, bool)
    differs_below = mask[1:] != mask[:-1]
    outline[1:] |= differs_below
    outline[:-1] |= differs_below
    differs_right = mask[:, 1:] != mask[:, :-1]
    outline[:, 1:] |= differs_right
    outline[:, :-1] |= differs_right
    mixed[outline] = 255
    return Image.fromarray(mixed.round().astype(np.uint8))


def with_legend(picture: Image.Image, entries: Sequence[tuple[np.ndarray, str]],
                columns: int = 1) -> Image.Image:
    """The picture with a legend below: colours uint8 [3] and their texts, in so many columns."""
    font = ImageFont.load_default(TEXT_SIZE)
    line = TEXT_SIZE + 6
    lines = math.ceil(len(entries) / columns)
    result = Image.new("RGB", (picture.width, picture.height + line * lines), "white")
    result.paste(picture, (0, 0))
    draw = ImageDraw.Draw(result)
    for index, (color, text) in enumerate(entries):
        row, column = divmod(index, columns)
        left = column * picture.width // columns
        top = picture.height + row * line
        box = (left + 3, top + 3, left + TEXT_SIZE + 3, top + line - 3)
        draw.rectangle(box, tuple(color.tolist()), "gray")
        draw.text((left + line + 3, top + line / 2), text, "black", font, anchor="lm")
    return result


def shares(mask: np.ndarray, palette: np.ndarray, names: Sequence[str]) -> list[tuple[np.ndarray, str]]:
    """Legend entries of a label map's classes with their percentage of its pixels, the largest first.

    mask: uint8 [H,W]; palette: uint8 [256,3]; names: the classes, background first.
    """
    counts = np.bincount(mask.ravel(), minlength=256)[:len(names)]
    entries = []
    for index in np.argsort(-counts, kind="stable"):
        if index > 0 and counts[index] > 0:
            percent = max(100 * counts[index] / mask.size, 0.1)
            entries.append((palette[index], f"{names[index]} {percent:.1f} %"))
    return entries or [(palette[0], "nothing but background")]


def heat(cam: np.ndarray, image: Image.Image | None = None, opacity: float = 0.6) -> Image.Image:
    """A map float [h,w] in [0,1] in colours from dark blue (0) to red (1).

    image: laid under the map, which is resized to it and has this opacity.
    """
    values = np.clip(cam, 0, 1)
    stops = np.linspace(0, 1, len(HEAT))
    colors = np.stack([np.interp(values, stops, HEAT[:, channel]) for channel in range(3)], -1)
    picture = Image.fromarray(colors.round().astype(np.uint8))
    if image is None:
        return picture
    return Image.blend(image.convert("RGB"), picture.resize(image.size, Image.Resampling.BILINEAR), opacity)


def contact_sheet(rows: Sequence[Sequence[Image.Image | None]], titles: Sequence[str],
                  names: Sequence[str] | None = None, cell: int = 192, gap: int = 4) -> Image.Image:
    """One picture of rows of pictures below the titles of their columns; None leaves a place empty.

    names: a line below each row. Each picture is fitted into a square of `cell` pixels. ValueError where a
    row does not have a picture, or None, for each title.
    """
    line = TEXT_SIZE + 6
    below = line if names else gap
    fitted = [[None if item is None else ImageOps.contain(item.convert("RGB"), (cell, cell)) for item in row]
              for row in rows]
    heights = [max((item.height for item in row if item), default=cell) for row in fitted]
    width = len(titles) * (cell + gap) + gap
    sheet = Image.new("RGB", (width, line + sum(heights) + below * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(TEXT_SIZE)
    centers = [gap + column * (cell + gap) + cell // 2 for column in range(len(titles))]
    for center, title in zip(centers, titles):
        draw.text((center, line / 2), shorten(title, cell, font), "black", font, anchor="mm")
    top = line
    for index, (row, height) in enumerate(zip(fitted, heights)):
        for center, item in zip(centers, row, strict=True):
            if item:
                sheet.paste(item, (center - item.width // 2, top + (height - item.height) // 2))
        if names:
            draw.text((gap, top + height + below / 2), names[index], "black", font, anchor="lm")
        top += height + below
    return sheet


def shorten(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """The text, cut and ended by "..." where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    for length in range(len(text) - 1, 0, -1):
        cut = text[:length] + "..."
        if font.getlength(cut) <= width:
            return cut
    return "..."
