"""Small trainings of the demo checkpoint on drawings: rows, settings, what they end with."""

import json
import os
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoProcessor

from safeqwen import DEMO_CHECKPOINT
from safeqwen.data.collator import SafetyCollator
from safeqwen.data.rows import read_rows
from safeqwen.data.taxonomy import Taxonomy
from safeqwen.loading import load_base
from safeqwen.training.arguments import SafetyTrainingArguments, read_config
from safeqwen.training.run import add_lora, train
from safeqwen.training.trainer import SafetyTrainer
from tools.demo.pictograms import draw


ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
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


def arguments(rows, output, arguments_class=SafetyTrainingArguments, **settings):
    return arguments_class(**{**SETTINGS, "data": [str(rows["data"])], "output_dir": str(output), **settings})


def write_config(file, rows, **settings):
    file.write_text(yaml.safe_dump({**SETTINGS, "data": str(rows["data"]), **settings}))
    return file


ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
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


def build_trainer(rows, output, lora=True, trainer_class=SafetyTrainer, **settings):
    args = arguments(rows, output, **settings)
    model = load_base(DEMO_CHECKPOINT, dtype=torch.float32)
    collator = SafetyCollator(AutoProcessor.from_pretrained(DEMO_CHECKPOINT))
    data = read_rows(args.data, Taxonomy(model.config.safety_categories), collator)
    return trainer_class(
        model=add_lora(model, args) if lora else model, args=args, data_collator=collator, train_dataset=data
    )
