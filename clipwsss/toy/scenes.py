"""Scenes of the toy world: objects on one or two textured grounds, with the truth about every pixel."""
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .shapes import ALL_SUBTYPES, BACKGROUNDS, CLASSES, SUBTYPES, coloured_parts, texture

SMALLEST, LARGEST = 0.24, 0.42  # half-sizes of objects over the image's side
TINIEST = 0.05  # that SMALLEST may be set to
CO_OCCURRENCE = 0.75  # how often a class is on its own background; in a trial .95 left CAMs at 14 mIoU
STREAMS = {"train": 0, "val": 1, "clip": 2, "clip_val": 3}  # each draws its own textures and objects


class Scene(NamedTuple):
    """image [n,n,3] uint8; instances [n,n] uint8 (0 none, i + 1 for objects[i]); regions [n,n] uint8 (index
    into backgrounds); objects: sub-types in drawing order; backgrounds: one or two words."""
    image: np.ndarray
    instances: np.ndarray
    regions: np.ndarray
    objects: list[str]
    backgrounds: list[str]


class ScenePainter:
    """An endless stream of scenes that depends on the arguments alone, with 24 tiles of each texture.

    co_occurrence, smallest: of the scenes with tags, how often a class is on its own background, and the
    half-size of the smallest object over the image's side; the largest has LARGEST.
    """

    def __init__(self, seed: int, stream: str, size: int, co_occurrence: float = CO_OCCURRENCE,
                 smallest: float = SMALLEST):
        self.source, self.size = (seed, STREAMS[stream]), size
        self.co_occurrence, self.smallest = co_occurrence, smallest
        self.rng = np.random.default_rng(self.source)
        self.tiles: dict[tuple[int, int], np.ndarray] = {}  # made when first used

    def tagged_scene(self) -> Scene:
        """One to three objects of one or two classes, mostly on their class's own background."""
        rng = self.rng
        n_objects = rng.choice([1, 2, 3], p=[.55, .38, .07])
        n_classes = 1 if n_objects == 1 or rng.random() < .25 else 2
        present = [CLASSES[i] for i in rng.choice(len(CLASSES), n_classes, replace=False)]
        grounds = [BACKGROUNDS[CLASSES.index(name)] if rng.random() < self.co_occurrence
                   else str(rng.choice(BACKGROUNDS)) for name in present]
        if n_classes == 1 and rng.random() < .45:
            grounds.append(str(rng.choice(BACKGROUNDS[len(CLASSES):] if rng.random() < .85 else BACKGROUNDS)))
        regions = [i % n_classes for i in range(n_objects)]
        objects = [(str(rng.choice(SUBTYPES[present[region]])), region) for region in regions]
        return self.paint(objects, grounds, (self.smallest, LARGEST))

    def free_scene(self) -> Scene:
        """None to two objects, sub-types and backgrounds independent: nothing to learn from company."""
        rng = self.rng
        grounds = rng.choice(BACKGROUNDS, 1 if rng.random() < .6 else 2, replace=False).tolist()
        objects = [(str(rng.choice(ALL_SUBTYPES)), int(rng.integers(len(grounds))))
                   for _ in range(rng.choice([0, 1, 2], p=[.12, .6, .28]))]
        return self.paint(objects, grounds, (.26, .5))

    def paint(self, objects: list[tuple[str, int]], grounds: list[str], radii: tuple[float, float]) -> Scene:
        """Draw objects (sub-type, region it belongs to) of half-size `radii` (of the image's) on grounds."""
        rng, size = self.rng, self.size
        regions = np.zeros((size, size), np.uint8)
        if len(grounds) == 2:
            y, x = np.mgrid[0:size, 0:size] - size / 2
            slant = rng.choice([0, math.pi / 2]) + rng.normal(0, .15)
            regions[x * math.cos(slant) + y * math.sin(slant) > rng.uniform(-.06, .06) * size] = 1
        crops = [self._crop(name) for name in grounds]
        pixels = np.where(regions[..., None] == 0, crops[0], crops[-1])
        canvas, instances = Image.fromarray(pixels), Image.new("L", (size, size))
        brush, marker = ImageDraw.Draw(canvas), ImageDraw.Draw(instances)
        placed: list[tuple[float, float, float]] = []
        for number, (subtype, region) in enumerate(objects, 1):
            x, y, radius = self._place(regions == region, placed, radii, alone=len(objects) == 1)
            placed.append((x, y, radius))
            mirror, turn, stretch = rng.choice([-1, 1]), rng.normal(0, .12), rng.uniform(.85, 1.15, 2)
            cos, sin = math.cos(turn), math.sin(turn)
            matrix = np.array([[cos, sin], [-sin, cos]]) * radius  # row vectors times this are turned
            for corners, colour in coloured_parts(subtype, rng):
                outline = (corners * stretch * (mirror, 1) @ matrix + (x, y)).ravel().tolist()
                brush.polygon(outline, fill=colour)
                marker.polygon(outline, fill=number)
        pixels = np.asarray(canvas) * rng.uniform(.85, 1.1) + rng.normal(0, 4, (size, size, 1))
        return Scene(np.clip(pixels, 0, 255).astype(np.uint8), np.asarray(instances), regions,
                     [subtype for subtype, _ in objects], grounds)

    def _crop(self, name: str) -> np.ndarray:
        key = (1 + BACKGROUNDS.index(name), int(self.rng.integers(24)))  # 0 would seed as `source` alone does
        if key not in self.tiles:
            self.tiles[key] = texture(name, np.random.default_rng([*self.source, *key]))
        tile = self.tiles[key]
        top, left = self.rng.integers(0, len(tile) - self.size + 1, 2)
        tile = tile[top:top + self.size, left:left + self.size]
        return tile[:, ::-1] if self.rng.random() < .5 else tile

    def _place(self, region: np.ndarray, placed: list, radii: tuple[float, float], alone: bool):
        """(x, y, half-size) of a new object: of 12 tries the one in its region that overlaps others least."""
        best, best_score = None, -math.inf
        for _ in range(12):
            radius = self.rng.uniform(*radii) * (1 if alone else .8) * self.size
            x, y = self.rng.uniform(radius * .75, self.size - radius * .75, 2)
            gap = min((max(abs(x - a), abs(y - b)) - (radius + r) * .85 for a, b, r in placed), default=0)
            score = min(gap, 0) - (0 if region[int(y), int(x)] else 30)
            if score > best_score:
                best, best_score = (x, y, radius), score
            if score == 0:
                break
        return best
