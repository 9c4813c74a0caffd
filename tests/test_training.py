"""`safeqwen train`: settings, both losses and both learning rates, resuming, the guard alone, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

import safeqwen_cli
from safeqwen import DEMO_CHECKPOINT
from safeqwen.data import SafetyCollator, Taxonomy, class_weights, read_rows
from safeqwen.export import load_run
from safeqwen.loading import load_base
from safeqwen.pictograms import draw
from safeqwen.training import (
    GUARD,
    SafetyTrainer,
    SafetyTrainingArguments,
    _load_processor,
    add_lora,
    last_checkpoint,
    read_config,
    train,
)


TESTS = Path(__file__).parent
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


def command(config, *words, processes=1, module="safeqwen", **environment):
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    return {
        "args": [sys.executable, *launch, "-m", module, "train", str(config), *map(str, words)],
        "env": {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]),
            **environment,
        },
    }


def run_here(config, *words):
    """What the command does, without a process of its own, which takes longer to start than to train."""
    return train(read_config(config, [str(word) for word in words]))


def run(*args, **kwargs):
    process = subprocess.run(**command(*args, **kwargs), capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    return process


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
    args = read_config(file, ["--guard-learning-rate", "3e-4", "--lora_rank=8", "--balanced_sampling"])
    assert (args.learning_rate, args.guard_learning_rate, args.lora_rank) == (1e-5, 3e-4, 8)
    assert args.balanced_sampling and args.data == [str(rows["data"])]
    assert args.gradient_accumulation_steps == 2  # 4 rows in twos


@pytest.mark.parametrize(
    ("settings", "words", "message"),
    [
        ({"learning_rte": 1}, [], "unknown setting 'learning_rte'; did you mean 'learning_rate'"),
        ({}, ["--gard_learning_rate", "1"], "'gard_learning_rate'; did you mean 'guard_learning_rate'"),
        ({}, ["--learning_rate", "fast"], "invalid float value: 'fast'"),
        ({"tuning": "LoRa"}, [], "tuning must be one of lora, full, guard_only, got 'LoRa'"),
        ({"learning_rate": 0}, [], "learning_rate is 0.*above 0"),
        ({"guard_learning_rate": 0.0}, [], "guard_learning_rate is 0.0.*above 0"),
        ({"global_batch_size": 5}, [], "global_batch_size 5 is no multiple of per_device_train_batch_size 2 x 1"),
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
    model = build_trainer(rows, tmp_path).model
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
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    groups = {}
    for group in trainer.create_optimizer().param_groups:
        groups[group["lr"], group["weight_decay"]] = {names[id(parameter)] for parameter in group["params"]}
    guard = {f"{GUARD}.mlp.{i}.{kind}" for i in (0, 3) for kind in ("weight", "bias")}
    assert groups[2e-3, 0.1] == {name for name in guard if name.endswith("weight")}
    assert groups[2e-3, 0.0] == {name for name in guard if name.endswith("bias")}
    assert groups[1e-3, 0.1] | groups[1e-3, 0.0] == set(names.values()) - guard
    kept = ("bias", "norm.weight", "norm1.weight", "norm2.weight", "layernorm.weight", "ln_q.weight")
    assert groups[1e-3, 0.0] == {name for name in names.values() if name.endswith(kept)} - guard


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_the_mean_over_all_tokens_plus_the_mean_over_all_labelled_rows(tmp_path, rows, weighted):
    """By hand, from the logits of stock Qwen2.5-VL and the guard's algebra."""
    trainer = build_trainer(rows, tmp_path, lora=False)
    trainer.safety_loss_lambda = 0.5
    if weighted:
        trainer.class_weights = class_weights(trainer.train_dataset.labels, 20)
    batch = trainer.data_collator(trainer.train_dataset.examples[:8])
    model = trainer.model.eval()
    loss, sums = trainer.compute_loss(model, dict(batch), return_outputs=True)

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
    assert whole["picture_safety_labels"].ne(-100).sum() == 7 and len(whole["picture_safety_labels"]) == 16
    expected = model(**whole)
    assert_close(trainer.compute_loss(model, dict(whole)), expected.loss, atol=1e-5, rtol=1e-5)
    assert_close(trainer.evaluate(trainer.train_dataset)["eval_loss"], expected.loss.item(), atol=1e-5, rtol=1e-5)

    halves = [trainer.data_collator(examples[:4]), trainer.data_collator(examples[4:])]
    counts = trainer._get_num_items_in_batch(halves, "cpu")
    assert counts[1] == 6 + 7
    parts = [trainer.compute_loss(model, dict(half), num_items_in_batch=counts) for half in halves]
    assert_close(sum(parts), expected.loss, atol=1e-5, rtol=1e-5)


def test_the_guard_alone_refuses_labels_of_pictures(tmp_path, pairs):
    with pytest.raises(ValueError, match="data has picture_safety_labels, which guard_only cannot learn"):
        train(arguments(pairs, tmp_path / "run", tuning="guard_only"))


def test_the_same_batch_cut_into_other_pieces_gives_the_same_weights(tmp_path, rows):
    settings = {"optim": "sgd", "learning_rate": 0.05, "guard_learning_rate": 0.05, "guard_dropout": 0.0}
    for size in (1, 2, 4):
        train(arguments(rows, tmp_path / str(size), per_device_train_batch_size=size, **settings))
    assert_same_weights(tmp_path / "1", tmp_path / "4", tolerance=2e-6)
    assert_same_weights(tmp_path / "2", tmp_path / "4", tolerance=2e-6)
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


def test_both_losses_and_the_guards_score_are_logged_in_training_and_evaluation(tmp_path, rows):
    settings = {"logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2, "eval_data": [str(rows["eval"])]}
    metrics = train(arguments(rows, tmp_path / "run", report_to=["tensorboard"], **settings))
    assert list((tmp_path / "run").glob("**/events.out.tfevents*"))
    assert {"eval_loss", "eval_lm_loss", "eval_safety_loss", "eval_guard_accuracy"} <= metrics.keys()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["metrics"] == metrics and record["data"]["train"]["rows"] == 21
    assert record["data"]["train"]["rows_with_answer"] == 17 and record["data"]["train"]["rows_by_label"]["safe"] == 4
    assert record["versions"]["transformers"] and len(record["data"]["eval"]["sha256"]) == 64


def test_weights_that_are_trained_are_float32_whatever_the_others_are(tmp_path, rows):
    settings = {"dtype": "bfloat16", "bf16": True, "max_steps": 2}
    train(arguments(rows, tmp_path / "run", **settings))
    assert {tensor.dtype for tensor in weights(tmp_path / "run").values()} == {torch.float32}


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


# ----------------------------------------------------------------------------------------------------------- resuming


def test_a_killed_run_that_is_resumed_ends_with_the_weights_of_one_left_alone(tmp_path, rows):
    settings = {"max_steps": 12, "save_strategy": "steps", "save_steps": 2, "lora_dropout": 0.1}
    config = write_config(tmp_path / "c.yaml", rows, **settings)
    run_here(config, "--output_dir", tmp_path / "alone")
    killed = tmp_path / "killed"
    with subprocess.Popen(
        **command(config, "--output_dir", killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while last_checkpoint(killed) is None:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (killed / "final").exists()
    # As if it had been killed while it wrote the next one, too.
    partial = killed / "checkpoint-11"
    partial.mkdir()
    (partial / "trainer_state.json").write_text("{")
    run(config, "--output_dir", killed, "--resume")
    assert_same_weights(tmp_path / "alone", killed)
    assert not partial.exists()


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_removed_and_the_last_whole_one_remains(
    tmp_path, rows, monkeypatch
):
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "max_steps": 4}
    save, saved = torch.save, []

    def save_until_full(value, file, *args, **kwargs):
        if "checkpoint-3" in str(file) and "scheduler" in str(file):
            raise OSError(28, "No space left on device")
        saved.append(str(file))
        return save(value, file, *args, **kwargs)

    train(arguments(rows, tmp_path / "alone", **settings))
    monkeypatch.setattr(torch, "save", save_until_full)
    with pytest.raises(OSError, match="checkpoint-3 could not be written.*No space.*checkpoint-2.*--resume"):
        train(arguments(rows, tmp_path / "run", **settings))
    assert [folder.name for folder in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
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
        ({"categories": ["safe", *NAMES[1:]]}, "label|safety_categories"),
    ):
        with pytest.raises(ValueError, match=message):
            train(arguments(rows, tmp_path / "run", resume=True, **{**settings, **extra}))
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-7"


def test_a_run_that_cannot_start_leaves_its_folder_free(tmp_path, rows):
    with pytest.raises(ValueError, match="matches no layer"):
        train(arguments(rows, tmp_path / "run", lora_targets="nothing"))
    bad = write_rows(tmp_path / "bad", 4, 0, safety_label="wepon_related_violence")
    with pytest.raises(ValueError, match="did you mean 'weapon_related_violence'"):
        train(arguments({"data": bad}, tmp_path / "run"))
    train(arguments(rows, tmp_path / "run"))


def test_training_stops_early_and_keeps_the_best_weights(tmp_path, rows):
    every_step = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    settings = {"early_stopping_patience": 2, "max_steps": 30, "learning_rate": 1.0, "lr_scheduler_type": "constant"}
    metrics = train(arguments(rows, tmp_path / "run", eval_data=[str(rows["eval"])], **every_step, **settings))
    state = json.loads((last_checkpoint(tmp_path / "run") / "trainer_state.json").read_text())
    losses = [log["eval_loss"] for log in state["log_history"] if "eval_loss" in log]
    assert len(losses) < 30 and min(losses) == losses[-3] == metrics["eval_loss"]


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
    with pytest.raises(AssertionError, match="again"):  # other pixels, other features
        train(arguments(rows, tmp_path / "third", min_pixels=20000, max_pixels=30000, **settings))


def test_the_guard_alone_needs_verdict_labels(tmp_path, rows):
    unlabelled = write_rows(tmp_path / "unlabelled", 4, 0, safety_label=None)
    lines = [json.loads(line) for line in unlabelled.read_text().splitlines()]
    unlabelled.write_text("".join(json.dumps(line) + "\n" for line in lines if len(line["messages"]) == 2))
    with pytest.raises(ValueError, match="no row has one; add safety_label"):
        train(arguments({"data": unlabelled}, tmp_path / "run", tuning="guard_only"))


# ------------------------------------------------------------------------------------------------- several processes


FSDP2 = {
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen2_5_VLDecoderLayer,Qwen2_5_VLVisionBlock",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


@pytest.mark.parametrize("engine", ["DDP", "FSDP2"])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_two_processes_end_with_the_weights_of_one(tmp_path, rows, engine, tuning):
    # Plain gradient descent for all weights: AdamW would blow the rounding of gradients that are zero up to steps.
    optimizer = {"optim": "sgd", "learning_rate": 0.01} if tuning == "full" else {}
    config = write_config(tmp_path / "c.yaml", rows, tuning=tuning, guard_dropout=0.0, **optimizer)
    run_here(config, "--output_dir", tmp_path / "one")
    environment = FSDP2 if engine == "FSDP2" else {}
    module = "fsdp_on_cpu" if engine == "FSDP2" else "safeqwen"
    run(config, "--output_dir", tmp_path / "two", processes=2, module=module, **environment)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one.keys() & two.keys():  # FSDP2 writes tied embeddings twice
        assert_close(one[name], two[name], atol=1e-5, rtol=0)
    assert one.keys() ^ two.keys() <= {"lm_head.weight"}


def test_a_checkpoint_of_two_processes_is_resumed_on_one(tmp_path, rows):
    settings = {"guard_dropout": 0.0, "save_strategy": "steps", "save_steps": 2}
    config = write_config(tmp_path / "c.yaml", rows, **settings)
    run_here(config, "--output_dir", tmp_path / "one")
    run(config, "--output_dir", tmp_path / "two", processes=2)
    for name in ("checkpoint-6", "checkpoint-7", "final"):
        folder = tmp_path / "two" / name
        folder.rename(tmp_path / name)
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    (tmp_path / "two" / "run.json").write_text(json.dumps({**record, "metrics": None}))
    run_here(config, "--output_dir", tmp_path / "two", "--resume")
    assert_same_weights(tmp_path / "one", tmp_path / "two", tolerance=1e-5)
    assert not PeftModel.from_pretrained(
        load_base(DEMO_CHECKPOINT, dtype=torch.float32), tmp_path / "two" / "final"
    ).training


def test_two_processes_compute_the_features_of_one(tmp_path, rows):
    optimizer = {"optim": "sgd", "guard_learning_rate": 0.01}
    config = write_config(tmp_path / "c.yaml", rows, tuning="guard_only", guard_dropout=0.0, **optimizer)
    run_here(config, "--output_dir", tmp_path / "one", "--feature_cache", tmp_path / "cache_one")
    run(config, "--output_dir", tmp_path / "two", "--feature_cache", tmp_path / "cache_two", processes=2)
    (one,), (two,) = (tmp_path / "cache_one").iterdir(), (tmp_path / "cache_two").iterdir()
    assert one.name == two.name
    assert_close(load_file(one)["features"], load_file(two)["features"], atol=1e-5, rtol=1e-5)
    assert_same_weights(tmp_path / "one", tmp_path / "two", tolerance=1e-5)


# ------------------------------------------------------------------------------------------------------------ command


def test_the_command_lists_every_bad_row_and_starts_nothing(tmp_path, rows):
    bad = write_rows(tmp_path / "bad", 3, 0, safety_label="knife")
    config = write_config(tmp_path / "c.yaml", {"data": bad}, output_dir=str(tmp_path / "run"))
    process = subprocess.run(**command(config), capture_output=True, text=True, timeout=100)
    assert process.returncode == 2 and process.stderr.count("label 'knife' is no category") == 3
    assert "data.jsonl, row 3" in process.stderr and "Traceback" not in process.stderr
    assert not (tmp_path / "run").exists()


def test_secrets_of_the_command_line_are_not_recorded(tmp_path, rows):
    config = write_config(tmp_path / "c.yaml", rows, output_dir=str(tmp_path / "run"), max_steps=1)
    words = ["--hub_token", "hf_first", "--hub-token=hf_second", "--seed", "3"]
    assert safeqwen_cli.main(["train", str(config), *words]) == 0
    record = (tmp_path / "run" / "run.json").read_text()
    assert "hf_" not in record and "--hub_token '***' '--hub-token=***' --seed 3" in record


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
    train(arguments(rows, tmp_path / "part", frozen=r"^model\.visual\.", **settings))
    part = load_base(tmp_path / "part" / "final", dtype=torch.float32)
    assert part._untrained() and all(name.startswith("model.visual.") for name in part._untrained())
    for name, parameter in part.model.visual.named_parameters():
        assert torch.equal(parameter, fresh.model.visual.get_parameter(name)), name


def test_muon_trains_the_matrices_within_the_towers_and_goes_on_where_it_was(tmp_path, rows):
    settings = {"tuning": "full", "muon_learning_rate": 0.01, "save_strategy": "steps", "save_steps": 2}
    train(arguments(rows, tmp_path / "alone", **settings))
    trainer = build_trainer(rows, tmp_path / "unused", lora=False, muon_learning_rate=0.01)
    muon, adamw = trainer.create_optimizer().optimizers
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    matrices = {names[id(parameter)] for group in muon.param_groups for parameter in group["params"]}
    assert "model.visual.blocks.0.mlp.up_proj.weight" in matrices
    assert not any(GUARD in name or "embed" in name or name.endswith("bias") for name in matrices)
    rest = {names[id(parameter)] for group in adamw.param_groups for parameter in group["params"]}
    assert matrices.isdisjoint(rest) and matrices | rest == set(names.values())

    train(arguments(rows, tmp_path / "run", **settings))
    for name in ("checkpoint-6", "checkpoint-7"):
        (tmp_path / "run" / name / "complete").unlink()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "metrics": None}))
    train(arguments(rows, tmp_path / "run", resume=True, **settings))
    assert_same_weights(tmp_path / "alone", tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"frozen": "visual"}, "goes with tuning: full"), ({"tuning": "full", "frozen": "vison"}, "matches no weight")],
)
def test_freezing_nothing_is_refused(tmp_path, rows, settings, message):
    with pytest.raises(ValueError, match=message):
        train(arguments(rows, tmp_path / "run", **settings))
