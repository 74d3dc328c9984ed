"""Positions: what a model makes of them, by their kind: maps of similarity, or lines by distance.

The maps of images are those of figure 7 of ViT, https://arxiv.org/abs/2010.11929.
"""

import math
from pathlib import Path

import numpy as np
import torch

from triune.training.figures.observing import observed
from triune.training.figures.style import (
    BLUE,
    HEADING,
    ORANGE,
    PALETTE,
    WIDTH,
    array,
    colour_bar,
    label_ends,
    new_figure,
    panel,
    save,
    shades,
    sheet,
)


MOST_POSITIONS = 256  # that are compared
MOST_LABELS = 12  # beside an axis


# ---------------------------------------------------------------------------------------------------------------------
# What a model knows of positions


def cosine_similarity(vectors: torch.Tensor) -> np.ndarray:
    vectors = torch.nn.functional.normalize(vectors.double(), dim=-1)
    return (vectors @ vectors.T).numpy()


def addend_similarity(model) -> np.ndarray | None:
    """Of what is added to the embeddings: (positions, positions); for images the patches only."""
    backbone, config = model.base_model, model.config
    text = config.embedding["type"] == "tokens"
    count = min(config.num_positions, MOST_POSITIONS) if text else math.prod(config.grid)
    x = torch.zeros(1, count, config.hidden_size, device=model.device)
    places = backbone.embeddings.places(x, torch.arange(count, device=model.device)[None])
    addend = backbone.positions.addend(x, places, None if text else config.grid)
    if not torch.is_tensor(addend):
        return None
    return cosine_similarity(addend.reshape(-1, config.hidden_size)[-count:].detach().float().cpu())


def rotation_similarity(model) -> dict[str, np.ndarray]:
    """Of two equal vectors, each turned by its position, by their distance; averaged over their directions this is
    that of a vector of ones. For each kind of layer."""
    backbone, config = model.base_model, model.config
    count = min(config.num_positions, MOST_POSITIONS)
    x = torch.zeros(1, count, config.hidden_size, device=model.device)
    similarity = {}
    for kind in dict.fromkeys(config.layer_types):
        rotation = backbone.positions.rotation(x, torch.arange(count, device=model.device)[None], kind)
        if rotation:
            ones = torch.ones(1, 1, count, config.head_dim, device=model.device)
            turned, _ = backbone.positions.rotate(ones, ones, *rotation)
            similarity[kind.replace("_", " ")] = cosine_similarity(turned[0, 0].float().cpu())[0]
    return similarity


def relative_bias(model) -> np.ndarray | None:
    """What each head adds to the score of a key, by its distance from the query: (heads, distances), 0 in the middle
    or, for causal attention, at the end."""
    config = model.config
    count = min(config.num_positions, MOST_POSITIONS // 2)
    x = torch.zeros(1, count, config.hidden_size, device=model.device)
    bias = model.base_model.positions.bias(x, None, 0)
    if bias is None:
        return None
    bias = array(bias[0])  # (heads, queries, keys)
    behind, ahead = bias[:, -1], bias[:, 0, 1:]
    return behind if config.attention["type"] == "causal" else np.concatenate([behind, ahead], axis=1)


# ---------------------------------------------------------------------------------------------------------------------
# Maps of similarity


def grid_of_grids(similarity: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """For each patch a map of all patches, set where the patch stands; a line of nothing between the maps."""
    rows, columns = grid
    maps = np.pad(
        similarity.reshape(rows, columns, rows, columns), ((0, 0),) * 2 + ((0, 1),) * 2, constant_values=math.nan
    )
    return maps.transpose(0, 2, 1, 3).reshape(rows * (rows + 1), columns * (columns + 1))[:-1, :-1]


def draw_similarity(similarity: np.ndarray, grid: tuple[int, int] | None):
    if grid:
        shown, title = grid_of_grids(similarity, grid), "Position embeddings: where each patch sees its like"
        note = "one map for each patch, set where it stands: cosine similarity of its position with all others"
    else:
        shown, title = similarity, f"Position embeddings: cosine similarity of positions 0 to {len(similarity) - 1}"
        note = "near positions should be alike; rows that were never trained look like noise"
    height, width = shown.shape
    side = 5.6
    wide, high = side * width / max(width, height), side * height / max(width, height)
    figure = new_figure(WIDTH, HEADING + high + 0.75, title, note)
    axes = panel(figure, (WIDTH - wide) / 2, HEADING, wide, high)
    others = similarity[~np.eye(len(similarity), dtype=bool)]
    highest = float(max(np.quantile(np.abs(others), 0.99), 0.2)) if len(others) else 1.0
    lowest = float(others.min(initial=1.0))
    opposites = lowest < 0  # sinusoids have none
    lowest, colours = (-highest, shades(ORANGE, "white", BLUE)) if opposites else (lowest, shades("white", BLUE))
    axes.imshow(shown, cmap=colours, vmin=lowest, vmax=highest, interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if grid:
        axes.set_xticks((grid[1] + 1) * np.arange(grid[1]) + grid[1] / 2 - 0.5, range(1, grid[1] + 1))
        axes.set_yticks((grid[0] + 1) * np.arange(grid[0]) + grid[0] / 2 - 0.5, range(1, grid[0] + 1))
    page = sheet(figure)
    ends = f"{lowest:.2g}".replace("-", "−"), f"{highest:.2g} and more"
    colour_bar(page, WIDTH / 2 - 0.7, figure.get_size_inches()[1] - 0.3, colours, ends, "cosine")
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# By distance


def draw_by_distance(distances: np.ndarray, lines: dict[str, np.ndarray], title: str, note: str):
    figure = new_figure(WIDTH, 4.6, title, note)
    axes = panel(figure, 0.75, 0.9, 5.4, 3.15, xlabel="distance, in tokens")
    labels = []
    for index, (name, values) in enumerate(lines.items()):
        colour = PALETTE[index % len(PALETTE)]
        axes.plot(distances, values, color=colour, linewidth=1.6, label=name)
        labels.append((values[-1], name, colour))
    axes.set_xlim(distances[0], distances[-1])
    axes.set_ylim(axes.get_ylim())
    label_ends(axes, labels[:MOST_LABELS])
    return figure


def draw_rotation_similarity(lines: dict[str, np.ndarray]):
    distances = np.arange(len(next(iter(lines.values()))))
    note = "two equal vectors, turned by rotary positions: cosine similarity, mean over their directions"
    return draw_by_distance(distances, lines, "Rotary positions: what distance does to a match", note)


def draw_relative_bias(bias: np.ndarray, causal: bool):
    count = bias.shape[1] if causal else (bias.shape[1] + 1) // 2
    distances = np.arange(bias.shape[1]) - (count - 1)
    note = "added to the score of a key; negative distances: keys before the query"
    heads = {f"head {index + 1}": values for index, values in enumerate(bias)}
    figure = draw_by_distance(distances, heads, "Relative positions: what each head makes of distance", note)
    ticks = np.array([-64, -16, -4, 0, 4, 16, 64])
    inside = (ticks >= distances[0]) & (ticks <= distances[-1])  # one outside would stretch the axis
    figure.axes[0].set_xscale("symlog", linthresh=4)  # as the buckets are: one each for near keys
    figure.axes[0].set_xticks(ticks[inside])
    figure.axes[0].xaxis.set_major_formatter(lambda value, _: f"{value:+.0f}" if value else "0")
    figure.axes[0].minorticks_off()
    return figure


def position_similarity(model, path: str | Path) -> Path | None:
    """What the model makes of positions, by their kind; nothing for a model that has none."""
    config = model.config
    with observed(model):
        similarity, turned, bias = addend_similarity(model), rotation_similarity(model), relative_bias(model)
    if similarity is not None:
        return save(path, draw_similarity, similarity, None if config.embedding["type"] == "tokens" else config.grid)
    if turned:
        return save(path, draw_rotation_similarity, turned)
    return None if bias is None else save(path, draw_relative_bias, bias, config.attention["type"] == "causal")
