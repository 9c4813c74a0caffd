"""The guard alone, on features that are computed once."""

import json

import pytest
import torch
import yaml
from small_runs import (
    NAMES,
    arguments,
    assert_same_weights,
    build_trainer,
    weights,
    write_rows,
)

from safeqwen import DEMO_CHECKPOINT
from safeqwen.hub.guard_safeqwen import GUARD
from safeqwen.loading import load_base
from safeqwen.training.run import train


def test_the_guard_alone_refuses_labels_of_pictures(tmp_path, pairs):
    with pytest.raises(ValueError, match="data has picture_categories, which guard_only cannot learn"):
        train(arguments(pairs, tmp_path / "run", tuning="guard_only"))


def test_the_guard_alone_learns_a_new_taxonomy_from_features_that_are_computed_once(tmp_path, rows, monkeypatch):
    names = ["nothing", "arms", "despair", "advice"]
    aliases = [{"name": name, "aliases": [old]} for name, old in zip(names, NAMES)]
    (tmp_path / "categories.yaml").write_text(yaml.safe_dump(aliases))
    settings = {
        **{"tuning": "guard_only", "categories": [str(tmp_path / "categories.yaml")], "max_steps": 150},
        **{"guard_learning_rate": 1e-3, "eval_data": [str(rows["eval"])], "global_batch_size": 14},
    }
    metrics = train(arguments(rows, tmp_path / "first", **settings))
    assert metrics["eval_guard_accuracy"] == 1.0  # the demo tells these apart already
    assert len(list((tmp_path / "feature_cache").iterdir())) == 2

    head = weights(tmp_path / "first")
    assert {name: tuple(tensor.shape) for name, tensor in head.items()} == {
        f"{GUARD}.mlp.0.weight": (96, 192),
        f"{GUARD}.mlp.0.bias": (96,),
        f"{GUARD}.categories_digest": (32,),
        f"{GUARD}.mlp.3.weight": (4, 96),
        f"{GUARD}.mlp.3.bias": (4,),
    }
    model = load_base(DEMO_CHECKPOINT, safety_categories=names, dtype=torch.float32)
    model.load_state_dict(head, strict=False)
    trainer = build_trainer(rows, tmp_path / "unused", lora=False)
    picture = trainer.data_collator(trainer.train_dataset.examples[:1])
    verdict = model.guard(**{name: value for name, value in picture.items() if "labels" not in name})
    assert verdict.img_safety_probs[0].argmax() == 0

    def fail(*args, **kwargs):
        raise AssertionError("computed the features again")

    monkeypatch.setattr(type(model), "picture_states", fail)
    train(arguments(rows, tmp_path / "second", **settings))
    assert_same_weights(tmp_path / "first", tmp_path / "second")
    train(arguments(rows, tmp_path / "other_guard", seed=1, **settings))  # starts from another one: the same features
    model.model.language_model.norm.weight.data[0] += 1
    model.save_pretrained(tmp_path / "other_model")
    other_model = {"model": str(tmp_path / "other_model"), "processor": "demo"}
    for i, change in enumerate(({"min_pixels": 20000, "max_pixels": 30000}, {"max_length": 1000}, other_model)):
        with pytest.raises(AssertionError, match="again"):
            train(arguments(rows, tmp_path / f"other{i}", **{**settings, **change}))


def test_the_guard_alone_needs_verdict_labels(tmp_path, rows):
    unlabelled = write_rows(tmp_path / "unlabelled", 4, 0, safety_label=None)
    lines = [json.loads(line) for line in unlabelled.read_text().splitlines()]
    unlabelled.write_text("".join(json.dumps(line) + "\n" for line in lines if len(line["messages"]) == 2))
    with pytest.raises(ValueError, match="no row has one; add safety_label"):
        train(arguments({"data": unlabelled}, tmp_path / "run", tuning="guard_only"))
