"""A guard becomes one by training: it judges after the first step that moves it, and not before."""

import pytest
import torch
from tiny import INPUTS, ROUTES, assert_refuses, load_plainly, verdict


UNTRAINED = "guard .* never trained"
LABELS = torch.tensor([3, 7])


@pytest.fixture
def untrained(tmp_path, stock):
    """A model whose backbone was loaded and whose guard is random."""
    stock.save_pretrained(tmp_path / "plain")
    return load_plainly(tmp_path / "plain")


def train_a_step(model, **losses):
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=1e-3)
    model(**INPUTS, **losses).loss.backward()
    optimizer.step()


def test_an_untrained_guard_trains_and_then_judges(tmp_path, untrained):
    model, asked = untrained, {"safety_labels": LABELS, "picture_categories": LABELS}
    before = model(**INPUTS, **asked)  # an evaluation before training
    assert before.safety_loss > 0 and before.img_safety_logits is None and before.img_safety_probs is None
    assert before.picture_safety_logits is None
    model.train()
    optimizer = torch.optim.AdamW(model.img_safety_head.parameters(), lr=1e-2)
    for step in range(40):
        output = model(**INPUTS, do_safety=True, **asked)
        # For the metrics of the training loop.
        assert output.img_safety_logits is not None and output.picture_safety_logits is not None
        assert (output.img_safety_probs is None) == (step == 0)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert verdict(model).argmax(-1).tolist() == [3, 7]
    model.save_pretrained(tmp_path / "trained")
    assert torch.equal(verdict(ROUTES["AutoModel"](tmp_path / "trained", dtype=torch.float32)), verdict(model))


def test_training_the_language_model_alone_does_not_make_a_guard(untrained):
    train_a_step(untrained, labels=INPUTS["input_ids"])
    train_a_step(untrained, labels=INPUTS["input_ids"], safety_labels=torch.tensor([-100, -100]))
    untrained.img_safety_head.requires_grad_(False)
    train_a_step(untrained, safety_labels=LABELS)  # the frozen guard stays random
    assert_refuses(untrained.eval(), UNTRAINED)


def test_training_all_but_the_last_layer_does_not_make_a_guard(untrained):
    untrained.img_safety_head.mlp[-1].requires_grad_(False)
    train_a_step(untrained, safety_labels=LABELS)
    assert_refuses(untrained.eval(), UNTRAINED)


def test_a_gradient_without_a_step_does_not_make_a_guard(untrained):
    untrained.train()(**INPUTS, safety_labels=LABELS).loss.backward()
    assert_refuses(untrained.eval(), UNTRAINED)


def test_labels_of_pictures_alone_make_a_guard(untrained):
    train_a_step(untrained, safety_labels=torch.tensor([-100, -100]), picture_categories=LABELS)
    assert verdict(untrained.eval()).isfinite().all()
