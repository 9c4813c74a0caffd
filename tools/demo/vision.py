"""The first stage of the demo checkpoint: a vision tower learns to see drawings, each where it is.

Every picture is drawn when its turn comes, and none twice: two in five are single drawings, the others are scenes of
two to four, with harms or without. A small head, which is thrown away, tells the 75 subjects apart by the mean of the
vision tower's tokens within a drawing's square, and in a second pass by each of these tokens. So each drawing teaches
by itself, and the tower learns to keep apart what stands side by side. A verdict of the whole picture is a far weaker
teacher: with it and as many pictures 77 % of verdicts on scenes were right, and 85 % of those in the unseen style.

Without the second pass a head that was trained on single tokens told 19 % of them apart, on their means 97 %. The text
tower, which reads tokens, would have to learn the mean over a drawing first.
"""

import math
import random
import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tools.demo.muon import Muon, SeveralOptimizers, is_muons
from tools.demo.pictograms import PICTOGRAMS, draw, subject
from tools.demo.scenes import HARMS, draw_scene


SUBJECTS = [name for category in PICTOGRAMS for name in PICTOGRAMS[category]]
BATCH_SIZE = 32
SIDES = (112, 168, 224, 336)  # of single drawings, in pixels; all are seen at 224
SINGLE_SHARE, SAFE_SHARE = 0.4, 0.25  # of the pictures, and of the single drawings
NUMS = (2, 3, 4, 4)  # of drawings in a scene
LEAST_SEEN = 84  # smaller drawings than are asked about
WARMUP_STEPS, LAST_RATE = 50, 0.02  # the last as a share of the highest


class Drawings(Dataset):
    """Pictures, and for each drawing on them its tokens and its subject.

    Args:
        image_processor ([`Qwen2VLImageProcessor`])
        first_seed, num (`int`): the first picture's seed, the others follow it.
    """

    def __init__(self, image_processor, first_seed, num):
        self.image_processor, self.first_seed, self.num = image_processor, first_seed, num

    def __len__(self):
        return self.num

    def __getitem__(self, index):
        seed = self.first_seed + index
        rng = random.Random(f"dense-{seed}")
        style = rng.choice((None, None, "outline"))
        if rng.random() < SINGLE_SHARE:
            category = rng.choice(HARMS) if rng.random() < 1 - SAFE_SHARE else "safe"
            picture = draw(category, seed, size=rng.choice(SIDES), line_style=style, by_hand=True)
            drawings = [((0, 0, *picture.size), subject(category, seed))]
        else:
            category, num = rng.choice(HARMS), rng.choice(NUMS)
            scene = draw_scene(category, seed, num, least_seen=LEAST_SEEN, line_style=style, by_hand=True)
            picture, drawings = scene.picture, [(drawing.box, drawing.subject) for drawing in scene.drawings]
        inputs = self.image_processor([picture], return_tensors="pt")
        rows, columns = (inputs["image_grid_thw"][0, 1:] // 2).tolist()
        within = torch.stack([tokens_within(box, picture.size, rows, columns) for box, _ in drawings])
        labels = torch.tensor([SUBJECTS.index(name) for _, name in drawings])
        return inputs["pixel_values"], inputs["image_grid_thw"], within, labels


def tokens_within(box, size, rows, columns):
    """`(rows * columns,)`, bool: the tokens whose middle lies within a box of a picture of `size`, both in pixels."""
    left, top, right, bottom = box
    ys = (torch.arange(rows) + 0.5) * size[1] / rows
    xs = (torch.arange(columns) + 0.5) * size[0] / columns
    return (((ys >= top) & (ys <= bottom))[:, None] & ((xs >= left) & (xs <= right))).flatten()


def tokens_of_drawings(visual, batch):
    """The tokens of each drawing of a list of `Drawings`' items, a list of `(tokens, hidden)`."""
    pixel_values, grids = torch.cat([item[0] for item in batch]), torch.cat([item[1] for item in batch])
    output = visual(pixel_values, grid_thw=grids)
    # transformers 5 returns an output of several fields, 4.57 the merged tokens alone
    tokens = output if torch.is_tensor(output) else output.pooler_output
    parts = tokens.split([item[2].shape[1] for item in batch])
    return [part[within] for part, item in zip(parts, batch) for within in item[2]]


def build_head(hidden_size):
    """What tells the subjects apart by a token, or by the mean of several."""
    return nn.Sequential(
        nn.LayerNorm(hidden_size),
        nn.Linear(hidden_size, hidden_size),
        nn.GELU(),
        nn.Linear(hidden_size, len(SUBJECTS)),
    )


def train(visual, head, image_processor, first_seed, num, rate, each_token):
    """Teaches `visual` and `head` in place, one pass over `num` pictures in batches of 32.

    Args:
        rate (`float`): of Muon at its highest; AdamW's is a twentieth of it.
        each_token (`bool`): whether each token of a drawing is to tell its subject, beside their mean.
    """
    named = list(visual.named_parameters())
    matrices = [parameter for name, parameter in named if is_muons(name, parameter)]
    rest = [parameter for name, parameter in named if not is_muons(name, parameter)]
    adamw = torch.optim.AdamW([*rest, *head.parameters()], lr=rate / 20, betas=(0.9, 0.98), weight_decay=0.05)
    optimizer = SeveralOptimizers([Muon(matrices, lr=rate, weight_decay=0.05), adamw])
    num_steps = num // BATCH_SIZE

    def share_of_rate(step):
        cosine = (1 + math.cos(math.pi * step / num_steps)) / 2
        return min(1, (step + 1) / WARMUP_STEPS) * (LAST_RATE + (1 - LAST_RATE) * cosine)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_rate)
    drawings = Drawings(image_processor, first_seed, num_steps * BATCH_SIZE)
    num_right = num_drawn = 0
    for step, batch in enumerate(
        DataLoader(drawings, BATCH_SIZE, num_workers=1, collate_fn=list, prefetch_factor=6), 1
    ):
        tokens, labels = tokens_of_drawings(visual, batch), torch.cat([item[3] for item in batch])
        logits = head(torch.stack([part.mean(0) for part in tokens]))
        loss = F.cross_entropy(logits, labels)
        if each_token:
            counts = torch.tensor([len(part) for part in tokens])
            losses = F.cross_entropy(head(torch.cat(tokens)), labels.repeat_interleave(counts), reduction="none")
            loss = loss + torch.stack([part.mean() for part in losses.split(counts.tolist())]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*visual.parameters(), *head.parameters()], 1.0)
        optimizer.step()
        schedule.step()
        num_right, num_drawn = num_right + int((logits.argmax(1) == labels).sum()), num_drawn + len(labels)
        if step % 50 == 0:
            print(f"step {step} of {num_steps}: {num_right / num_drawn:.1%} of {num_drawn} drawings", file=sys.stderr)
            num_right = num_drawn = 0
