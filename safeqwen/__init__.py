"""SafeQwen2.5-VL: Qwen2.5-VL with a guard that judges the pictures in the same pass."""

from pathlib import Path

from safeqwen.hub.configuration_safeqwen import SafeQwen2_5_VLConfig
from safeqwen.hub.modeling_safeqwen import SafeQwen2_5_VLForConditionalGeneration
from safeqwen.taxonomy import CATEGORIES, Category


__version__ = "0.1.0"

# A tiny SafeQwen that knows drawn pictograms: for trying things out, not for moderation.
DEMO_CHECKPOINT = Path(__file__).parent / "demo"

__all__ = [
    "CATEGORIES",
    "DEMO_CHECKPOINT",
    "Category",
    "SafeQwen2_5_VLConfig",
    "SafeQwen2_5_VLForConditionalGeneration",
]
