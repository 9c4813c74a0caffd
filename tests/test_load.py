"""`safeqwen.load`: a model that judges, and its processor, with sensible settings."""

import shutil

import pytest
import torch
from tiny import assert_same_tensors, write_released_folder

import safeqwen
from safeqwen import DEMO_CHECKPOINT


def test_load_gives_a_judging_model_and_its_processor(tmp_path, state_dict, model):
    folder = write_released_folder(tmp_path / "released", state_dict, torch.float16)
    for file in DEMO_CHECKPOINT.iterdir():  # a processor
        if file.suffix in (".json", ".jinja") and not (folder / file.name).exists():
            shutil.copy(file, folder)
    loaded, processor = safeqwen.load(folder, device="cpu")
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert not loaded.training and loaded.dtype == torch.float32  # saved in float16
    assert_same_tensors(loaded, {name: tensor.half().float() for name, tensor in state_dict.items()})
    assert safeqwen.load(folder, device="cpu", dtype="auto")[0].dtype == torch.float16
    with pytest.raises(ValueError, match="not both"):
        safeqwen.load(folder, device="cpu", device_map="auto")


def test_load_without_a_path_is_the_demo():
    loaded, processor = safeqwen.load()
    assert loaded.config.text_config.hidden_size == 192
    assert processor.tokenizer.convert_tokens_to_ids("<|image_pad|>") == loaded.config.image_token_id


def test_load_passes_the_hub_switches_on(tmp_path, state_dict):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--SafeQwen-tiny"
    folder = write_released_folder(repository / "snapshots" / commit, state_dict)
    for file in DEMO_CHECKPOINT.iterdir():
        if file.suffix in (".json", ".jinja") and not (folder / file.name).exists():
            shutil.copy(file, folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "tried").write_text(commit)
    hub = {"cache_dir": tmp_path, "revision": "tried", "local_files_only": True, "token": "hf_none"}
    loaded, _ = safeqwen.load("someone/SafeQwen-tiny", device="cpu", **hub)
    assert_same_tensors(loaded, state_dict)
    with pytest.raises(OSError):
        safeqwen.load("someone/SafeQwen-tiny", device="cpu", **{**hub, "revision": "main"})
