"""SafeQwen2.5-VL: Qwen2.5-VL with a guard that judges the pictures in the same pass."""

from safeqwen.data.taxonomy import CATEGORIES, Category
from safeqwen.hub.configuration_safeqwen import SafeQwen2_5_VLConfig
from safeqwen.hub.modeling_safeqwen import SafeQwen2_5_VLForConditionalGeneration
from safeqwen.judging.decision import Decision
from safeqwen.judging.load import load
from safeqwen.judging.pipeline import SafetyPipeline
from safeqwen.judging.policy import SafetyPolicy
from safeqwen.judging.verdict import Verdict, to_pandas
from safeqwen.loading import DEMO_CHECKPOINT
from safeqwen.pictures import UnreadableImage, read_bytes, read_image
from safeqwen.prompt import plain_text
from safeqwen_cli import __version__  # noqa: F401


__all__ = [
    "CATEGORIES",
    "DEMO_CHECKPOINT",
    "Category",
    "Decision",
    "SafeQwen2_5_VLConfig",
    "SafeQwen2_5_VLForConditionalGeneration",
    "SafetyPipeline",
    "SafetyPolicy",
    "UnreadableImage",
    "Verdict",
    "load",
    "plain_text",
    "read_bytes",
    "read_image",
    "show",
    "to_pandas",
]


def __getattr__(name):
    if name == "show":  # loaded when asked for: what only judges draws nothing
        from safeqwen.showing.notebook import show

        return show
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
