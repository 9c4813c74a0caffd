"""The configurations that fine-tune the demo on categories of one's own hold settings that exist."""

import pytest
from tiny import ROOT

from safeqwen.training.arguments import read_config
from tools.demo.muon import MuonTrainingArguments


@pytest.mark.parametrize("name", ["own_guard", "own_lora"])
def test_the_settings_exist_and_agree_with_one_another(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    file = ROOT / "tools" / "demo" / "configs" / f"{name}.yaml"
    args = read_config(file, ["--output_dir", "run"])
    assert args.global_batch_size == args.per_device_train_batch_size * args.gradient_accumulation_steps
    assert f"safeqwen train {file.relative_to(ROOT)} --output_dir" in file.read_text()


@pytest.mark.parametrize(("stage", "rate"), [("text", 0.03), ("joint", 0.01)])
def test_every_stage_of_the_build_has_its_configuration(stage, rate):
    file = ROOT / "tools" / "demo" / "configs" / f"{stage}.yaml"
    command = f"python -m tools.demo.muon {file.relative_to(ROOT)} --output_dir build/demo/runs/{stage}"
    assert command in file.read_text()
    assert read_config(file, ["--output_dir", "o"], MuonTrainingArguments).muon_learning_rate == rate
