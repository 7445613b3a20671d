"""What the toy world is made of: six classes of three sub-types as polygons, eight textured backgrounds."""
import colorsys
import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

# Each class has its own background in the same order; the first sub-type of a class is its prototype.
SUBTYPES = {"boat": ["ship", "sailboat", "canoe"], "train": ["locomotive", "tram", "wagon"],
            "sheep": ["ewe", "ram", "lamb"], "plane": ["jet", "biplane", "glider"],
            "car": ["sedan", "van", "truck"], "bottle": ["flask", "jug", "jar"]}
CLASSES = list(SUBTYPES)
BACKGROUNDS = ["water", "rails", "grass", "sky", "road", "table", "sand", "brick"]
ALL_SUBTYPES = [word for words in SUBTYPES.values() for word in words]

FIXED_COLOURS = {"black": (35, 35, 40), "glass": (205, 225, 240), "steel": (180, 180, 180),
                 "grey": (120, 120, 120), "paper": (235, 230, 215), "horn": (170, 140, 80)}


@cache
def shapes() -> dict[str, list]:
    """Each sub-type's parts in drawing order: [colour, factor on it, form, numbers], `outline`'s last two.

    Colour "main" carries the sub-type's hue, "second" is any; x points right, y down, both about -1..1.
    """
    return json.loads((Path(__file__).parents[1] / "assets" / "shapes.json").read_text())


def outline(form: str, numbers: list[float], rng: np.random.Generator) -> np.ndarray:
    """Corners [n, 2] of a part.

    polygon: x, y of each corner; box: left, top, right, bottom. Others: centre, half-axes, number of corners:
    an ellipse (disc), one with curls (fleece), a small one at random on such a fleece (tuft).
    """
    if form == "polygon":
        return np.reshape(numbers, (-1, 2))
    if form == "box":
        left, top, right, bottom = numbers
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    x, y, width, height, corners = numbers
    angle, curl = np.linspace(0, 2 * np.pi, corners, endpoint=False), 1.0
    if form == "fleece":
        curl = 1 + .13 * np.cos(9 * angle + rng.random() * 6)
    if form == "tuft":
        right, down = rng.uniform(-1, 1, 2)
        x, y, width, height = x + width * .5 * right, y + height * .5 * down, .09, .07
    return np.stack([x + width * curl * np.cos(angle), y + height * curl * np.sin(angle)], 1)


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB in 0..255 of a hue (any real, period 1)."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value)) * 255


def coloured_parts(subtype: str, rng: np.random.Generator) -> list[tuple[np.ndarray, tuple[int, ...]]]:
    """The polygons of one random object: (corners [n, 2] about -1..1, RGB 0..255), in drawing order.

    Each sub-type prefers one of 18 hues (spread .06), which a tiny network learns soon; sheep are grey.
    """
    hue = ALL_SUBTYPES.index(subtype) * 7 % 18 / 18 + rng.normal(0, .06)
    colours = {**FIXED_COLOURS, "main": hsv(hue, rng.uniform(.5, .95), rng.uniform(.5, .95)),
               "second": hsv(rng.random(), rng.uniform(.1, .8), rng.uniform(.5, 1))}
    if subtype in SUBTYPES["sheep"]:
        light = np.array([1, .97, .9]) * rng.uniform(150, 245)
        dark = np.array([1, .9, .8]) * rng.uniform(30, 120)
        colours["wool"], colours["face"] = (light * .35, light) if rng.random() < .3 else (light, dark)
    return [(outline(form, numbers, rng),
             tuple(np.clip(np.multiply(colours[name], shade), 0, 255).astype(int).tolist()))
            for name, shade, form, numbers in shapes()[subtype]]


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """[size, size, 1] float, about 0..1: random values on a coarse grid, interpolated."""
    coarse = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))[..., None]


def texture(background: str, rng: np.random.Generator, size: int = 160) -> np.ndarray:
    """A random tile [size, size, 3] uint8 of one of BACKGROUNDS."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)[..., None]
    noise = rng.normal(0, 1, (size, size, 1)).astype(np.float32)
    hills = smooth_noise(rng, size, int(rng.integers(4, 9)))
    light = rng.uniform(.75, 1.1)
    if background == "water":
        bend = np.sin(x * rng.uniform(.08, .16) + hills * 6)
        waves = np.sin(rng.uniform(.5, .8) * (y + 3 * bend))
        image = hsv(rng.uniform(.52, .6), rng.uniform(.5, .8), .6) * light + (waves * 22 + noise * 5)
    elif background == "rails":
        pitch, gauge = rng.uniform(9, 13), rng.uniform(26, 36)
        gravel = hsv(rng.uniform(.05, .1), .35, .5) * light
        image = np.where(y % pitch < pitch * .45, gravel * .55, gravel + noise * 14)
        image = np.where(x % gauge < 3, np.array([170, 170, 180]) * light, image)
    elif background == "grass":
        tall = Image.fromarray(noise[..., 0]).resize((size, size * 3), Image.Resampling.BILINEAR)
        blades = np.asarray(tall)[:size, :, None]
        image = hsv(rng.uniform(.24, .34), rng.uniform(.5, .8), .5) * light + blades * 34
    elif background == "sky":
        blue = hsv(rng.uniform(.53, .62), rng.uniform(.2, .45), .85) * min(light, 1.05)
        clouds = np.clip((smooth_noise(rng, size, int(rng.integers(5, 9))) - .5) * 3, 0, 1)
        image = blue + noise * 2 + clouds * (245 - blue)
    elif background == "road":
        asphalt = np.array([105, 105, 110]) * light + noise * 10
        dashes = (y % rng.uniform(30, 44) < 4) & (x % 24 < 14)
        image = np.where(dashes, np.array([225, 225, 200]), asphalt)
    elif background == "table":
        grain = np.sin(.35 * x + 6 * hills + .03 * y)
        wood = hsv(rng.uniform(.06, .1), rng.uniform(.5, .7), .7) * light + (grain * 20 + noise * 4)
        image = np.where(y % rng.uniform(34, 50) < 1.5, wood * .5, wood)
    elif background == "sand":
        image = hsv(rng.uniform(.1, .14), .35, .85) * light + (noise * 14 + (hills - .5) * 40)
    else:
        wall = hsv(rng.uniform(.98, 1.04), .55, .6) * light + (noise * 9 + (hills - .5) * 30)
        mortar = (y % 9 < 1.6) | ((x + 8 * (y // 9 % 2)) % 17 < 1.6)
        image = np.where(mortar, np.array([190, 185, 180]) * light, wall)
    return np.clip(image, 0, 255).astype(np.uint8)
