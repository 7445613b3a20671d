"""Scenes of the toy world: objects drawn from polygons on one or two textured backgrounds.

Six classes have three sub-types each. Every scene carries the truth about each of its pixels.
"""
import colorsys
import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ..files import read_json

# The first sub-type of a class is its prototype.
SUBTYPES = {"boat": ["ship", "sailboat", "canoe"], "train": ["locomotive", "tram", "wagon"],
            "sheep": ["ewe", "ram", "lamb"], "plane": ["jet", "biplane", "glider"],
            "car": ["sedan", "van", "truck"], "bottle": ["flask", "jug", "jar"]}
CLASSES = list(SUBTYPES)
ALL_SUBTYPES = [word for words in SUBTYPES.values() for word in words]
# The first six are the own backgrounds of the six classes, in the same order.
BACKGROUNDS = ["water", "rails", "grass", "sky", "road", "table", "sand", "brick"]

FIXED_COLOURS = {"black": (35, 35, 40), "glass": (205, 225, 240), "steel": (180, 180, 180),
                 "grey": (120, 120, 120), "paper": (235, 230, 215), "horn": (170, 140, 80)}

# Half-sizes of objects as fractions of the image's side.
SMALLEST_OBJECT = 0.24
LARGEST_OBJECT = 0.42
TINIEST = 0.05  # the least value that `smallest` may be set to
CO_OCCURRENCE = 0.75  # probability of a class's own background; in a trial, 0.95 left CAMs at 14 mIoU
STREAMS = {"train": 0, "val": 1, "clip": 2, "clip_val": 3}  # each draws textures and objects of its own
TILES = 24  # tiles of each texture in a stream; backgrounds are cut from them


class Scene(NamedTuple):
    """One image of n x n pixels and the truth about it.

    image: [n, n, 3] uint8. instances: [n, n] uint8, 0 where there is no object, i + 1 on objects[i].
    regions: [n, n] uint8, the index into `backgrounds` of the background that lies there or is hidden there.
    objects: sub-types in drawing order. backgrounds: one or two words.
    """
    image: np.ndarray
    instances: np.ndarray
    regions: np.ndarray
    objects: list[str]
    backgrounds: list[str]


@cache
def shapes() -> dict[str, list]:
    """The parts of each sub-type in drawing order: [colour, brightness, form, numbers], see `part_corners`.

    The colour "main" has the sub-type's hue and "second" has any hue. x points right and y down; both lie in
    about -1..1.
    """
    return read_json(Path(__file__).parents[1] / "assets" / "shapes.json")


def part_corners(form: str, numbers: list[float], rng: np.random.Generator) -> np.ndarray:
    """The corners [n, 2] of a part.

    polygon: x and y of each corner. box: left, top, right, bottom. disc, fleece and tuft: x and y of the
    centre, the two half-axes, the number of corners. A disc is an ellipse, a fleece an ellipse with curls,
    and a tuft a small ellipse at a random place on such a fleece.
    """
    if form == "polygon":
        return np.reshape(numbers, (-1, 2))
    if form == "box":
        left, top, right, bottom = numbers
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    x, y, width, height, corners = numbers
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    curl = 1.0
    if form == "fleece":
        curl = 1 + .13 * np.cos(9 * angle + rng.random() * 6)
    if form == "tuft":
        right, down = rng.uniform(-1, 1, 2)
        x = x + width * .5 * right
        y = y + height * .5 * down
        width = .09
        height = .07
    return np.stack([x + width * curl * np.cos(angle), y + height * curl * np.sin(angle)], 1)


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB in 0..255 of a colour. The hue may be any number and has period 1."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value)) * 255


def coloured_parts(subtype: str, rng: np.random.Generator) -> list[tuple[np.ndarray, tuple[int, ...]]]:
    """The polygons of a random object in drawing order: (corners [n, 2] in about -1..1, RGB in 0..255).

    Each sub-type has one of 18 hues with a spread of 0.06, which a tiny network learns quickly. Sheep are
    grey.
    """
    hue = ALL_SUBTYPES.index(subtype) * 7 % 18 / 18 + rng.normal(0, .06)
    colours = {**FIXED_COLOURS, "main": hsv(hue, rng.uniform(.5, .95), rng.uniform(.5, .95)),
               "second": hsv(rng.random(), rng.uniform(.1, .8), rng.uniform(.5, 1))}
    if subtype in SUBTYPES["sheep"]:
        light = np.array([1, .97, .9]) * rng.uniform(150, 245)
        dark = np.array([1, .9, .8]) * rng.uniform(30, 120)
        colours["wool"] = light
        colours["face"] = dark
        if rng.random() < .3:
            colours["wool"] = light * .35
            colours["face"] = light
    parts = []
    for name, brightness, form, numbers in shapes()[subtype]:
        corners = part_corners(form, numbers, rng)
        colour = np.clip(np.multiply(colours[name], brightness), 0, 255).astype(int)
        parts.append((corners, tuple(colour.tolist())))
    return parts


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """[size, size, 1] float in about 0..1: random values on a grid of `cells` x `cells`, interpolated."""
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
        pitch = rng.uniform(9, 13)
        gauge = rng.uniform(26, 36)
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


class ScenePainter:
    """An endless stream of random scenes, which depends on the arguments alone.

    co_occurrence: probability that a class is drawn on its own background. smallest: half-size of the
    smallest object as a fraction of the image's side; that of the largest is LARGEST_OBJECT. Both concern
    `tagged_scene`.
    """

    def __init__(self, seed: int, stream: str, size: int, co_occurrence: float = CO_OCCURRENCE,
                 smallest: float = SMALLEST_OBJECT):
        self.source = (seed, STREAMS[stream])
        self.size = size
        self.co_occurrence = co_occurrence
        self.smallest = smallest
        self.rng = np.random.default_rng(self.source)
        self.tiles: dict[tuple[int, int], np.ndarray] = {}  # made when they are first used

    def tagged_scene(self) -> Scene:
        """One to three objects of one or two classes, mostly on their class's own background."""
        rng = self.rng
        n_objects = rng.choice([1, 2, 3], p=[.55, .38, .07])
        n_classes = 1 if n_objects == 1 or rng.random() < .25 else 2
        present = [CLASSES[i] for i in rng.choice(len(CLASSES), n_classes, replace=False)]
        backgrounds = []
        for name in present:
            if rng.random() < self.co_occurrence:
                backgrounds.append(BACKGROUNDS[CLASSES.index(name)])
            else:
                backgrounds.append(str(rng.choice(BACKGROUNDS)))
        if n_classes == 1 and rng.random() < .45:  # a second background without an object
            nobodys = BACKGROUNDS[len(CLASSES):]
            backgrounds.append(str(rng.choice(nobodys if rng.random() < .85 else BACKGROUNDS)))
        objects = []
        for number in range(n_objects):
            region = number % n_classes
            objects.append((str(rng.choice(SUBTYPES[present[region]])), region))
        return self.paint_scene(objects, backgrounds, (self.smallest, LARGEST_OBJECT))

    def free_scene(self) -> Scene:
        """At most two objects. Their sub-types and the backgrounds are independent of each other."""
        rng = self.rng
        backgrounds = rng.choice(BACKGROUNDS, 1 if rng.random() < .6 else 2, replace=False).tolist()
        objects = []
        for _ in range(rng.choice([0, 1, 2], p=[.12, .6, .28])):
            objects.append((str(rng.choice(ALL_SUBTYPES)), int(rng.integers(len(backgrounds)))))
        return self.paint_scene(objects, backgrounds, (.26, .5))

    def paint_scene(self, objects: list[tuple[str, int]], backgrounds: list[str],
                    radii: tuple[float, float]) -> Scene:
        """Draw objects on backgrounds.

        objects: sub-type and the index of the background that it stands on. radii: the range of the objects'
        half-sizes as fractions of the image's side.
        """
        rng = self.rng
        size = self.size
        regions = np.zeros((size, size), np.uint8)
        if len(backgrounds) == 2:
            y, x = np.mgrid[0:size, 0:size] - size / 2
            slant = rng.choice([0, math.pi / 2]) + rng.normal(0, .15)
            regions[x * math.cos(slant) + y * math.sin(slant) > rng.uniform(-.06, .06) * size] = 1
        crops = [self._crop(name) for name in backgrounds]
        canvas = Image.fromarray(np.where(regions[..., None] == 0, crops[0], crops[-1]))
        instances = Image.new("L", (size, size))
        brush = ImageDraw.Draw(canvas)
        marker = ImageDraw.Draw(instances)
        placed: list[tuple[float, float, float]] = []
        for number, (subtype, region) in enumerate(objects, 1):
            x, y, radius = self._place(regions == region, placed, radii, alone=len(objects) == 1)
            placed.append((x, y, radius))
            mirror = rng.choice([-1, 1])
            turn = rng.normal(0, .12)
            stretch = rng.uniform(.85, 1.15, 2)
            cos = math.cos(turn)
            sin = math.sin(turn)
            matrix = np.array([[cos, sin], [-sin, cos]]) * radius  # it turns and scales row vectors
            for corners, colour in coloured_parts(subtype, rng):
                points = (corners * stretch * (mirror, 1) @ matrix + (x, y)).ravel().tolist()
                brush.polygon(points, fill=colour)
                marker.polygon(points, fill=number)
        pixels = np.asarray(canvas) * rng.uniform(.85, 1.1) + rng.normal(0, 4, (size, size, 1))
        return Scene(np.clip(pixels, 0, 255).astype(np.uint8), np.asarray(instances), regions,
                     [subtype for subtype, _ in objects], backgrounds)

    def _crop(self, name: str) -> np.ndarray:
        """A random part [size, size, 3] of one of the background's tiles, or its mirror image."""
        background = 1 + BACKGROUNDS.index(name)  # with 0, a tile's seed could be the one of `self.rng`
        key = (background, int(self.rng.integers(TILES)))
        if key not in self.tiles:
            self.tiles[key] = texture(name, np.random.default_rng([*self.source, *key]))
        tile = self.tiles[key]
        top, left = self.rng.integers(0, len(tile) - self.size + 1, 2)
        tile = tile[top:top + self.size, left:left + self.size]
        return tile[:, ::-1] if self.rng.random() < .5 else tile

    def _place(self, region: np.ndarray, placed: list[tuple[float, float, float]], radii: tuple[float, float],
               alone: bool) -> tuple[float, float, float]:
        """(x, y, half-size) of a new object in pixels.

        Of at most 12 random places the one inside `region` [n, n] bool that overlaps the placed objects
        least.
        """
        best = None
        best_score = -math.inf
        for _ in range(12):
            radius = self.rng.uniform(*radii) * (1 if alone else .8) * self.size
            x, y = self.rng.uniform(radius * .75, self.size - radius * .75, 2)
            gap = min((max(abs(x - a), abs(y - b)) - (radius + r) * .85 for a, b, r in placed), default=0)
            outside = 0 if region[int(y), int(x)] else 30
            score = min(gap, 0) - outside
            if score > best_score:
                best = (x, y, radius)
                best_score = score
            if score == 0:
                break
        return best
