"""The demo checkpoint's processor, and its collator."""

import pytest
from transformers import AutoProcessor

from safeqwen import DEMO_CHECKPOINT
from safeqwen.data.collator import SafetyCollator


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(DEMO_CHECKPOINT)


@pytest.fixture(scope="module")
def collator(processor):
    return SafetyCollator(processor)
