"""Drawings, the demo's pipeline, and a home for what FiftyOne and Ray write."""

import os
import tempfile
from pathlib import Path


HOME = tempfile.TemporaryDirectory(
    prefix="safeqwen-home-", ignore_cleanup_errors=True
)  # FiftyOne's database goes last
os.environ |= {"HOME": HOME.name, "FIFTYONE_DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # Ray's workers start elsewhere

import numpy as np  # noqa: E402
import pytest  # noqa: E402

import safeqwen  # noqa: E402
from tools.demo.pictograms import draw  # noqa: E402


SEED = 5_000_000


@pytest.fixture(scope="session")
def judge():
    return safeqwen.SafetyPipeline(*safeqwen.load())


@pytest.fixture(scope="session")
def pictures():
    """Category -> a drawing of it (`PIL.Image.Image`), each of another size."""
    harms = ("safe", "weapon_related_violence", "suicide")
    return {harm: draw(harm, SEED + i, size=112 + 28 * i) for i, harm in enumerate(harms)}


@pytest.fixture(scope="session")
def arrays(pictures):
    """Category -> its drawing as uint8 (height, width, 3)."""
    return {harm: np.asarray(picture) for harm, picture in pictures.items()}


@pytest.fixture
def policy():
    """Makes a policy that takes an action for every unsafe picture."""
    categories = [category.name for category in safeqwen.CATEGORIES]

    def policy(action, **settings):
        return safeqwen.SafetyPolicy(categories=categories, actions={"unsafe": action}, **settings)

    return policy


@pytest.fixture
def untrained():
    """The demo with a guard that was started anew."""
    model, processor = safeqwen.load()
    model.img_safety_head.mlp[-1].bias.data.zero_()
    return model, processor
