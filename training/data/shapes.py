"""Drawn scenes with captions: "a red circle left of a blue square". Any number of drawings of each scene.

    train, held_out, alone = split_scenes()
    pixels = draw([scene, ...], numbers)  # uint8 (n, 3, 32, 32); numbers decide places, sizes and shades

What is held out was never seen together: of 25 pairs of things, all four arrangements (each left of the other, each
above the other), 100 scenes, whose things are all seen in other company. Who knows which things are there, and not
how they stand, is right one time in four. And of the 40 things a half never stand alone in training: to name one of
them on a picture of its own, a model has to take scenes and captions apart.
"""

import hashlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


SIZE = 32  # pixels of a side
COLOURS = {
    "red": (225, 45, 45),
    "green": (45, 185, 65),
    "blue": (65, 100, 245),
    "yellow": (235, 215, 45),
    "pink": (240, 130, 200),
    "white": (240, 240, 240),
    "cyan": (60, 220, 230),
    "orange": (245, 140, 30),
}
FORMS = ("circle", "square", "triangle", "cross", "ring")
THINGS = [(colour, form) for colour in COLOURS for form in FORMS]
ALONE = "alone"
ARRANGEMENTS = ("left of", "above")  # one wording for a scene: "right of" too takes a small model far longer
TEMPLATES = ("{}", "a picture of {}", "a drawing of {}")

WAYS = 2 * len(ARRANGEMENTS)  # in which two things can stand; they follow each other among the scenes
HELD_OUT_PAIRS = 25
TIMES_ALONE = 8  # how often a thing alone is drawn, for each drawing of a scene
NUMBERS = 9  # that decide a drawing: the background; of each thing its place, its size and its shade
SHIFT, APART = 2.5, 8.0  # pixels: how far from its place a thing may be; the places from the middle
RADIUS = (4.5, 6.5)  # pixels
SHADE, BACKGROUND = 0.2, 50.0  # how much darker a colour may be; the lightest background


class Scene(NamedTuple):
    first: int  # a place in THINGS
    arrangement: str
    second: int | None = None


def name_of(thing: int) -> str:
    colour, form = THINGS[thing]
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {form}"


def caption(scene: Scene) -> str:
    first = name_of(scene.first)
    return first if scene.second is None else f"{first} {scene.arrangement} {name_of(scene.second)}"


def split_scenes(seed: int = 0) -> tuple[list[Scene], list[Scene], list[Scene]]:
    """Scenes to train on, held-out scenes, and held-out things alone. Nothing else decides them but the seed."""
    random = np.random.default_rng([seed, len(THINGS)])
    pairs = list(itertools.combinations(range(len(THINGS)), 2))
    order = random.permutation(len(pairs))
    held_out, seen = (
        [
            Scene(things[0], arrangement, things[1])
            for place in places
            for arrangement in ARRANGEMENTS
            for things in (pairs[place], pairs[place][::-1])
        ]
        for places in (order[:HELD_OUT_PAIRS], order[HELD_OUT_PAIRS:])
    )
    things = random.permutation(len(THINGS)).tolist()
    half = len(things) // 2
    alone, unseen = ([Scene(thing, ALONE) for thing in sorted(part)] for part in (things[:half], things[half:]))
    return seen + TIMES_ALONE * alone, held_out, unseen


# ---------------------------------------------------------------------------------------------------------------------
# Drawing

# Where a thing stands, from the middle, in units of APART: (right, down) of the first and of the second.
PLACES = {
    "left of": ((-1.0, 0.0), (1.0, 0.0)),
    "above": ((0.0, -1.0), (0.0, 1.0)),
    ALONE: ((0.0, 0.0), (0.0, 0.0)),
}


def outside(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """How far outside of each form a point is, in radii: (..., forms); u to the right, v down."""
    a, b, radius = u.abs(), v.abs(), (u.square() + v.square()).sqrt()
    bar, post = torch.maximum(a - 1, b - 0.36), torch.maximum(a - 0.36, b - 1)
    return torch.stack(
        [
            radius - 1,
            torch.maximum(a, b) - 0.86,
            torch.maximum(v - 0.75, 0.866 * a - 0.5 * v - 0.55),
            torch.minimum(bar, post),
            (radius - 0.78).abs() - 0.22,
        ],
        dim=-1,
    )


def draw(scenes: Sequence[Scene], numbers: torch.Tensor) -> torch.Tensor:
    """Scenes and, for each, NUMBERS numbers between 0 and 1 -> uint8 (n, 3, SIZE, SIZE)."""
    spread = 2 * numbers - 1
    grid = torch.arange(SIZE) + 0.5 - SIZE / 2
    image = numbers[:, 0, None, None, None].expand(-1, 3, SIZE, SIZE) * BACKGROUND
    for which in range(2):
        things = torch.tensor([scene[2 * which] if scene[2 * which] is not None else -1 for scene in scenes])
        right, down, size, shade = spread[:, 1 + 4 * which : 5 + 4 * which].unbind(1)
        places = APART * torch.tensor([PLACES[scene.arrangement][which] for scene in scenes])
        # a thing alone may be anywhere that a thing of a scene may be
        reach = SHIFT + APART * torch.tensor([scene.arrangement == ALONE for scene in scenes])
        radius = (sum(RADIUS) + size * (RADIUS[1] - RADIUS[0])) / 2
        u = (grid[None, None, :] - (places[:, 0] + reach * right)[:, None, None]) / radius[:, None, None]
        v = (grid[None, :, None] - (places[:, 1] + reach * down)[:, None, None]) / radius[:, None, None]
        u, v = torch.broadcast_tensors(u, v)
        forms = (things % len(FORMS))[:, None, None, None].expand(-1, SIZE, SIZE, 1)
        distance = outside(u, v).gather(-1, forms).squeeze(-1) * radius[:, None, None]
        cover = (0.5 - distance).clamp(0, 1) * (things >= 0)[:, None, None]
        colours = torch.tensor(list(COLOURS.values()), dtype=torch.float)[things.clamp(min=0) // len(FORMS)]
        colours = colours * (1 - SHADE * (shade + 1) / 2)[:, None]
        image = torch.lerp(image, colours[:, :, None, None], cover[:, None])
    return image.round().to(torch.uint8)


def fingerprint() -> str:
    """SHA-256 over one drawing of each scene, and its captions."""
    digest = hashlib.sha256()
    for scenes in split_scenes():
        numbers = torch.linspace(0, 1, len(scenes) * NUMBERS).view(len(scenes), NUMBERS)
        digest.update(draw(scenes, numbers).numpy().tobytes())
        digest.update("\n".join(caption(scene) for scene in scenes).encode())
    return digest.hexdigest()
