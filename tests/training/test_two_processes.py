"""Two processes end with what one ends with."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from in_turn import cut_off
from peft import PeftModel
from safetensors.torch import load_file
from small_runs import (
    CONFIGS,
    ENVIRONMENT,
    assert_same_weights,
    run_here,
    weights,
    write_config,
)
from torch.testing import assert_close

from safeqwen import DEMO_CHECKPOINT
from safeqwen.loading import load_base
from safeqwen.training.checkpoints import last_checkpoint


ACCELERATE = CONFIGS / "accelerate"


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
    # Labels that are no category; rows with and without pictures. A process that went on would wait for ever.
    assert not [out for out in (ddp / "bad", fsdp2 / "bad") if (out / "run.json").exists()]


def test_a_model_of_the_hub_is_recorded_with_its_commit(ddp):
    record = json.loads((ddp / "guard_only" / "run.json").read_text())
    assert (record["base_model"], record["base_revision"]) == ("someone/Demo", COMMIT)
