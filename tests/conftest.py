"""Tiny random models and hand-made batches, on CPU; nothing is downloaded."""

import os
import tempfile


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Remote code is copied to a folder of each process's own, so that runs side by side cannot meet there.
REMOTE_CODE = tempfile.TemporaryDirectory(prefix="safeqwen-modules-")
os.environ["HF_MODULES_CACHE"] = REMOTE_CODE.name

import pytest  # noqa: E402
import torch  # noqa: E402
from tiny import build_guarded, build_stock, random_state_dict  # noqa: E402


torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def precision_of_no_other_test(monkeypatch):
    """On 4.57 training arguments with fp16 or bf16 set this for all that come after them in the process."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


@pytest.fixture(scope="session")
def state_dict():
    return random_state_dict()


@pytest.fixture
def model(state_dict):
    """A guarded model with all its weights loaded, in evaluation mode."""
    return build_guarded(state_dict)


@pytest.fixture
def mild(state_dict):
    """A guard whose probabilities lie well within 0 and 1."""
    return build_guarded(
        {**state_dict, "img_safety_head.mlp.3.weight": state_dict["img_safety_head.mlp.3.weight"] / 4}
    )


@pytest.fixture(scope="session")
def stock(state_dict):
    """transformers' own Qwen2.5-VL on the same weights."""
    return build_stock(state_dict)
