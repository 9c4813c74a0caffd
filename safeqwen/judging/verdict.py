"""What "unsafe" means: the only place in the package that computes it from a guard's probabilities.

A picture's unsafe probability is 1 - p(safe). A picture of several frames is as unsafe as its least safe frame. A
taxonomy without a category "safe" has no unsafe probability.
"""

SAFE = "safe"  # the name of the category


def unsafe_probability(probs, categories):
    """`(..., categories)` probabilities -> `(...)` probabilities in [0, 1] that the picture is unsafe: 1 - p(safe).

    `None` if no category is named "safe".
    """
    if SAFE not in categories:
        return None
    return 1 - probs[..., categories.index(SAFE)]


def worst_frame(probs, categories):
    """`(frames, categories)` probabilities -> the index (`int`) of the least safe frame.

    Without a category "safe" it is the frame with the highest probability of any category.
    """
    unsafe = unsafe_probability(probs, categories)
    return int((probs.amax(dim=-1) if unsafe is None else unsafe).argmax())
