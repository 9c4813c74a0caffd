"""The run's folder: whose it is, what a run is resumed from, and what a full disk leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from in_turn import cut_off
from safetensors import safe_open
from small_runs import (
    ENVIRONMENT,
    NAMES,
    arguments,
    assert_same_weights,
    run_here,
    write_config,
    write_rows,
)

from safeqwen.publishing.record import load_run
from safeqwen.training import checkpoints
from safeqwen.training import run as run_module
from safeqwen.training.checkpoints import last_checkpoint
from safeqwen.training.run import train


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
    for folder in tmp_path.glob("run/checkpoint-*"):
        with pytest.raises(ValueError, match="holds checkpoints or a result of something else"):
            train(arguments(rows, tmp_path / "run", resume=True, **settings))
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match="holds checkpoints or a result of something else"):
        train(arguments(rows, tmp_path / "run", **settings))  # for the result that is left


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


def test_of_two_runs_started_into_one_folder_at_the_same_time_only_one_trains(tmp_path, rows, monkeypatch):
    """The second starts, and ends, after the first has found the folder free and before it trains."""
    load = run_module.load_model

    def load_after_another_run(*args):
        monkeypatch.setattr(run_module, "load_model", load)
        train(arguments(rows, tmp_path / "run", seed=2))
        return load(*args)

    monkeypatch.setattr(run_module, "load_model", load_after_another_run)
    with pytest.raises(ValueError, match="a run that was started at the same time; choose another output_dir"):
        train(arguments(rows, tmp_path / "run", seed=1))
    train(arguments(rows, tmp_path / "alone", seed=2))
    assert_same_weights(tmp_path / "run", tmp_path / "alone")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["seed"] == 2


def test_a_folder_that_could_not_be_claimed_for_want_of_room_is_free_again(tmp_path, monkeypatch):
    def full(run, out, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(json, "dump", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.claim(tmp_path / "run", {})
    checkpoints.claim(tmp_path / "run", {})


@pytest.mark.parametrize("tuning", ["lora", "guard_only", "full"])
def test_the_result_of_a_run_names_its_categories(tmp_path, rows, tuning):
    train(arguments(rows, tmp_path / "run", tuning=tuning, categories=NAMES, max_steps=1))
    final = tmp_path / "run" / "final"
    if tuning == "full":
        assert json.loads((final / "config.json").read_text())["safety_categories"] == NAMES
        return
    (file,) = final.glob("*.safetensors")
    with safe_open(file, "pt") as tensors:
        assert json.loads(tensors.metadata()["safety_categories"]) == NAMES
    load_run(tmp_path / "run")
