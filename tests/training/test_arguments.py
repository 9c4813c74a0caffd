"""Settings: what they may be, what is refused, and those that are published."""

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from small_runs import CONFIGS, write_config

from safeqwen.training.arguments import read_config


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
        ({"report_to": ["nothing"]}, [], "report_to names nothing, which is not installed: pip install nothing"),
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


@pytest.mark.parametrize("file", sorted((CONFIGS / "accelerate").glob("*.yaml")), ids=lambda f: f.name)
def test_the_published_configurations_of_accelerate_hold_settings_that_exist(file):
    config = load_config_from_file(str(file))  # refuses others at the top level
    assert config.distributed_type.value in file.stem.upper() or file.stem == "ddp"
    known = vars(launch_command_parser().parse_args(["script.py"]))
    nested = {**config.fsdp_config, **config.deepspeed_config}
    assert set(nested) <= set(known)


# The demo's own stages have a setting of their own: tests/demo/test_muon.py.
PUBLISHED = [file for file in sorted(CONFIGS.glob("*.yaml")) if "tools.demo.muon" not in file.read_text()]


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.name)
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
