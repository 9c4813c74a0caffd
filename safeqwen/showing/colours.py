"""A heat map's numbers as colours over a picture: the one colour map, and the one rule for what is painted how much.

The colours are viridis (Smith, van der Walt and Firing, 2015; CC0). From violet to yellow its lightness grows evenly,
also for people who tell few colours apart, and in grey print.
"""

import numpy as np
from PIL import Image


# Red, green and blue at 17 equal steps. Straight lines between them stay within 6 of 255 of the original.
VIRIDIS = (
    (68, 1, 84),
    (72, 24, 106),
    (71, 45, 123),
    (66, 64, 134),
    (59, 82, 139),
    (51, 99, 141),
    (44, 114, 142),
    (38, 130, 142),
    (33, 145, 140),
    (31, 160, 136),
    (40, 174, 128),
    (63, 188, 115),
    (94, 201, 98),
    (132, 212, 75),
    (173, 220, 48),
    (216, 226, 25),
    (253, 231, 37),
)
WEAK = 0.25  # strength below which the paint grows thinner, to none at 0


def strength(values):
    """
    How strongly each patch is painted, from 0 (nothing) to 1.

    Only positive values are evidence for the category, and only what a patch has beyond their mean over all patches,
    an even share, tells it from the others: a map of equal values is 0 everywhere. The strongest patch is 1 if it has
    twice the even share or more, and less if it has less. All is weaker in proportion if the positive values add up to
    less than 1 (odds times 2.7): next to nothing speaks for the category then.

    `[[0, 3], [1, 0]]` -> `[[0, 1], [0, 0]]`: the even share is 1.

    Args:
        values (array of shape `(rows, columns)`): of a [`Heatmap`], in log-odds.

    Returns:
        `numpy.ndarray` of the same shape, float32.

    Raises:
        ValueError: if there are not two axes, or a value is NaN or infinite.
    """
    values = np.asarray(values, dtype=np.float32)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"a heat map has rows and columns, got values of shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("a heat map holds NaN or infinite values, which cannot be painted")
    positive = values.clip(min=0)
    even = positive.mean()
    beyond = (positive - even).clip(min=0)
    scale = max(beyond.max(), even)
    if scale <= 0:
        return np.zeros_like(values)
    return beyond / scale * min(1.0, positive.sum())


def upsample(values, width, height):
    """
    Returns a map (`numpy.ndarray` of shape `(height, width)`, float32) of `(rows, columns)` values that together cover
    a picture of so many pixels. A value stands at the middle of its patch; between the middles it is bilinear, beyond
    the outer ones it stays the same.
    """
    grid = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BILINEAR))


def colour(strengths):
    """Returns the colours (uint8, `(..., 3)`) of strengths in [0, 1]."""
    steps = np.linspace(0, 1, len(VIRIDIS))
    channels = [np.interp(strengths, steps, channel) for channel in zip(*VIRIDIS)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def overlay(image, values, opacity=0.5):
    """
    Returns a picture with a heat map over it (RGB `PIL.Image` of the picture's size), painted by `strength`.

    Args:
        image (`PIL.Image.Image`)
        values (array of shape `(rows, columns)`): of a [`Heatmap`].
        opacity (`float` in [0, 1]): of the paint where the map is strong. With 0 the picture stays as it is.

    Raises:
        ValueError: if opacity is out of range; as `strength`.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be in [0, 1], got {opacity!r}")
    strengths = upsample(strength(values), *image.size).clip(0, 1)
    mask = np.rint(255 * opacity * (strengths / WEAK).clip(max=1)).astype(np.uint8)
    return Image.composite(Image.fromarray(colour(strengths)), image.convert("RGB"), Image.fromarray(mask))
