"""Figures of a run, as PNG: curves, confusions, images and patches, attention, positions, surprise.

A function that writes a figure takes plain data or a model, and a path, and returns the path. The function named
`draw_...` beside it makes the figure; what it draws is computed by a function without matplotlib. Each kind of figure
has its file, and their one look is `style.py`.
"""

from triune.training.figures.attention import attention_rollout, attention_rollout_text
from triune.training.figures.confusion import confusion_matrix
from triune.training.figures.images import image_grid, patch_grid
from triune.training.figures.positions import position_similarity
from triune.training.figures.style import MISSING, available, shorten
from triune.training.figures.surprise import surprisal
from triune.training.figures.training_curves import curves, learning_rate_and_throughput
