"""`safeqwen train`: settings, both losses and both learning rates, resuming, the guard alone, and what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from in_turn import cut_off
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

import safeqwen_cli
from safeqwen import DEMO_CHECKPOINT
from safeqwen.data import SafetyCollator, Taxonomy, class_weights, read_rows, sample_weights
from safeqwen.loading import load_base
from safeqwen.publishing.record import load_run
from safeqwen.training import (
    GUARD,
    SafetyTrainer,
    SafetyTrainingArguments,
    WeightedSampler,
    _load,
    _load_processor,
    add_lora,
    last_checkpoint,
    read_config,
    train,
)
from tools.demo.pictograms import draw


TESTS = Path(__file__).parent
ACCELERATE = TESTS.parent / "configs" / "accelerate"
NAMES = ["safe", "weapon_related_violence", "suicide", "medical_advice"]


def write_rows(folder, num_rows, first_seed, **changes):
    """Drawings with a label and an answer: every third row has no label, every fourth no answer."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(num_rows):
        name = NAMES[i % len(NAMES)]
        draw(name, first_seed + i, size=112).save(folder / "images" / f"{i}.png")
        messages = [{"role": "user", "content": "What do you see?"}, {"role": "assistant", "content": f"I see {i}."}]
        row = {"images": [f"images/{i}.png"], "messages": messages, "safety_label": name}
        if i % 3 == 2:
            del row["safety_label"]
        elif i % 4 == 3:
            del row["messages"][1]
        rows.append({**row, **changes})
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "data.jsonl"


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    # 21 rows do not fill their last step of 4.
    return {"data": write_rows(folder / "train", 21, 0), "eval": write_rows(folder / "eval", 9, 100)}


SETTINGS = {
    "model": "demo",
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
    "learning_rate": 1e-3,
    "guard_learning_rate": 2e-3,
    "per_device_train_batch_size": 2,
    "global_batch_size": 4,
    "max_steps": 7,  # past the end of an epoch
    "save_strategy": "no",
}


def arguments(rows, output, **settings):
    return SafetyTrainingArguments(**{**SETTINGS, "data": [str(rows["data"])], "output_dir": str(output), **settings})


def write_config(file, rows, **settings):
    file.write_text(yaml.safe_dump({**SETTINGS, "data": str(rows["data"]), **settings}))
    return file


ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]),
}


def run_here(config, *words):
    """What the command does, without a process of its own, which takes longer to start than to train."""
    return train(read_config(config, [str(word) for word in words]))


def weights(run_folder):
    tensors = {}
    for file in sorted(Path(run_folder, "final").glob("*.safetensors")):
        tensors.update(load_file(file))
    assert tensors
    return tensors


def assert_same_weights(first, second, tolerance=0.0):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    for name in first:
        assert_close(first[name], second[name], atol=tolerance, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def build_trainer(rows, output, names=None, lora=True, **settings):
    args = arguments(rows, output, **settings)
    model = load_base(DEMO_CHECKPOINT, safety_categories=names, dtype=torch.float32)
    collator = SafetyCollator(AutoProcessor.from_pretrained(DEMO_CHECKPOINT))
    data = read_rows(args.data, Taxonomy(model.config.safety_categories), collator)
    return SafetyTrainer(
        model=add_lora(model, args) if lora else model, args=args, data_collator=collator, train_dataset=data
    )


# ----------------------------------------------------------------------------------------------------------- settings


def test_words_of_the_command_line_override_the_file_and_numbers_may_be_written_as_yaml_reads_text(tmp_path, rows):
    file = write_config(tmp_path / "c.yaml", rows, output_dir=str(tmp_path / "run"), learning_rate="1e-5")
    file.write_text(file.read_text().replace("'no'", "no"))  # which YAML reads as false
    args = read_config(file, ["--guard-learning-rate", "3e-4", "--lora_rank=8", "--balanced_sampling"])
    assert args.save_strategy == "no" and args.use_cpu is True and args.report_to == []
    assert (args.learning_rate, args.guard_learning_rate, args.lora_rank) == (1e-5, 3e-4, 8)
    assert args.balanced_sampling and args.data == [str(rows["data"])]
    assert args.gradient_accumulation_steps == 2  # 4 rows in twos


@pytest.mark.parametrize(
    ("settings", "words", "message"),
    [
        ({"learning_rte": 1}, [], "unknown setting 'learning_rte'; did you mean 'learning_rate'"),
        ({}, ["--gard_learning_rate", "1"], "'gard_learning_rate'; did you mean 'guard_learning_rate'"),
        ({}, ["--learning_rate", "fast"], "invalid float value: 'fast'"),
        ({"lora_rank": 8.5}, [], "invalid int value: '8.5'"),
        ({"seed": [1, 2]}, [], r"not used.*\['2'\]"),
        ({"tuning": "LoRa"}, [], "tuning must be one of lora, full, guard_only, got 'LoRa'"),
        ({"learning_rate": 0}, [], "learning_rate is 0.*above 0"),
        ({"guard_learning_rate": 0.0}, [], "guard_learning_rate is 0.0.*above 0"),
        ({"global_batch_size": 5}, [], "global_batch_size 5 is no multiple of per_device_train_batch_size 2 x 1"),
        ({"global_batch_size": 0}, [], "global_batch_size must be 1 or more, got 0"),
        ({}, ["--lora_rank", "0"], "lora_rank must be 1 or more, got 0"),
        ({"guard_dropout": 1.0}, [], r"guard_dropout must be in \[0, 1\), got 1.0"),
        ({"model": None}, [], "model is not set"),
        ({"label_smoothing_factor": 0.1}, [], "label_smoothing_factor would replace both losses"),
        ({"early_stopping_patience": 2}, [], "needs eval_data"),
        ({"early_stopping_patience": 2, "eval_data": "x.jsonl"}, [], "needs eval_strategy and save_strategy"),
        ({"tuning": "full", "muon_learning_rate": 0}, [], "muon_learning_rate must be above 0"),
        ({"push_to_hub": True}, [], "use safeqwen export --push"),
        ({"auto_find_batch_size": True}, [], "would change the rows of a step"),
        ({"save_only_model": True}, [], "nothing that a run could be resumed from"),
        ({"tuning": "full", "dtype": "float16"}, [], "in float32; got dtype float16"),
    ],
)
def test_wrong_settings_are_refused_with_a_remedy(tmp_path, rows, settings, words, message):
    file = write_config(tmp_path / "c.yaml", rows, output_dir=str(tmp_path / "run"), **settings)
    with pytest.raises(ValueError, match=message):
        read_config(file, words)


@pytest.mark.parametrize(
    ("targets", "message"),
    [("nothing_like_this", "matches no layer"), (r".*\.(q_proj|gate_proj)", "matches model.visual.blocks.0.mlp.gate")],
)
def test_lora_on_nothing_or_on_the_vision_tower_is_refused(tmp_path, rows, targets, message):
    with pytest.raises(ValueError, match=message):
        build_trainer(rows, tmp_path, lora_targets=targets)


def test_lora_is_on_all_attention_and_mlp_layers_of_the_language_model_and_the_guard_is_trained_whole(tmp_path, rows):
    model = build_trainer(rows, tmp_path, lora_rank=5, lora_alpha=7, lora_dropout=0.25).model
    adapted = [name.removeprefix("base_model.model.") for name, m in model.named_modules() if hasattr(m, "lora_A")]
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
    layers = model.config.text_config.num_hidden_layers
    expected = [f"model.language_model.layers.{i}.self_attn.{kind}" for i in range(layers) for kind in kinds[0]]
    expected += [f"model.language_model.layers.{i}.mlp.{kind}" for i in range(layers) for kind in kinds[1]]
    assert sorted(adapted) == sorted(expected)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if GUARD not in name} == {
        f"base_model.model.{name}.lora_{matrix}.default.weight" for name in expected for matrix in "AB"
    }
    assert len([name for name in trained if GUARD in name]) == 4
    for layer in (module for module in model.modules() if hasattr(module, "lora_A")):
        assert (layer.r["default"], layer.scaling["default"], layer.lora_dropout["default"].p) == (5, 7 / 5, 0.25)


def test_pixel_limits_hold_for_a_processor_that_names_them_in_the_older_way(tmp_path, rows):
    """As the released processor's files do."""
    processor = AutoProcessor.from_pretrained(DEMO_CHECKPOINT)
    processor.save_pretrained(tmp_path / "old")
    file = tmp_path / "old" / "preprocessor_config.json"
    (tmp_path / "old" / "processor_config.json").unlink(missing_ok=True)
    (tmp_path / "old" / "video_preprocessor_config.json").unlink(missing_ok=True)
    old = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2}
    file.write_text(json.dumps({**old, "min_pixels": 3136, "max_pixels": 12845056, "temporal_patch_size": 2}))
    args = arguments(rows, tmp_path / "run", max_pixels=60000)
    loaded = _load_processor(args, tmp_path / "old", {})
    picture = Image.new("RGB", (900, 900))
    (grid,) = loaded.image_processor(images=[picture], return_tensors="pt")["image_grid_thw"]
    assert 40000 < int(grid.prod()) * 14 * 14 <= 60000


# ------------------------------------------------------------------------------------------------------------- losses


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


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """As `rows`, each row with a second picture: of every other row, both are labelled by themselves."""
    folder = tmp_path_factory.mktemp("pairs")
    file = write_rows(folder, 8, 0)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for i, row in enumerate(lines):
        row["images"].append(f"images/{(i + 1) % 8}.png")
        if i % 2:
            row["picture_safety_labels"] = [NAMES[i % 4], None if i == 5 else NAMES[(i + 1) % 4]]
    file.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return {"data": file, "eval": file}


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


def test_the_guard_alone_refuses_labels_of_pictures(tmp_path, pairs):
    with pytest.raises(ValueError, match="data has picture_safety_labels, which guard_only cannot learn"):
        train(arguments(pairs, tmp_path / "run", tuning="guard_only"))


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


def test_weights_that_are_trained_are_float32_whatever_the_others_are(tmp_path, rows):
    settings = {"dtype": "bfloat16", "bf16": True, "max_steps": 2, "eval_data": [str(rows["eval"])]}
    train(arguments(rows, tmp_path / "run", bf16_full_eval=True, **settings))
    assert {tensor.dtype for tensor in weights(tmp_path / "run").values()} == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({}, torch.float32),
        ({"bf16": True}, torch.bfloat16),
        ({"fp16": True}, torch.float16),
        ({"fp16": True, "dtype": "bfloat16"}, torch.bfloat16),
        ({"bf16": True, "tuning": "full"}, torch.float32),
    ],
)
def test_weights_that_stay_as_they_are_have_the_precision_that_was_asked_for(tmp_path, rows, settings, dtype):
    args = arguments(rows, tmp_path, guard_dropout=0.25, attn_implementation="eager", **settings)
    model = _load(args, DEMO_CHECKPOINT, Taxonomy(NAMES), {})
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model.config._attn_implementation == "eager"
    assert [module.p for module in model.img_safety_head.modules() if isinstance(module, torch.nn.Dropout)] == [0.25]


def test_losses_are_float32_where_the_model_is_not(tmp_path, rows):
    trainer = build_trainer(rows, tmp_path, lora=False)
    batch = trainer.data_collator(trainer.train_dataset.examples[:2])
    sums = trainer._sums(trainer.model.bfloat16(), batch)
    assert sums.lm_losses.dtype == sums.safety_losses.dtype == torch.float32


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, rows):
    trainer = build_trainer(rows, tmp_path)
    layer = trainer.model.get_base_model().model.language_model.layers[1].mlp.down_proj
    layer.base_layer.weight.data[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="the loss is (nan|inf) at step 1.*bf16"):
        trainer.train()


def test_a_seed_fixes_the_run_and_another_changes_it(tmp_path, rows):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(arguments(rows, tmp_path / name, seed=seed, balanced_sampling=True))
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "a", tmp_path / "c")


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


# ----------------------------------------------------------------------------------------------------------- resuming


def test_the_last_checkpoint_is_the_one_of_the_most_steps_of_those_that_are_whole(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
        if step < 11:
            (tmp_path / f"checkpoint-{step}" / "complete").touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


KILLED = """
import os, signal, sys, torch
from safeqwen_cli import main

def save_or_die(value, file, *args, **kwargs):
    if str(file).endswith(os.path.join("checkpoint-4", "scheduler.pt")):
        os.kill(os.getpid(), signal.SIGKILL)
    return save(value, file, *args, **kwargs)

save, torch.save = torch.save, save_or_die
main(sys.argv[1:])
"""


def test_a_run_killed_while_it_wrote_a_checkpoint_and_resumed_ends_with_the_weights_of_one_left_alone(tmp_path, rows):
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2, "lora_dropout": 0.1}
    config = write_config(tmp_path / "c.yaml", rows, **settings)
    run_here(config, "--output_dir", tmp_path / "alone")
    words = ["train", config, "--output_dir", tmp_path / "killed"]
    process = subprocess.run([sys.executable, "-c", KILLED, *words], env=ENVIRONMENT, capture_output=True, timeout=300)
    assert process.returncode == -signal.SIGKILL, process.stderr[-3000:]
    partial = tmp_path / "killed" / "checkpoint-4"
    assert list(partial.iterdir()) and last_checkpoint(tmp_path / "killed").name == "checkpoint-2"
    (partial / "half").touch()
    run_here(config, "--output_dir", tmp_path / "killed", "--resume")
    assert_same_weights(tmp_path / "alone", tmp_path / "killed")
    assert not (partial / "half").exists()  # it was written anew


@pytest.mark.parametrize(
    ("folder", "file", "last"),
    [
        ("checkpoint-3", "scheduler.pt", "checkpoint-2"),
        ("checkpoint-3", "complete", "checkpoint-2"),
        ("final", "training_args.bin", "checkpoint-4"),
    ],
)
def test_what_does_not_fit_on_the_disk_is_removed_and_the_last_whole_checkpoint_remains(
    tmp_path, rows, monkeypatch, folder, file, last
):
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "max_steps": 4}

    def until_full(function):
        def write(*args, **kwargs):
            if any(str(arg).endswith(os.path.join(folder, file)) for arg in args):
                raise OSError(28, "No space left on device")
            return function(*args, **kwargs)

        return write

    train(arguments(rows, tmp_path / "alone", **settings))
    monkeypatch.setattr(torch, "save", until_full(torch.save))
    monkeypatch.setattr(Path, "touch", until_full(Path.touch))
    with pytest.raises(OSError, match=f"{folder} could not be written.*No space.*--resume goes on from .*{last}"):
        train(arguments(rows, tmp_path / "run", **settings))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json", last}
    monkeypatch.undo()
    train(arguments(rows, tmp_path / "run", resume=True, **settings))
    assert_same_weights(tmp_path / "alone", tmp_path / "run")


def test_a_folder_with_a_run_is_left_alone(tmp_path, rows):
    settings = {"save_strategy": "steps", "save_steps": 2}
    train(arguments(rows, tmp_path / "run", **settings))
    before = (tmp_path / "run" / "run.json").read_bytes()
    for extra, message in (
        ({}, "already holds a run; go on with it by --resume"),
        ({"resume": True}, "holds a run that has ended"),
    ):
        with pytest.raises(ValueError, match=message):
            train(arguments(rows, tmp_path / "run", **settings, **extra))
    record = json.loads(before)
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "metrics": None}))
    for extra, message in (
        ({"learning_rate": 5e-4}, r"differs in learning_rate \(was 0.001, is 0.0005\)"),
        ({"data": [str(rows["eval"])]}, "the rows of the train data"),
        ({"eval_data": [str(rows["eval"])]}, "the rows of the eval data"),
        ({"categories": ["safe", *NAMES[1:]]}, "label|safety_categories"),
    ):
        with pytest.raises(ValueError, match=message):
            train(arguments(rows, tmp_path / "run", resume=True, **{**settings, **extra}))
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-7"
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(ValueError, match="holds checkpoints of something else"):
        train(arguments(rows, tmp_path / "run", resume=True, **settings))


def test_a_run_that_cannot_start_leaves_its_folder_free(tmp_path, rows):
    with pytest.raises(ValueError, match="matches no layer"):
        train(arguments(rows, tmp_path / "run", lora_targets="nothing"))
    bad = write_rows(tmp_path / "bad", 4, 0, safety_label="wepon_related_violence")
    with pytest.raises(ValueError, match="did you mean 'weapon_related_violence'"):
        train(arguments({"data": bad}, tmp_path / "run"))
    train(arguments(rows, tmp_path / "run"))


def test_training_stops_early_and_keeps_the_best_weights(tmp_path, rows):
    settings = {"early_stopping_patience": 2, "max_steps": 30, "learning_rate": 1.0, "lr_scheduler_type": "constant"}
    settings |= {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    settings |= {"eval_data": [str(rows["eval"])]}
    metrics = train(arguments(rows, tmp_path / "run", **settings))
    state = json.loads((last_checkpoint(tmp_path / "run") / "trainer_state.json").read_text())
    losses = [log["eval_loss"] for log in state["log_history"] if "eval_loss" in log]
    assert len(losses) < 30 and min(losses) == losses[-3] == metrics["eval_loss"]
    # Moved, and resumed with one evaluation of patience left, and room for the best checkpoint only.
    cut_off(tmp_path / "run", len(losses) - 1, tmp_path / "moved")
    (tmp_path / "run").rename(tmp_path / "alone")
    resumed = train(arguments(rows, tmp_path / "moved", resume=True, save_total_limit=1, **settings))
    assert resumed["epoch"] == metrics["epoch"]
    assert last_checkpoint(tmp_path / "moved").name == f"checkpoint-{len(losses) - 2}"
    assert_same_weights(tmp_path / "alone", tmp_path / "moved")


def test_a_guard_that_no_step_has_moved_yet_is_not_evaluated(tmp_path, rows):
    settings = {"categories": NAMES, "eval_data": [str(rows["eval"])], "eval_strategy": "epoch"}
    with pytest.raises(ValueError, match="not been trained yet.*leave eval_on_start out"):
        train(arguments(rows, tmp_path / "run", eval_on_start=True, **settings))


# -------------------------------------------------------------------------------------------------------- guard alone


def test_the_guard_alone_learns_a_new_taxonomy_from_features_that_are_computed_once(tmp_path, rows, monkeypatch):
    names = ["nothing", "arms", "despair", "advice"]
    aliases = [{"name": name, "aliases": [old]} for name, old in zip(names, NAMES)]
    (tmp_path / "categories.yaml").write_text(yaml.safe_dump(aliases))
    settings = {
        **{"tuning": "guard_only", "categories": [str(tmp_path / "categories.yaml")], "max_steps": 150},
        **{"guard_learning_rate": 1e-2, "eval_data": [str(rows["eval"])], "global_batch_size": 14},
    }
    metrics = train(arguments(rows, tmp_path / "first", **settings))
    assert metrics["eval_guard_accuracy"] == 1.0  # the demo tells these apart already
    assert len(list((tmp_path / "feature_cache").iterdir())) == 2

    head = weights(tmp_path / "first")
    assert {name: tuple(tensor.shape) for name, tensor in head.items()} == {
        f"{GUARD}.mlp.0.weight": (96, 192),
        f"{GUARD}.mlp.0.bias": (96,),
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

    monkeypatch.setattr(type(model), "guard_features", fail)
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


# ------------------------------------------------------------------------------------------------- several processes


COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Plain gradient descent for all weights: AdamW would blow the rounding of gradients that are zero up to steps.
GRADIENT_DESCENT = {"optim": "sgd", "learning_rate": 0.01, "guard_learning_rate": 0.01}
SAVING = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
RUNS = {
    "lora": SAVING,
    "balanced": {**SAVING, "balanced_sampling": True, "max_steps": 10},  # an epoch has 6
    "full": {"tuning": "full", **GRADIENT_DESCENT},
    "guard_only": {"tuning": "guard_only", **GRADIENT_DESCENT},
    # Batches without a picture leave the vision tower unused, and the guard but for a zero.
    "lora_text": {"gradient_checkpointing": True},
    "full_text": {"tuning": "full", "gradient_checkpointing": True, **GRADIENT_DESCENT},
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory, rows):
    """The configurations of `RUNS`, and for the last two rows of which every other is text alone."""
    folder = tmp_path_factory.mktemp("runs")
    lines = [json.loads(line) for line in rows["data"].read_text().splitlines()]
    for row in lines:
        row["images"] = [str(rows["data"].parent / image) for image in row["images"]]
    texts = [{"messages": row["messages"]} for row in lines if len(row["messages"]) == 2]
    mixed = [row for pair in zip(lines, texts) for row in pair]
    (folder / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    for name, settings in RUNS.items():
        data = {"data": folder / "mixed.jsonl" if name.endswith("text") else rows["data"]}
        write_config(folder / f"{name}.yaml", data, guard_dropout=0.0, **settings)
    return folder


@pytest.fixture(scope="session")
def one(runs):
    """Those runs, each on one process when it is asked for."""

    def finished(name):
        if not (runs / "one" / name).exists():
            cache = ["--feature_cache", runs / "one" / "features"]
            run_here(runs / f"{name}.yaml", "--output_dir", runs / "one" / name, *cache)
        return runs / "one" / name

    return finished


def launch(engine, commands, **environment):
    """Runs `in_turn` on two processes, as a configuration in configs/accelerate/ says."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(ACCELERATE / f"{engine}.yaml")]
    launcher += ["--num_processes", "2"]
    commands = json.dumps([[code, [str(word) for word in words]] for code, words in commands])
    process = subprocess.run(
        [sys.executable, *launcher, "-m", "in_turn", commands],
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stderr[-5000:]


@pytest.fixture(scope="session")
def ddp(runs, tmp_path_factory):
    """What two processes, each with all weights, made of those runs, and of one that was killed."""
    out, hub = runs / "ddp", tmp_path_factory.mktemp("hub")
    snapshot = hub / "models--someone--Demo" / "snapshots" / COMMIT
    shutil.copytree(DEMO_CHECKPOINT, snapshot)
    (hub / "models--someone--Demo" / "refs").mkdir()
    (hub / "models--someone--Demo" / "refs" / "tried").write_text(COMMIT)
    on_hub = ["--model", "someone/Demo", "--model_revision", "tried", "--feature_cache", out / "features"]
    commands = [
        (0, ["train", runs / f"{name}.yaml", "--output_dir", out / name, *(on_hub if name == "guard_only" else [])])
        for name in RUNS
    ]
    commands += [
        (0, ["cut_off", out / "balanced", 8, out / "killed"]),  # in the middle of the second epoch
        (0, ["train", runs / "balanced.yaml", "--output_dir", out / "killed", "--resume"]),
        (2, ["train", runs / "lora.yaml", "--output_dir", out / "bad", "--categories", "safe", "suicide"]),
    ]
    launch("ddp", commands, HF_HUB_CACHE=str(hub))
    return out


@pytest.fixture(scope="session")
def fsdp2(runs):
    out, text = runs / "fsdp2", runs / "lora_text.yaml"
    commands = [
        (0, ["train", runs / f"{name}.yaml", "--output_dir", out / name, "--save_strategy", "no"])
        for name in ("lora", "full")
    ]
    commands += [
        (2, ["train", text, "--output_dir", out / "bad", "--gradient_checkpointing", "false"]),
        (2, ["train", runs / "full.yaml", "--output_dir", out / "bad_muon", "--muon_learning_rate", "0.01"]),
    ]
    launch("fsdp2", commands)
    return out


@pytest.mark.parametrize(
    ("engine", "name"), [*(("ddp", name) for name in RUNS), *(("fsdp2", name) for name in ("lora", "full"))]
)
def test_two_processes_end_with_the_weights_of_one(request, one, engine, name):
    two = request.getfixturevalue(engine)
    first, second = weights(one(name)), weights(two / name)
    for key in first.keys() & second.keys():  # FSDP2 writes tied embeddings twice
        assert_close(first[key], second[key], atol=1e-5, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
    assert first.keys() ^ second.keys() <= ({"lm_head.weight"} if engine == "fsdp2" else set())


def test_two_processes_compute_the_features_of_one_for_each_row_with_a_label(one, ddp):
    (first,) = one("guard_only").parent.glob("features/*")
    (second,) = ddp.glob("features/*")
    assert first.name == second.name
    first, second = load_file(first)["features"], load_file(second)["features"]
    assert len(first) == 14 and first.isfinite().all()
    assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_two_processes_log_the_losses_of_one(one, ddp):
    def logs(run):
        state = json.loads((last_checkpoint(run) / "trainer_state.json").read_text())
        return [log for log in state["log_history"] if "loss" in log]

    for first, second in zip(logs(one("lora")), logs(ddp / "lora"), strict=True):
        for name in ("loss", "lm_loss", "safety_loss", "guard_accuracy", "guard_macro_f1"):
            assert_close(first[name], second[name], atol=1e-4, rtol=1e-4)


def test_balanced_sampling_resumed_on_two_processes_amid_an_epoch_ends_as_if_it_had_been_left_alone(ddp):
    assert_same_weights(ddp / "balanced", ddp / "killed")


def test_a_checkpoint_of_two_processes_is_resumed_on_one(tmp_path, runs, one, ddp):
    cut_off(ddp / "lora", 4, tmp_path / "run")
    run_here(runs / "lora.yaml", "--output_dir", tmp_path / "run", "--resume")
    assert_same_weights(one("lora"), tmp_path / "run", tolerance=1e-5)
    base = load_base(DEMO_CHECKPOINT, dtype=torch.float32)
    assert not PeftModel.from_pretrained(base, tmp_path / "run" / "final").training


def test_what_is_refused_is_refused_in_all_processes_and_leaves_the_folder_free(ddp, fsdp2):
    # Labels that are no category; rows with and without pictures, and matrices in shards for Muon. A process that went
    # on would wait for ever.
    assert not [out for out in (ddp / "bad", fsdp2 / "bad", fsdp2 / "bad_muon") if (out / "run.json").exists()]


def test_a_model_of_the_hub_is_recorded_with_its_commit(ddp):
    record = json.loads((ddp / "guard_only" / "run.json").read_text())
    assert (record["base_model"], record["base_revision"]) == ("someone/Demo", COMMIT)


@pytest.mark.parametrize(
    "file", sorted((TESTS.parent / "configs" / "accelerate").glob("*.yaml")), ids=lambda f: f.name
)
def test_the_published_configurations_of_accelerate_hold_settings_that_exist(file):
    config = load_config_from_file(str(file))  # refuses others at the top level
    assert config.distributed_type.value in file.stem.upper() or file.stem == "ddp"
    known = vars(launch_command_parser().parse_args(["script.py"]))
    nested = {**config.fsdp_config, **config.deepspeed_config}
    assert set(nested) <= set(known)


# ------------------------------------------------------------------------------------------------------------ command


def test_the_command_lists_every_bad_row_and_starts_nothing(tmp_path, rows):
    bad = write_rows(tmp_path / "bad", 3, 0, safety_label="knife")
    config = write_config(tmp_path / "c.yaml", {"data": bad}, output_dir=str(tmp_path / "run"))
    command = [sys.executable, "-m", "safeqwen", "train", config]
    process = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert process.returncode == 2 and process.stderr.count("label 'knife' is no category") == 3
    assert "data.jsonl, row 3" in process.stderr and "Traceback" not in process.stderr
    assert not (tmp_path / "run").exists()


def test_secrets_of_the_command_line_are_not_recorded(tmp_path, rows):
    config = write_config(tmp_path / "c.yaml", rows, output_dir=str(tmp_path / "run"), max_steps=1)
    words = ["--hub_token", "hf_first", "--hub-token=hf_second", "--seed", "3"]
    assert safeqwen_cli.main(["train", str(config), *words]) == 0
    record = (tmp_path / "run" / "run.json").read_text()
    assert "hf_" not in record and "--hub_token '***' '--hub-token=***' --seed 3" in record
    assert not (tmp_path / "run" / "final" / "training_args.bin").exists()


def test_a_long_prompt_that_is_labelled_does_not_stop_the_run_at_a_blank_row(tmp_path, rows):
    data = write_rows(tmp_path / "long", 5, 0)
    train(arguments({"data": data}, tmp_path / "run", max_length=45, on_bad_row="skip"))


def test_a_base_that_has_changed_since_is_not_merged_into(tmp_path, rows):
    load_base(DEMO_CHECKPOINT, dtype=torch.float32).save_pretrained(tmp_path / "base")
    settings = {"model": str(tmp_path / "base"), "processor": "demo", "max_steps": 1}
    train(arguments(rows, tmp_path / "run", **settings))
    load_run(tmp_path / "run")
    other = load_base(DEMO_CHECKPOINT, dtype=torch.float32)
    other.model.language_model.norm.weight.data += 0.1
    other.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="no longer those that the training started from"):
        load_run(tmp_path / "run")
    cut_off(tmp_path / "run", 1, tmp_path / "killed")
    with pytest.raises(ValueError, match="another run, which differs in base_sha256"):
        train(arguments(rows, tmp_path / "killed", resume=True, **settings))


@pytest.mark.parametrize("file", sorted((TESTS.parent / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_the_published_configurations_hold_settings_that_exist_and_agree(tmp_path, file):
    words = ["--data", "rows.jsonl", "--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false", "--fp16", "false"]
    args = read_config(file, words)
    assert args.global_batch_size == args.per_device_train_batch_size * args.gradient_accumulation_steps
    published = yaml.safe_load(file.read_text())
    assert "safeqwen train configs/" in file.read_text()
    if file.name.startswith("holisafe_lora"):  # the card's recipe
        card = {"lora_rank": 64, "lora_alpha": 64, "learning_rate": 1e-5, "guard_learning_rate": 1e-5}
        assert {key: published[key] for key in card} == card and published["num_train_epochs"] == 5
        assert (published.get("fp16"), published.get("bf16")) == (
            (None, True) if "bf16" in file.name else (True, None)
        )


def test_a_backbone_that_was_random_judges_once_it_is_trained_and_only_its_frozen_part_keeps_it_from_that(
    tmp_path, rows
):
    model = load_base(DEMO_CHECKPOINT, dtype=torch.float32)
    fresh = type(model)(model.config)
    fresh.save_pretrained(tmp_path / "base")
    settings = {"model": str(tmp_path / "base"), "processor": "demo", "tuning": "full", "max_steps": 2}
    train(arguments(rows, tmp_path / "whole", muon_learning_rate=0.01, **settings))
    trained = load_base(tmp_path / "whole" / "final", dtype=torch.float32)
    assert not trained._untrained()
    train(arguments(rows, tmp_path / "part", frozen=r"visual\.", **settings))
    part = load_base(tmp_path / "part" / "final", dtype=torch.float32)
    assert part._untrained() and all(name.startswith("model.visual.") for name in part._untrained())
    for name, parameter in part.model.visual.named_parameters():
        assert torch.equal(parameter, fresh.model.visual.get_parameter(name)), name


def test_muon_trains_the_matrices_within_the_towers_and_goes_on_where_it_was(tmp_path, rows):
    settings = {"tuning": "full", "muon_learning_rate": 0.01, "save_strategy": "steps", "save_steps": 1}
    train(arguments(rows, tmp_path / "alone", max_steps=3, **settings))
    trainer = build_trainer(rows, tmp_path / "unused", lora=False, muon_learning_rate=0.01)
    muon, adamw = trainer.create_optimizer().optimizers
    assert {group["lr"] for group in muon.param_groups} == {0.01}
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    matrices = {names[id(parameter)] for group in muon.param_groups for parameter in group["params"]}
    assert "model.visual.blocks.0.mlp.up_proj.weight" in matrices
    assert not any(GUARD in name or "embed" in name or name.endswith("bias") for name in matrices)
    rest = {names[id(parameter)] for group in adamw.param_groups for parameter in group["params"]}
    assert matrices.isdisjoint(rest) and matrices | rest == set(names.values())

    cut_off(tmp_path / "alone", 2, tmp_path / "resumed")
    train(arguments(rows, tmp_path / "resumed", max_steps=3, resume=True, **settings))
    assert_same_weights(tmp_path / "alone", tmp_path / "resumed")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frozen": "visual"}, "goes with tuning: full"),
        ({"tuning": "full", "frozen": "vison"}, "matches no weight"),
        ({"tuning": "full", "frozen": r"^model\.", "muon_learning_rate": 0.01}, "no matrix within the towers"),
    ],
)
def test_freezing_nothing_and_muon_on_what_is_frozen_are_refused(tmp_path, rows, settings, message):
    with pytest.raises(ValueError, match=message):
        train(arguments(rows, tmp_path / "run", **settings))
    assert not (tmp_path / "run" / "run.json").exists()
