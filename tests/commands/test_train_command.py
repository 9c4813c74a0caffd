"""`safeqwen train`: exit codes, and reasons of one line."""

import subprocess
import sys

from small_runs import ENVIRONMENT, write_config, write_rows

import safeqwen_cli


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
