"""Where the pictures of a batch stand: pure functions of token ids, masks and grids."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


TEXT, IMAGE, VIDEO = 0, 1, 2  # the values of mm_token_type_ids


@dataclass(frozen=True)
class Picture:
    """A picture or video: its merged patches are the tokens `start` to `start + size` of prompt `row`."""

    row: int
    start: int
    size: int
    shape: tuple[int, ...]  # merged patches: (rows, columns), with the frames first for a video; (size,) if unknown


def find_token_types(input_ids, config):
    """`(batch_size, sequence_length)` ids -> the kind of each token: `TEXT`, `IMAGE` or `VIDEO`."""
    return input_ids.eq(config.image_token_id) * IMAGE + input_ids.eq(config.video_token_id) * VIDEO


def find_pictures(input_ids, attention_mask, inputs, config):
    """
    The pictures (`list[Picture]`) in the order of the prompts: a picture is a run of placeholders of one kind.

    `inputs` are pixels `(num_patches, ...)` and grids `(num_pictures, 3)` of stills, and the same of videos; or
    the number of features (`int`) that `generate` has encoded, of pictures that it found here before. A mask that has
    not the shape of `input_ids`, `(batch_size, sequence_length)`, is `generate`'s own. Raises a ValueError if pixels,
    grids and placeholders do not match one by one, or the mask hides placeholders.
    """
    token_types, merge = find_token_types(input_ids, config), config.vision_config.spatial_merge_size
    if isinstance(attention_mask, torch.Tensor) and attention_mask.shape == token_types.shape:
        if bool((attention_mask.eq(0) & token_types.gt(TEXT)).any()):
            raise ValueError("attention_mask is 0 on picture tokens, which would hide part of a picture")
    kinds = F.pad(token_types, (1, 1), value=TEXT)
    before, after = kinds[:, :-1], kinds[:, 1:]  # (batch_size, sequence_length + 1)
    starts = (before.ne(after) & after.ne(TEXT)).nonzero().tolist()
    ends = (before.ne(after) & before.ne(TEXT)).nonzero().tolist()
    runs = [(row, first, end - first, int(token_types[row, first])) for (row, first), (_, end) in zip(starts, ends)]
    if isinstance(inputs, int):
        if inputs != (placeholders := sum(size for _, _, size, _ in runs)):
            raise ValueError(f"{placeholders} placeholders of pictures, but {inputs} encoded features came for them")
        return [Picture(row, first, size, (size,)) for row, first, size, _ in runs]
    if attention_mask is None and len(input_ids) > 1:
        raise ValueError("a verdict on several prompts needs their attention_mask, which tells padding from prompts")
    shapes = {}
    for kind, name, pixels, grids in ((IMAGE, "image", *inputs[:2]), (VIDEO, "video", *inputs[2:])):
        grids = [] if grids is None else grids.tolist()
        patches, needed = 0 if pixels is None else len(pixels), sum(map(math.prod, grids))
        if patches != needed:
            raise ValueError(
                f"the {name}s' pixels hold {patches} patches, but {name}_grid_thw asks for {needed}: pass both uncut"
            )
        merged = [(t, h // merge, w // merge) for t, h, w in grids]
        expected, found = [*map(math.prod, merged)], [size for _, _, size, of in runs if of == kind]
        if expected != found:
            raise ValueError(
                f"{name}_grid_thw needs runs of {expected} placeholders <|{name}_pad|>, but the prompts hold {found}: "
                "give each picture its placeholders, unbroken and in the order of the pictures, as the processor does"
            )
        shapes[kind] = iter(merged if kind == VIDEO else [shape[1:] for shape in merged])
    return [Picture(row, first, size, next(shapes[kind])) for row, first, size, kind in runs]
