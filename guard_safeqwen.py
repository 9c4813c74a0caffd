"""The Visual Guard Module (arXiv 2506.04704): pools picture tokens, scores them, and knows whether it was trained."""

import hashlib

import torch
from torch import nn

from .configuration_safeqwen import check_categories


GUARD = "img_safety_head"  # its name in the model and in checkpoints
DIGEST = "categories_digest"  # a buffer of the guard
IGNORED = -100  # no label


class SafetyHead(nn.Module):
    """
    An MLP. Two tensors say whether it may judge, and travel along when it is saved, cast, copied or sharded:

    - **the last bias** starts as zeros and moves with the first step of training: all zeros means untrained;
    - **`categories_digest`** (uint8, 32 bytes) is the sha256 of the category names that the columns were trained for.
      Zeros mean unknown, as in released weights: `from_pretrained` then takes the names of the config beside them.
    """

    def __init__(self, config):
        super().__init__()
        check_categories(config.safety_categories)  # those that `from_pretrained` was given were only set
        width = config.text_config.hidden_size
        widths = [width, *[int(width * config.safety_head_hidden_scale)] * config.safety_num_hidden_layers]
        hidden = [(nn.Linear(*pair), nn.GELU(), nn.Dropout(0.1)) for pair in zip(widths, widths[1:])]
        self.mlp = nn.Sequential(*sum(hidden, ()), nn.Linear(widths[-1], config.num_safety_categories))
        nn.init.zeros_(self.mlp[-1].bias)
        self.register_buffer(DIGEST, torch.zeros(32, dtype=torch.uint8))

    def forward(self, pooled, categories=None):
        """`(..., hidden_size)` features -> `(..., num_safety_categories)` float32 logits. In training it is sealed."""
        if self.training and categories is not None:
            self.seal(categories)
        return self.mlp(pooled.to(self.mlp[-1].bias.dtype)).float()  # half-precision logits lose small probabilities

    def refusal(self, categories):
        """Why these weights cannot judge by these names (`str`), or `None` if they can."""
        if not self._is_trained():
            return "the guard img_safety_head was never trained: load SafeQwen weights, or train it with safety_labels"
        if self.categories_digest.any() and not torch.equal(self.categories_digest.cpu(), _digest(categories)):
            return (
                f"the guard img_safety_head was trained for other categories, or in another order, than {categories}: "
                "correct the config, or load with ignore_mismatched_sizes=True to start a new guard and train it"
            )
        return None

    def seal(self, categories):
        """Writes down what the columns mean: these names. Raises a ValueError if they were trained for others."""
        if self._is_trained() and (reason := self.refusal(categories)):
            raise ValueError(f"cannot go on training: {reason}")
        self.categories_digest.copy_(_digest(categories))

    def declare(self, categories):
        """Seals the guard as trained for these names, whatever it was trained for."""
        if not self._is_trained():
            self.mlp[-1].bias.data.add_(1e-4)  # the same for all columns: no probability moves
        self.categories_digest.copy_(_digest(categories))

    def start_anew(self, std):
        """Draws the last layer anew: the guard is untrained, and may learn any categories."""
        nn.init.normal_(self.mlp[-1].weight, std=std)
        nn.init.zeros_(self.mlp[-1].bias)
        self.categories_digest.zero_()

    @torch.no_grad()
    def _is_trained(self):
        last = self.mlp[-1]
        # Not last.bias: weights that are offloaded or sharded come to their place when their layer is called.
        zeros = torch.zeros(1, last.in_features, dtype=last.bias.dtype, device=self.categories_digest.device)
        return bool(last(zeros).any())


def _digest(categories):
    return torch.tensor([*hashlib.sha256("\0".join(categories).encode()).digest()], dtype=torch.uint8)


def pool(hidden_states, pictures, granularity="prompt"):
    """
    `(batch_size, sequence_length, hidden_size)` states and their `list[Picture]` -> `(prompts with a picture,
    hidden_size)`, or by "image" `(num_pictures, hidden_size)`, or by "patch" the `(picture tokens, hidden_size)`:
    float32 means, since a sum of a thousand fp16 tokens loses the tail.
    """
    if not pictures:
        return hidden_states[:, :0].flatten(0, 1).float()  # no rows, but with a gradient, which DDP wants
    tokens = [hidden_states[p.row, p.start : p.start + p.size].float() for p in pictures]
    if granularity == "patch":
        return torch.cat(tokens)
    if granularity == "prompt":
        rows = sorted({p.row for p in pictures})
        tokens = [torch.cat([t for t, p in zip(tokens, pictures) if p.row == row]) for row in rows]
    return torch.stack([part.mean(dim=0) for part in tokens])


def arrange(rows, pictures, batch_size, granularity="prompt"):
    """What was made of `pool`'s rows, in the shape that `guard` documents."""
    if granularity == "patch":
        return [part.unflatten(0, p.shape) for part, p in zip(rows.split([p.size for p in pictures]), pictures)]
    if granularity == "image":
        return rows
    whole = rows.new_full((batch_size, rows.shape[1]), float("nan"))
    whole[sorted({p.row for p in pictures})] = rows
    return whole


def check_labels(safety_labels, picture_categories, pictures, batch_size, config):
    """Raises a ValueError unless each prompt or picture has the integer of a category, or -100 for none."""
    known = f"{config.num_safety_categories} categories (0-{config.num_safety_categories - 1}, or -100 for none)"
    for name, labels, size, labelled in (
        ("safety_labels", safety_labels, batch_size, {picture.row for picture in pictures}),
        ("picture_categories", picture_categories, len(pictures), range(len(pictures))),
    ):
        if labels is None:
            continue
        kind = f"{getattr(labels, 'dtype', type(labels).__name__)} of shape {tuple(getattr(labels, 'shape', ()))}"
        if kind not in (f"torch.int64 of shape ({size},)", f"torch.int32 of shape ({size},)"):
            raise ValueError(f"{name} must be a tensor of integers (torch.long) of shape ({size},), got {kind}")
        if wrong := {*labels.tolist()} - {IGNORED, *range(config.num_safety_categories)}:
            raise ValueError(f"{name} holds {max(wrong)}, but the config has {known}: label by the names it lists")
        if bare := [number for number in labels.ne(IGNORED).nonzero().flatten().tolist() if number not in labelled]:
            raise ValueError(f"{name} name a category, but prompts {bare} hold no picture: use -100 for them")
