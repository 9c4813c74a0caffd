"""`safeqwen train`: exit codes, and reasons of one line."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from small_runs import ENVIRONMENT, write_config, write_rows

import safeqwen_cli


@pytest.fixture
def config(tmp_path):
    rows = {"data": write_rows(tmp_path / "rows", 4, 0)}
    return write_config(tmp_path / "c.yaml", rows, output_dir=str(tmp_path / "run"), max_steps=1)


def test_the_command_lists_every_bad_row_and_starts_nothing(tmp_path):
    bad = write_rows(tmp_path / "bad", 3, 0, safety_label="knife")
    config = write_config(tmp_path / "c.yaml", {"data": bad}, output_dir=str(tmp_path / "run"))
    command = [sys.executable, "-m", "safeqwen", "train", config]
    process = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert process.returncode == 2 and process.stderr.count("label 'knife' is no category") == 3
    assert "data.jsonl, row 3" in process.stderr and "Traceback" not in process.stderr
    assert not (tmp_path / "run").exists()


def test_secrets_of_the_command_line_are_not_recorded(tmp_path, config):
    words = ["--hub_token", "hf_first", "--hub-token=hf_second", "--seed", "3"]
    assert safeqwen_cli.main(["train", str(config), *words]) == 0
    record = (tmp_path / "run" / "run.json").read_text()
    assert "hf_" not in record and "--hub_token HIDDEN --hub-token=HIDDEN --seed 3" in record
    assert not (tmp_path / "run" / "final" / "training_args.bin").exists()


def reason_of(capsys, *words):
    """What the command says when it ends with 2."""
    capsys.readouterr()
    assert safeqwen_cli.main(["train", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_a_configuration_that_cannot_be_read_is_told_in_a_sentence(tmp_path, capsys):
    missing = tmp_path / "missing.yaml"
    expected = f"safeqwen train: {missing} cannot be read: there is no such file\n"
    assert reason_of(capsys, missing) == expected
    assert "cannot be read: Is a directory\n" in reason_of(capsys, tmp_path)
    (tmp_path / "c.yaml").write_bytes(b"model: \xff")
    assert "is not UTF-8" in reason_of(capsys, tmp_path / "c.yaml")


def test_without_tensorboard_a_run_goes_on_and_says_so_unless_it_was_asked_for(tmp_path, config, capsys, monkeypatch):
    find_spec = importlib.util.find_spec

    def without_tensorboard(name, *args):
        return None if name.startswith("tensorboard") else find_spec(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", without_tensorboard)
    assert "pip install tensorboard, or report_to: none" in reason_of(capsys, config, "--report_to", "tensorboard")
    config.write_text(config.read_text().replace("report_to: []\n", ""))
    assert safeqwen_cli.main(["train", str(config)]) == 0
    assert "losses are not logged: to log them, pip install tensorboard\n" in capsys.readouterr().err


def test_a_full_disk_is_told_in_one_line_with_the_remedy(tmp_path, config, capsys, monkeypatch):
    def full(value, file, *args, **kwargs):
        raise OSError(28, "No space left on device", str(file))

    with monkeypatch.context() as patch:
        patch.setattr(json, "dump", full)  # of run.json
        reason = reason_of(capsys, config).splitlines()[-1]
    assert reason.startswith("safeqwen train: the disk is full ") and reason.endswith("start it again with --resume")
    monkeypatch.setattr(torch, "save", full)
    reason = reason_of(capsys, config, "--resume").splitlines()[-1]
    assert "final could not be written" in reason and "make room, and --resume goes on from the beginning" in reason
