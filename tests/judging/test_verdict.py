"""What "unsafe" means, on probabilities worked by hand."""

import pytest
import torch

from safeqwen.judging.verdict import unsafe_probability, worst_frame


PROBS = torch.tensor([[0.25, 0.50, 0.25], [0.125, 0.25, 0.625], [0.75, 0.125, 0.125]])


def test_unsafe_is_one_minus_safe_wherever_safe_stands():
    assert unsafe_probability(PROBS, ["safe", "a", "b"]).tolist() == [0.75, 0.875, 0.25]
    assert unsafe_probability(PROBS, ["a", "b", "safe"]).tolist() == [0.75, 0.375, 0.875]
    assert unsafe_probability(PROBS[0], ["a", "safe", "b"]) == 0.5


def test_without_a_category_safe_there_is_no_unsafe_probability():
    assert unsafe_probability(PROBS, ["a", "b", "c"]) is None


@pytest.mark.parametrize(
    ("categories", "worst"),
    [
        (["safe", "a", "b"], 1),  # p(safe) is 0.125
        (["a", "safe", "b"], 2),  # p(safe) is 0.125
        (["a", "b", "safe"], 2),  # p(safe) is 0.125, the highest of "a" too
        (["unsafe", "a", "b"], 2),  # 0.75 is the highest of all
    ],
)
def test_the_worst_frame_is_the_least_safe_or_the_most_certain(categories, worst):
    assert worst_frame(PROBS, categories) == worst
