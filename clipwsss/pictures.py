"""Pictures of images and label maps: overlays, heat maps, contact sheets; palette PNG files."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.ndimage import generate_binary_structure, maximum_filter, minimum_filter

from .files import atomic_path

HEAT = np.array([[12, 10, 60], [40, 70, 190], [30, 160, 160], [120, 205, 70], [250, 220, 50], [210, 30, 30]])
TEXT_SIZE = 12


def voc_palette() -> np.ndarray:
    """VOC's 256 colours, uint8 [256, 3]: bits 0-2, 3-5, 6-7 of a number fill R, G, B from the top bit."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.hstack([np.packbits(bits[:, channel::3], axis=1) for channel in range(3)])


def save(picture: Image.Image, path: Path | str) -> None:
    """Write a PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def write_mask(path: Path | str, mask: np.ndarray, palette: np.ndarray) -> None:
    """Write label map uint8 [H,W] as a palette PNG (palette uint8 [256,3]), whole or not at all."""
    save(colored(mask, palette), path)


def colored(mask: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Label map uint8 [H,W] as a palette image of the same values."""
    if mask.dtype != np.uint8:
        raise ValueError(f"a label map is uint8, not {mask.dtype}")
    picture = Image.fromarray(mask, "L")
    picture.putpalette(np.asarray(palette, np.uint8).tobytes())
    return picture


def edges(mask: np.ndarray) -> np.ndarray:
    """Bool [H,W]: pixels of label map [H,W] whose left, right, upper or lower neighbour has another label."""
    cross = generate_binary_structure(2, 1)
    return maximum_filter(mask, footprint=cross) != minimum_filter(mask, footprint=cross)


def overlay(image: Image.Image, mask: np.ndarray, palette: np.ndarray, opacity: float = 0.5) -> Image.Image:
    """The image with its label map uint8 [H,W] of the same size: classes tinted, the background as it is.

    Each region has a white outline; ignored pixels (255) are whitish. ValueError when the sizes differ.
    """
    pixels = np.asarray(image.convert("RGB"), np.float32)
    if pixels.shape[:2] != mask.shape:
        raise ValueError(f"image {pixels.shape[:2]} and mask {mask.shape} differ in size (height, width)")
    share = np.where(mask == 0, 0, opacity).astype(np.float32)[..., None]
    colors = np.asarray(palette, np.float32).copy()
    colors[255] = 255
    mixed = pixels * (1 - share) + colors[mask] * share
    mixed[edges(mask)] = 255
    return Image.fromarray(mixed.round().astype(np.uint8))


def with_legend(picture: Image.Image, entries: Sequence[tuple[np.ndarray, str]],
                columns: int = 1) -> Image.Image:
    """The picture over a list of colours, uint8 [3], and what they stand for."""
    font, line = ImageFont.load_default(TEXT_SIZE), TEXT_SIZE + 6
    height = picture.height + line * -(-len(entries) // columns)
    result = Image.new("RGB", (picture.width, height), "white")
    result.paste(picture, (0, 0))
    draw = ImageDraw.Draw(result)
    for index, (color, text) in enumerate(entries):
        left, top = index % columns * picture.width // columns, picture.height + index // columns * line
        box = left + 3, top + 3, left + TEXT_SIZE + 3, top + line - 3
        draw.rectangle(box, tuple(color.tolist()), "gray")
        draw.text((left + line + 3, top + line / 2), text, "black", font, anchor="lm")
    return result


def shares(mask: np.ndarray, palette: np.ndarray, names: Sequence[str]) -> list[tuple[np.ndarray, str]]:
    """A legend of a label map's classes by their shares (names: background first)."""
    counts = np.bincount(mask.ravel(), minlength=256)[:len(names)]
    present = [index for index in np.argsort(-counts, kind="stable") if index and counts[index]]
    legend = [(palette[index], f"{names[index]} {max(100 * counts[index] / mask.size, 0.1):.1f} %")
              for index in present]
    return legend or [(palette[0], "nothing but background")]


def heat(cam: np.ndarray, image: Image.Image | None = None, opacity: float = 0.6) -> Image.Image:
    """A map float [h,w] in [0,1] from dark blue to red; over `image`, resized to it, where one is given."""
    values = np.clip(cam, 0, 1)
    stops = np.linspace(0, 1, len(HEAT))
    colors = np.stack([np.interp(values, stops, HEAT[:, channel]) for channel in range(3)], -1)
    picture = Image.fromarray(colors.round().astype(np.uint8))
    if image is None:
        return picture
    return Image.blend(image.convert("RGB"), picture.resize(image.size, Image.Resampling.BILINEAR), opacity)


def contact_sheet(rows: Sequence[Sequence[Image.Image | None]], titles: Sequence[str],
                  names: Sequence[str] | None = None, cell: int = 192, gap: int = 4) -> Image.Image:
    """One picture of rows of pictures under column titles, each with its name below; None leaves a hole.

    Pictures are fitted into squares of `cell` pixels. ValueError when a row's length is not that of `titles`.
    """
    line = TEXT_SIZE + 6
    below = line if names else gap
    fitted = [[None if item is None else ImageOps.contain(item.convert("RGB"), (cell, cell)) for item in row]
              for row in rows]
    heights = [max((item.height for item in row if item), default=cell) for row in fitted]
    size = (len(titles) * (cell + gap) + gap, line + sum(heights) + below * len(rows))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_SIZE)
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
    """`text`, cut with "..." where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    fitting = (text[:end] + "..." for end in range(len(text) - 1, 0, -1))
    return next((cut for cut in fitting if font.getlength(cut) <= width), "...")
