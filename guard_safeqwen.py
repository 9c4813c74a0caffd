"""The Visual Guard Module (arXiv 2506.04704): pools picture tokens, scores them, and knows whether it was trained."""

import hashlib

import torch
from torch import nn


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
        width = config.text_config.hidden_size
        hidden = int(width * config.safety_head_hidden_scale)
        layers = []
        for _ in range(config.safety_num_hidden_layers):
            layers += [nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.1)]
            width = hidden
        self.mlp = nn.Sequential(*layers, nn.Linear(width, config.num_safety_categories))
        nn.init.zeros_(self.mlp[-1].bias)
        self.register_buffer(DIGEST, torch.zeros(32, dtype=torch.uint8))

    def forward(self, pooled, categories=None):
        """`(..., hidden_size)` features -> `(..., num_safety_categories)` float32 logits; seals with `categories`."""
        if categories is not None:
            self.seal(categories)
        return self.mlp(pooled.to(self.mlp[0].weight.dtype)).float()  # half-precision logits lose small probabilities

    def seal(self, categories):
        """Writes down what the columns mean: the names that they are trained for (ValueError if for others before)."""
        if self._digest() not in _digests(categories):
            trained, known = self._is_trained(), any(self._digest())
            if self.training and trained and known:
                raise ValueError(f"cannot go on training: {self.refusal(categories)}")
            if self.training or trained and not known:
                self._set_digest(_digests(categories)[0])

    def refusal(self, categories):
        """Why these weights cannot judge by these names (`str`), or `None` if they can."""
        digest, (names, declared) = self._digest(), _digests(categories)
        if digest == declared:
            return None
        if not self._is_trained():
            return "img_safety_head was never trained; load a SafeQwen checkpoint, or train it with safety_labels"
        if any(digest) and digest != names:
            return (
                f"img_safety_head was trained for other categories, or in another order, than {categories}; correct "
                "the config, or load with ignore_mismatched_sizes=True to start a new guard, which then needs training"
            )
        return None

    def declare(self, categories):
        """Seals the guard as trained for these names, even with a last bias of zeros."""
        self._set_digest(_digests(categories)[1])

    @torch.no_grad()
    def start_anew(self, std):
        """Draws the last layer anew: the guard is untrained, and may learn any categories."""
        nn.init.normal_(self.mlp[-1].weight, std=std)
        nn.init.zeros_(self.mlp[-1].bias)
        self._set_digest(bytes(32))

    @torch.no_grad()
    def _is_trained(self):
        last = self.mlp[-1]
        # Not last.bias: weights that are offloaded or sharded come to their place when their layer is called.
        zeros = torch.zeros(1, last.in_features, dtype=self.mlp[0].weight.dtype, device=self.categories_digest.device)
        return bool(last(zeros).any())

    def _digest(self):
        return bytes(self.categories_digest.tolist())

    def _set_digest(self, digest):
        self.categories_digest.copy_(torch.tensor(list(digest), dtype=torch.uint8))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if f"{prefix}mlp.{len(self.mlp) - 1}.bias" in state_dict:  # a guard that was saved without a digest
            state_dict.setdefault(prefix + DIGEST, torch.zeros_like(self.categories_digest))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _digests(categories):
    """The digests (`tuple[bytes, bytes]`) of names that were trained, and of names that were declared."""
    names = "\0".join(categories).encode()
    return hashlib.sha256(names).digest(), hashlib.sha256(b"declared\0" + names).digest()


def pool(hidden_states, pictures, granularity="prompt"):
    """
    What the guard scores: float32 means, since a sum of a thousand fp16 tokens loses the tail.

    `(batch_size, sequence_length, hidden_size)` states and their `list[Picture]` -> `(prompts with a picture,
    hidden_size)`, or by "image" `(num_pictures, hidden_size)`, or by "patch" the `(picture tokens, hidden_size)`.
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
    return whole.index_copy(0, torch.tensor(sorted({p.row for p in pictures}), device=rows.device, dtype=int), rows)


def check_labels(name, labels, num_expected, num_categories):
    """Raises a ValueError unless `labels` are `(num_expected,)` integers in [0, num_categories), or -100 for none."""
    kind = f"{getattr(labels, 'dtype', type(labels).__name__)} of shape {tuple(getattr(labels, 'shape', ()))}"
    if kind not in {f"torch.int{bits} of shape ({num_expected},)" for bits in (32, 64)}:
        raise ValueError(f"{name} must be a tensor of integers (torch.long) of shape ({num_expected},), got {kind}")
    if wrong := [label for label in labels.tolist() if label != IGNORED and not 0 <= label < num_categories]:
        raise ValueError(
            f"{name} holds {wrong[0]}, but the config has {num_categories} categories (0-{num_categories - 1}, or "
            "-100 for none); was the data labelled with another taxonomy?"
        )
