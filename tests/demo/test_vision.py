"""What the demo's vision tower learns from: each drawing's tokens are those within its square."""

import math

import pytest
import torch

from tools.demo import vision
from tools.demo.processor import build_processor
from tools.demo.scenes import draw_scene


def test_the_tokens_of_a_box_are_those_whose_middle_lies_within_it():
    # 2 x 4 tokens of 50 x 50 pixels; the box reaches over the middles at x = 75 and 125 of the lower row
    within = vision.tokens_within((60, 50, 130, 100), (200, 100), rows=2, columns=4)
    assert within.view(2, 4).tolist() == [[False] * 4, [False, True, True, False]]
    assert vision.tokens_within((0, 0, 200, 100), (200, 100), rows=2, columns=4).all()


@pytest.fixture(scope="module")
def items():
    drawings = vision.Drawings(build_processor().image_processor, 500, 24)
    return [drawings[i] for i in range(len(drawings))]


def test_every_drawing_has_tokens_of_its_own_and_a_subject(items):
    nums = set()
    for pixel_values, grid, within, labels in items:
        assert pixel_values.shape[0] == int(grid.prod()) == 4 * within.shape[1]
        assert within.any(dim=1).all() and (within.sum(dim=0) <= 1).all()
        assert len(labels) == len(within) and labels.min() >= 0 and labels.max() < len(vision.SUBJECTS) == 75
        nums.add(len(labels))
    assert nums == {1, 2, 3, 4}


def test_a_seed_fixes_the_picture_and_its_labels(items):
    again = vision.Drawings(build_processor().image_processor, 503, 1)[0]
    assert all(torch.equal(one, other) for one, other in zip(again, items[3]))


def test_the_labels_are_those_of_the_scene_in_the_order_of_its_boxes(monkeypatch):
    scenes = []
    monkeypatch.setattr(vision, "SINGLE_SHARE", 0.0)
    monkeypatch.setattr(
        vision, "draw_scene", lambda *args, **kwargs: scenes.append(draw_scene(*args, **kwargs)) or scenes[-1]
    )
    *_, within, labels = vision.Drawings(build_processor().image_processor, 7, 1)[0]
    (scene,) = scenes
    assert [vision.SUBJECTS[label] for label in labels] == [drawing.subject for drawing in scene.drawings]
    width, height = scene.picture.size
    shares = [(drawing.width**2) / (width * height) for drawing in scene.drawings]
    for count, share in zip(within.sum(dim=1).tolist(), shares):
        assert count / within.shape[1] == pytest.approx(share, abs=0.12)


class Visual(torch.nn.Module):
    """A token is the mean of its four patches times a weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, 1))

    def forward(self, pixel_values, grid_thw):
        return self.weight * pixel_values.view(-1, 4, 1).mean(dim=1)


PATCHES = torch.arange(16.0)[:, None]  # tokens of 1.5, 5.5, 9.5 and 13.5, the last two of another picture
BATCH = [
    (PATCHES[:8], torch.tensor([[1, 2, 4]]), torch.tensor([[True, False], [True, True]]), torch.tensor([0, 1])),
    (PATCHES[8:], torch.tensor([[1, 2, 4]]), torch.tensor([[False, True]]), torch.tensor([1])),
]


def test_the_tokens_of_a_drawing_are_those_of_its_square():
    tokens = vision.tokens_of_drawings(Visual(), BATCH)
    assert [part.flatten().tolist() for part in tokens] == [[1.5], [1.5, 5.5], [13.5]]


@pytest.mark.parametrize("each_token", [False, True])
def test_the_loss_is_that_of_the_means_and_of_the_mean_over_each_drawings_tokens(monkeypatch, each_token):
    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(2))

        def forward(self, tokens):
            return torch.cat([tokens, -tokens], dim=1) + self.bias

    def loss_of(value, label):  # of one token by hand: the logits are value and -value
        return math.log(1 + math.exp(-2 * value if label == 0 else 2 * value))

    losses = []
    monkeypatch.setattr(vision, "DataLoader", lambda *args, **kwargs: [BATCH])
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: losses.append(self.item()))
    vision.train(Visual(), Head(), None, first_seed=0, num=32, rate=0.0, each_token=each_token)
    expected = (loss_of(1.5, 0) + loss_of(3.5, 1) + loss_of(13.5, 1)) / 3
    if each_token:
        expected += (loss_of(1.5, 0) + (loss_of(1.5, 1) + loss_of(5.5, 1)) / 2 + loss_of(13.5, 1)) / 3
    assert losses == [pytest.approx(expected, rel=1e-5)]
