"""Both losses and both learning rates, worked out by hand; metrics and logs; what is drawn."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from sklearn.utils.class_weight import compute_class_weight
from small_runs import (
    arguments,
    assert_same_weights,
    build_trainer,
    weights,
)
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import Qwen2_5_VLForConditionalGeneration

from safeqwen import DEMO_CHECKPOINT
from safeqwen.data.rows import IGNORED
from safeqwen.hub.guard_safeqwen import GUARD
from safeqwen.training.checkpoints import last_checkpoint
from safeqwen.training.run import train
from safeqwen.training.trainer import WeightedSampler, class_weights, sample_weights


def test_guard_and_model_are_parameter_groups_of_their_own_and_norms_and_biases_do_not_decay(tmp_path, rows):
    trainer = build_trainer(rows, tmp_path, lora=False, weight_decay=0.1)
    trainer.model.model.visual.requires_grad_(False)
    names = {id(p): name for name, p in trainer.model.named_parameters() if not name.startswith("model.visual.")}
    groups = {}
    for group in trainer.create_optimizer().param_groups:
        groups[group["lr"], group["weight_decay"]] = {names[id(parameter)] for parameter in group["params"]}
    guard = {f"{GUARD}.mlp.{i}.{kind}" for i in (0, 3) for kind in ("weight", "bias")}
    assert groups[2e-3, 0.1] == {name for name in guard if name.endswith("weight")}
    assert groups[2e-3, 0.0] == {name for name in guard if name.endswith("bias")}
    assert groups[1e-3, 0.1] | groups[1e-3, 0.0] == set(names.values()) - guard
    kept = ("bias", "norm.weight", "layernorm.weight")
    assert groups[1e-3, 0.0] == {name for name in names.values() if name.endswith(kept)} - guard


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_the_mean_over_all_tokens_plus_the_mean_over_all_labelled_rows(tmp_path, rows, weighted):
    """By hand, from the logits of stock Qwen2.5-VL and the guard's algebra."""
    trainer = build_trainer(rows, tmp_path, lora=False)
    trainer.safety_loss_lambda = 0.5
    if weighted:
        trainer.class_weights = class_weights(trainer.train_dataset.labels, 20)
    batch = trainer.data_collator(trainer.train_dataset.examples[:8])
    model, num_logits = trainer.model.eval(), []
    model.lm_head.register_forward_hook(lambda module, args, logits: num_logits.append(logits.shape[1]))
    loss, sums = trainer.compute_loss(model, dict(batch), return_outputs=True)
    # None for the pictures: from the position before the first answered token to the last.
    assert num_logits == [batch["labels"].shape[1] - int(batch["labels"].ne(-100).any(dim=0).nonzero()[0]) + 1]

    stock = Qwen2_5_VLForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT, dtype=torch.float32).eval()
    inputs = {name: value for name, value in batch.items() if "labels" not in name}
    is_picture = batch["input_ids"] == model.config.image_token_id
    with torch.no_grad():
        output = stock(**inputs, mm_token_type_ids=is_picture.int(), output_hidden_states=True)
        pooled = torch.stack([row[mask].mean(0) for row, mask in zip(output.hidden_states[-1], is_picture)])
        scores = model.img_safety_head(pooled)
    logits, targets = output.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    lm_loss = F.cross_entropy(logits[targets != -100], targets[targets != -100])
    labels = batch["safety_labels"]
    safety_loss = F.cross_entropy(scores[labels != -100], labels[labels != -100], weight=trainer.class_weights)
    assert_close(loss, lm_loss + 0.5 * safety_loss, atol=1e-5, rtol=1e-5)
    assert sums.num_tokens.tolist()[3] == 0 and sums.label_weights.tolist()[2] == 0  # no answer; no verdict


def test_labels_of_pictures_count_as_much_as_labels_of_rows(tmp_path, pairs):
    """As forward has it, which test_forward works out by hand; over the step, and in the evaluation."""
    trainer = build_trainer(pairs, tmp_path, lora=False)
    model, examples = trainer.model.eval(), trainer.train_dataset.examples
    whole = trainer.data_collator(examples)
    assert whole["picture_categories"].ne(-100).sum() == 7 and len(whole["picture_categories"]) == 16
    rows = whole["picture_rows"]
    expected = model(**{name: tensor for name, tensor in whole.items() if name != "picture_rows"})
    sums = trainer._sums(model, whole)
    alone = trainer._sums(model, trainer.data_collator(examples[1:2]))
    assert sums.label_weights.tolist() == [
        int(label != -100) + int(whole["picture_categories"][rows == i].ne(-100).sum())
        for i, label in enumerate(whole["safety_labels"])
    ]
    assert_close(sums.safety_losses[1:2], alone.safety_losses, atol=1e-5, rtol=1e-5)
    assert_close(trainer.compute_loss(model, dict(whole)), expected.loss, atol=1e-5, rtol=1e-5)
    assert_close(trainer.evaluate(trainer.train_dataset)["eval_loss"], expected.loss.item(), atol=1e-5, rtol=1e-5)

    halves = [trainer.data_collator(examples[:4]), trainer.data_collator(examples[4:])]
    counts = trainer._get_num_items_in_batch(halves, "cpu")
    assert counts[1] == 6 + 7
    parts = [trainer.compute_loss(model, dict(half), num_items_in_batch=counts) for half in halves]
    assert_close(sum(parts), expected.loss, atol=1e-5, rtol=1e-5)

    trainer.class_weights = torch.linspace(0.5, 2, 20)
    scores = torch.cat([expected.img_safety_logits, expected.picture_safety_logits])
    labels = torch.cat([whole["safety_labels"], whole["picture_categories"]])
    by_torch = F.cross_entropy(scores, labels, weight=trainer.class_weights, ignore_index=-100)
    sums = trainer._sums(model, whole)
    assert_close(sums.safety_losses.sum() / sums.label_weights.sum(), by_torch, atol=1e-5, rtol=1e-5)
    assert_close(trainer._get_num_items_in_batch(halves, "cpu")[1], sums.label_weights.sum(), atol=1e-5, rtol=1e-5)


def test_balanced_class_weights_are_those_of_all_labels_of_rows_and_pictures(tmp_path, pairs):
    settings = {"learning_rate": 1e-12, "guard_learning_rate": 1e-12, "max_steps": 1, "class_weights": "balanced"}
    metrics = train(arguments(pairs, tmp_path / "run", eval_data=[str(pairs["eval"])], **settings))
    trainer = build_trainer(pairs, tmp_path / "unused", lora=False)
    batch = trainer.data_collator(trainer.train_dataset.examples)
    del batch["picture_rows"]
    with torch.no_grad():
        output = trainer.model.eval()(**batch)
    labels = torch.cat([batch["safety_labels"], batch["picture_categories"]])
    known = labels[labels != -100].numpy()
    weights = torch.ones(20)
    weights[np.unique(known)] = torch.tensor(
        compute_class_weight("balanced", classes=np.unique(known), y=known), dtype=torch.float32
    )
    assert len(weights.unique()) > 2  # they matter
    scores = torch.cat([output.img_safety_logits, output.picture_safety_logits])
    expected = F.cross_entropy(scores, labels, weight=weights)
    assert_close(metrics["eval_safety_loss"], expected.item(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tuning", ["lora", "guard_only"])
def test_the_same_batch_cut_into_other_pieces_gives_the_same_weights(tmp_path, rows, tuning):
    settings = {"tuning": tuning, "optim": "sgd", "learning_rate": 0.05, "guard_learning_rate": 0.05}
    for size in (1, 2, 4):
        pieces = {"per_device_train_batch_size": size, "guard_dropout": 0.0, "gradient_checkpointing": size == 1}
        train(arguments(rows, tmp_path / str(size), **pieces, **settings))
    assert_same_weights(tmp_path / "1", tmp_path / "4", tolerance=2e-6)
    assert_same_weights(tmp_path / "2", tmp_path / "4", tolerance=2e-6)
    if tuning == "lora":
        moved = weights(tmp_path / "4")["base_model.model.model.language_model.layers.0.mlp.up_proj.lora_B.weight"]
        assert moved.abs().max() > 1e-4


def test_rows_without_a_label_leave_the_guard_and_rows_without_an_answer_the_language_models_own_loss(tmp_path, rows):
    trainer = build_trainer(rows, tmp_path, lora=False)
    examples = trainer.train_dataset.examples
    for example, guard_learns, speaker_learns in ((examples[2], False, True), (examples[3], True, False)):
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, trainer.data_collator([example])).backward()
        assert bool(trainer.model.img_safety_head.mlp[3].weight.grad.any()) == guard_learns
        sums = trainer._sums(trainer.model, trainer.data_collator([example]))
        assert bool(sums.lm_losses.any()) == speaker_learns


def test_metrics_are_scikit_learns_and_do_not_depend_on_the_batches(tmp_path, rows):
    trainer = build_trainer(rows, tmp_path, lora=False)
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(50, 6)).astype(np.float32)
    labels = generator.integers(-1, 4, size=50)
    labels[labels < 0] = -100
    numbers = np.abs(generator.normal(size=(50, 4))).astype(np.float32)

    class Predictions:
        predictions, label_ids = np.concatenate([logits, numbers], axis=1), labels

    metrics = trainer._metrics(Predictions)
    judged = labels >= 0
    said = logits[judged].argmax(axis=1)
    assert_close(metrics["guard_accuracy"], accuracy_score(labels[judged], said))
    assert_close(metrics["guard_macro_f1"], f1_score(labels[judged], said, average="macro"))
    assert_close(metrics["lm_loss"], float(numbers[:, 0].sum() / numbers[:, 1].sum()), atol=1e-6, rtol=1e-6)

    found = []
    for size in (1, 4):
        trainer.args.per_device_eval_batch_size = size
        found.append(trainer.evaluate(trainer.train_dataset))
    for name in ("eval_loss", "eval_lm_loss", "eval_safety_loss", "eval_guard_accuracy", "eval_guard_macro_f1"):
        assert_close(found[0][name], found[1][name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tuning", ["lora", "guard_only"])
def test_what_is_logged_in_training_and_evaluation_are_the_losses_of_all_rows_and_the_guards_score(
    tmp_path, rows, tuning
):
    """By hand, row by row, from the logits of the base, which steps of 1e-12 leave as it is."""
    settings = {"learning_rate": 1e-12, "guard_learning_rate": 1e-12, "guard_dropout": 0.0, "tuning": tuning}
    settings |= {"class_weights": "balanced", "safety_loss_lambda": 0.5, "report_to": ["tensorboard"]}
    settings |= {"max_steps": -1, "num_train_epochs": 2, "logging_strategy": "epoch", "save_strategy": "epoch"}
    metrics = train(arguments(rows, tmp_path / "run", eval_data=[str(rows["data"])], **settings))

    trainer = build_trainer(rows, tmp_path / "unused", lora=False)
    sums = {"lm": 0.0, "tokens": 0, "safety": 0.0, "rows": 0.0}
    labels = [label for label in trainer.train_dataset.labels if label != -100]
    weight = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    weight = dict(zip(np.unique(labels), weight))
    right = []
    for example in trainer.train_dataset.examples:
        batch = trainer.data_collator([example])
        with torch.no_grad():
            output = trainer.model(
                **{name: value for name, value in batch.items() if "labels" not in name}, do_safety=True
            )
        targets = batch["labels"][0, 1:]
        sums["lm"] += F.cross_entropy(output.logits[0, :-1], targets, reduction="sum").item()
        sums["tokens"] += int(targets.ne(-100).sum())
        if example.label != -100:
            sums["safety"] -= weight[example.label] * output.img_safety_logits[0].log_softmax(0)[example.label].item()
            sums["rows"] += weight[example.label]
            right.append(output.img_safety_logits[0].argmax().item() == example.label)
    expected = {"safety_loss": sums["safety"] / sums["rows"], "guard_accuracy": sum(right) / len(right)}
    expected["loss"] = 0.5 * expected["safety_loss"]
    if tuning == "lora":
        expected["lm_loss"] = sums["lm"] / sums["tokens"]
        expected["loss"] += expected["lm_loss"]
    state = json.loads((last_checkpoint(tmp_path / "run") / "trainer_state.json").read_text())
    first, second = (log for log in state["log_history"] if "loss" in log)
    for name, value in expected.items():
        if name != "loss":  # of the steps, each over its own rows
            assert_close(first[name], value, atol=1e-5, rtol=1e-5)
            assert_close(second[name], value, atol=1e-5, rtol=1e-5)
        assert_close(metrics[f"eval_{name}"], value, atol=1e-5, rtol=1e-5)

    assert list((tmp_path / "run").glob("**/events.out.tfevents*"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["metrics"] == metrics and record["data"]["train"]["rows"] == 21
    assert record["data"]["train"]["rows_with_answer"] == 17 and record["data"]["train"]["rows_by_label"]["safe"] == 4
    assert record["versions"]["transformers"] and len(record["data"]["eval"]["sha256"]) == 64


def test_without_rows_to_evaluate_on_the_metrics_are_those_that_training_logged_last(tmp_path, rows):
    metrics = train(arguments(rows, tmp_path / "run", logging_steps=1, max_steps=2, class_weights="balanced"))
    assert metrics["last_epoch"] == 2 / 6  # 21 rows in fours
    # Of a single step what was minimised is what is logged by its parts.
    assert_close(metrics["last_loss"], metrics["last_lm_loss"] + metrics["last_safety_loss"], atol=1e-5, rtol=1e-5)


def test_losses_are_float32_where_the_model_is_not(tmp_path, rows):
    trainer = build_trainer(rows, tmp_path, lora=False)
    batch = trainer.data_collator(trainer.train_dataset.examples[:2])
    sums = trainer._sums(trainer.model.bfloat16(), batch)
    assert sums.lm_losses.dtype == sums.safety_losses.dtype == torch.float32


def test_balanced_sampling_draws_all_labels_equally_often_no_blank_row_and_anew_each_epoch_and_seed():
    labels = [0] * 900 + [1] * 90 + [-100] * 10
    sampler = WeightedSampler([*sample_weights(labels), 0.0, 0.0], seed=0)
    drawn = list(sampler)
    assert len(drawn) == 1002 and max(drawn) < 1000
    counts = Counter(labels[i] for i in drawn)
    for label in (0, 1, -100):
        assert abs(counts[label] - 1002 / 3) < 4 * (1002 * 1 / 3 * 2 / 3) ** 0.5  # standard deviations
    assert list(sampler) == drawn
    sampler.set_epoch(1)
    assert list(sampler) != drawn
    assert list(WeightedSampler(sampler.weights, seed=5)) != drawn


@pytest.mark.parametrize("seed", range(5))
def test_class_weights_are_scikit_learns_balanced(seed):
    labels = np.random.default_rng(seed).choice(6, p=[0.5, 0.2, 0.2, 0.05, 0.05, 0], size=300)
    present = np.unique(labels)
    expected = np.ones(6)
    expected[present] = compute_class_weight("balanced", classes=present, y=labels)
    weights = class_weights([*labels.tolist(), IGNORED, IGNORED], 6)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    assert weights.dtype == torch.float32
    # Each category that occurs weighs the same in all.
    assert np.allclose([weights[label] * (labels == label).sum() for label in present], 300 / len(present))


def test_without_labels_all_classes_weigh_one():
    assert class_weights([IGNORED, IGNORED], 3).tolist() == [1, 1, 1]


def test_sample_weights_draw_each_label_equally_often():
    labels = [0] * 7 + [3] * 2 + [IGNORED] * 4
    weights = np.array(sample_weights(labels))
    assert all(np.isclose(weights[np.array(labels) == label].sum(), 1) for label in (0, 3, IGNORED))
    assert len({weights[i] for i in range(7)}) == 1
