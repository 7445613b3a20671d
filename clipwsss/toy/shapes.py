"""What the toy world is made of: six classes of three sub-types as polygons, eight textured backgrounds."""
import colorsys

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

# A filled polygon: its colour's name, corners [n, 2] (x right, y down, about -1..1), a factor on the colour.
Part = tuple[str, np.ndarray, float]


def poly(fill: str, *coordinates: float, shade: float = 1.0) -> Part:
    """A polygon from x, y, x, y, ..."""
    return fill, np.reshape(coordinates, (-1, 2)), shade


def box(fill: str, left: float, top: float, right: float, bottom: float, shade: float = 1.0) -> Part:
    """An upright rectangle."""
    return poly(fill, left, top, right, top, right, bottom, left, bottom, shade=shade)


def disc(fill: str, x: float, y: float, width: float, height: float, corners: int,
         shade: float = 1.0) -> Part:
    """An ellipse of half-axes width and height."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return fill, np.stack([x + width * np.cos(angle), y + height * np.sin(angle)], 1), shade


def wheels(at: tuple[float, ...], y: float, radius: float, hub: float = 0.0,
           fill: str = "steel") -> list[Part]:
    """Black wheels in a row, with hubs where hub > 0."""
    return ([disc("black", x, y, radius, radius, 12) for x in at]
            + [disc(fill, x, y, hub, hub, 8) for x in at if hub])


# Parts in drawing order. "main" carries the sub-type's hue, "second" is any colour.
SHAPES: dict[str, list[Part]] = {
    "ship": [poly("main", -1, .1, 1, .1, .75, .6, -.75, .6), box("second", -.6, -.25, .5, .1),
             box("second", -.35, -.5, .25, -.25, shade=.8), box("main", -.1, -.9, .12, -.5, shade=.6),
             *(disc("glass", x, .32, .08, .08, 8) for x in (-.5, -.17, .17, .5))],
    "sailboat": [poly("main", -.8, .45, .8, .45, .5, .8, -.5, .8), box("black", -.05, -1, .05, .45),
                 poly("second", .1, -.95, .1, .35, .8, .35),
                 poly("second", -.1, -.75, -.1, .35, -.65, .35, shade=.85)],
    "canoe": [poly("main", -1, -.25, -.7, .02, .7, .02, 1, -.25, .8, .3, .4, .42, -.4, .42, -.8, .3),
              poly("main", -.75, .1, .75, .1, .7, .18, -.7, .18, shade=.6),
              poly("second", -.2, -.5, -.1, -.55, .45, .55, .33, .6), disc("second", .4, .6, .12, .16, 8)],
    "locomotive": [box("main", -1, -.1, .5, .45), box("main", .35, -.6, 1, .45),
                   box("glass", .5, -.45, .85, -.1), box("main", -.8, -.6, -.55, -.1, shade=.6),
                   disc("main", -.2, -.12, .2, .2, 10, shade=.6),
                   *wheels((-.7, -.15, .4, .8), .5, .22, .09, "second")],
    "tram": [box("main", -1, -.4, 1, .45), box("second", -1, .1, 1, .25),
             poly("black", -.2, -.4, .05, -.8, -.1, -.8, .1, -.4), box("black", -.3, -.85, .3, -.78),
             *(box("glass", x, -.25, x + .25, .02) for x in (-.9, -.53, -.16, .21, .58)),
             *wheels((-.7, -.4, .4, .7), .48, .12)],
    "wagon": [poly("main", -1, -.5, 1, -.5, .85, .35, -.85, .35),
              *(box("main", x, -.5, x + .1, .35, shade=.6) for x in (-.6, -.2, .2, .55)),
              box("main", -1, -.15, 1, -.05, shade=.6), box("black", -.9, .32, .9, .42),
              *wheels((-.6, .6), .52, .2)],
    "jet": [poly("main", -.1, -.15, .35, -.15, -.35, -.9, -.6, -.9, shade=.85),
            poly("main", -.1, .15, .35, .15, -.35, .9, -.6, .9, shade=.85),
            poly("main", -1, -.12, .7, -.14, 1, 0, .7, .14, -1, .12),
            poly("second", -.75, 0, -.95, -.4, -1, -.4, -1, .4, -.95, .4),
            *(disc("black", x, 0, .05, .05, 6) for x in (-.4, -.2, 0, .2, .4)),
            poly("glass", .65, -.1, .85, -.05, .85, .05, .65, .1)],
    "biplane": [box("second", -.55, -.55, .35, -.4), box("second", -.6, .12, .3, .27),
                box("black", -.45, -.4, -.38, .15), box("black", .1, -.4, .17, .15),
                poly("main", -.95, -.1, .55, -.25, .6, .15, -.9, .02),
                poly("second", -1, -.4, -.75, -.35, -.75, 0, -.95, 0),
                box("black", .6, -.55, .68, .45), disc("black", .1, .5, .15, .15, 8)],
    "glider": [poly("main", -.05, -1, .12, -1, .2, 0, .12, 1, -.05, 1, -.15, 0),
               poly("main", -.9, -.06, .4, -.1, .55, 0, .4, .1, -.9, .06, shade=.85),
               box("second", -.95, -.3, -.8, .3), disc("glass", .3, 0, .13, .07, 8),
               poly("second", -.05, -1, .12, -1, .14, -.8, -.07, -.8),
               poly("second", -.05, 1, .12, 1, .14, .8, -.07, .8)],
    "sedan": [poly("main", -1, 0, -.55, -.05, -.35, -.45, .35, -.45, .6, -.05, 1, .05, 1, .38, -1, .38),
              poly("glass", -.45, -.05, -.28, -.36, 0, -.36, 0, -.05),
              poly("glass", .06, -.05, .06, -.36, .3, -.36, .48, -.05), *wheels((-.55, .58), .38, .22, .1)],
    "van": [poly("main", -1, -.65, .55, -.65, .85, -.1, 1, 0, 1, .45, -1, .45),
            poly("glass", .3, -.5, .5, -.5, .72, -.1, .3, -.1), box("glass", -.2, -.5, .2, -.1),
            box("second", -1, .1, 1, .18), *wheels((-.55, .55), .45, .22, .1)],
    "truck": [box("second", -1, -.7, .35, .3), poly("main", .4, -.35, .8, -.35, 1, 0, 1, .35, .4, .35),
              poly("glass", .5, -.25, .75, -.25, .88, 0, .5, 0), box("black", -1, .28, .95, .4),
              *wheels((-.75, -.35, .65), .42, .2, .09)],
    "flask": [poly("main", -.14, -.7, .14, -.7, .16, -.3, .42, 0, .45, 1, -.45, 1, -.42, 0, -.16, -.3),
              box("main", -.17, -.98, .17, -.72, shade=.6), box("second", -.42, .2, .42, .7),
              box("main", -.25, 0, -.15, .95, shade=1.5)],
    "jug": [disc("main", .55, .05, .38, .45, 14, shade=.8), disc("grey", .55, .05, .2, .27, 12),
            poly("main", -.35, -.8, .35, -.8, .25, -.45, .6, .2, .45, .9, -.45, .9, -.6, .2, -.25, -.45),
            poly("main", -.35, -.8, -.6, -.85, -.25, -.5), box("second", -.5, .1, .5, .3)],
    "jar": [box("main", -.6, -.5, .6, .85), box("second", -.68, -.8, .68, -.5),
            box("paper", -.45, -.1, .45, .5), disc("main", 0, .2, .2, .2, 10, shade=.6),
            box("main", -.5, -.45, -.4, .8, shade=1.5)],
}

# Sheep differ from each other in build: body (x, y, half-axes), head (x, y, size), where the feet are.
SHEEP = {"ewe": ((-.12, 0, .75, .5), (.75, -.3, .24), .75),
         "ram": ((-.15, .05, .7, .42), (.68, -.4, .25), .8),
         "lamb": ((-.1, -.1, .5, .32), (.55, -.45, .3), .85)}


def sheep_parts(kind: str, rng: np.random.Generator) -> list[Part]:
    """A sheep with its fleece's curls and tufts at random."""
    (x, y, width, height), (head_x, head_y, head), feet = SHEEP[kind]
    legs = [box("face", x + step * width - .06, y, x + step * width + .06, feet)
            for step in (-.6, -.3, .3, .6)]
    angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    curl = 1 + .13 * np.cos(9 * angle + rng.random() * 6)
    fleece = "wool", np.stack([x + width * curl * np.cos(angle), y + height * curl * np.sin(angle)], 1), 1.0
    tufts = [disc("wool", x + width * .5 * right, y + height * .5 * down, .09, .07, 7, shade=.8)
             for right, down in rng.uniform(-1, 1, (5, 2))]
    face = [disc("face", head_x, head_y, head * .8, head, 10),
            disc("glass", head_x + .08, head_y - .05, .05, .05, 6)]
    if kind == "ram":
        face += [disc("horn", head_x - .14, head_y - .12, .26, .26, 12),
                 disc("face", head_x - .14, head_y - .1, .13, .13, 8, shade=.6)]
    if kind == "lamb":
        face += [disc("face", head_x - .22, head_y + .02, .12, .2, 8, shade=1.2)]
    return [*legs, fleece, *tufts, *face]


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
    if subtype in SHEEP:
        light = np.array([1, .97, .9]) * rng.uniform(150, 245)
        dark = np.array([1, .9, .8]) * rng.uniform(30, 120)
        colours["wool"], colours["face"] = (light * .35, light) if rng.random() < .3 else (light, dark)
    parts = sheep_parts(subtype, rng) if subtype in SHEEP else SHAPES[subtype]
    return [(corners, tuple(np.clip(np.multiply(colours[fill], shade), 0, 255).astype(int).tolist()))
            for fill, corners, shade in parts]


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
