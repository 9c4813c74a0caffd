"""Configuration of SafeQwen2.5-VL: Qwen2.5-VL's own, plus the guard's shape and the names of its categories."""

from transformers import Qwen2_5_VLConfig


# HoliSafe's taxonomy (arXiv 2506.04704), in the order of the released guard's output columns.
HOLISAFE_CATEGORIES = (
    "safe",
    "gender_discrimination",
    "race_discrimination",
    "religion_discrimination",
    "harassment",
    "disability_discrimination",
    "drug_related_hazards",
    "property_crime",
    "facial_data_exposure",
    "identity_data_exposure",
    "physical_self_injury",
    "suicide",
    "animal_abuse",
    "obscene_gestures",
    "physical_altercation",
    "terrorism",
    "weapon_related_violence",
    "sexual_content",
    "financial_advice",
    "medical_advice",
)

MODEL_CLASS = "modeling_safeqwen.SafeQwen2_5_VLForConditionalGeneration"
AUTO_MAP = {
    "AutoConfig": "configuration_safeqwen.SafeQwen2_5_VLConfig",
    "AutoModel": MODEL_CLASS,
    "AutoModelForVision2Seq": MODEL_CLASS,  # transformers 4.x; gone in 5.x
    "AutoModelForImageTextToText": MODEL_CLASS,
}

GUARD_FIELDS = (
    "safety_categories",
    "num_safety_categories",
    "safety_head_hidden_scale",
    "safety_num_hidden_layers",
    "safety_loss_lambda",
    "safety_untrained",
)


class SafeQwen2_5_VLConfig(Qwen2_5_VLConfig):
    """
    A Qwen2.5-VL configuration with a guard.

    `model_type` stays `qwen2_5_vl`, so that processors, PEFT, TRL and serving engines treat the folder as Qwen2.5-VL.

    Args:
        safety_categories (`list[str]`, *optional*, defaults to HoliSafe's 20):
            Name of each output column of the guard, in order; two or more, no duplicates, none empty.
        num_safety_categories (`int`, *optional*):
            Only checked against the length of `safety_categories`; it need not be given.
        safety_head_hidden_scale (`float`, *optional*, defaults to 0.5):
            Width of the guard's hidden layers as a multiple of the language model's hidden size.
        safety_num_hidden_layers (`int`, *optional*, defaults to 1):
            Number of hidden layers in the guard; 0 makes it a linear probe.
        safety_loss_lambda (`float`, *optional*, defaults to 1.0):
            Weight of the safety loss beside the language-modelling loss.
        safety_untrained (`list[str]`, *optional*):
            Names of tensors (or of the whole guard, `"img_safety_head"`) beside this configuration that are random,
            since they were saved before they were loaded or trained. The model does not judge with them. Written by
            `save_pretrained`.
        kwargs:
            Everything `Qwen2_5_VLConfig` takes, nested (`text_config`, `vision_config`) or flat as released.

    Raises:
        ValueError: if the categories or the guard's shape make no sense, or `num_safety_categories` contradicts
            `safety_categories`.
    """

    model_type = "qwen2_5_vl"
    _auto_class = "AutoConfig"  # makes save_pretrained copy this file and write the auto_map

    def __init__(
        self,
        safety_categories=None,
        num_safety_categories=None,
        safety_head_hidden_scale=0.5,
        safety_num_hidden_layers=1,
        safety_loss_lambda=1.0,
        safety_untrained=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        # A checkpoint fetched from the Hub names its repository here ("repo--module.Class"). The code travels with
        # every folder we save, so the map always points beside the weights.
        self.auto_map = dict(AUTO_MAP)
        self.safety_categories = list(HOLISAFE_CATEGORIES if safety_categories is None else safety_categories)
        self.safety_head_hidden_scale = safety_head_hidden_scale
        self.safety_num_hidden_layers = safety_num_hidden_layers
        self.safety_loss_lambda = safety_loss_lambda
        self.safety_untrained = list(safety_untrained or ())
        self._check_guard(num_safety_categories)

    @property
    def num_safety_categories(self):
        """`int`: number of output columns of the guard."""
        return len(self.safety_categories)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As the parent's, with overrides of the guard's fields checked like the folder's own fields."""
        override = {key: kwargs.pop(key) for key in [*kwargs] if key in GUARD_FIELDS}
        if "safety_categories" in override:  # the folder's count is that of the folder's categories
            override.setdefault("num_safety_categories", None)
        return super().from_dict({**config_dict, **override}, **kwargs)

    def to_dict(self):
        """The parent's dictionary, with `num_safety_categories` and what both generations of transformers need."""
        fields = {**super().to_dict(), "num_safety_categories": self.num_safety_categories}
        text = fields["text_config"]
        if text.get("rope_parameters"):  # transformers 5.x; 4.x knows these under other names or in another place
            rope = dict(text["rope_parameters"])
            text["rope_theta"] = rope.pop("rope_theta")
            text["rope_scaling"] = rope
            text["tie_word_embeddings"] = self.tie_word_embeddings
        return fields

    def _check_guard(self, num_safety_categories):
        names = self.safety_categories
        if len(names) < 2 or not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError(f"safety_categories must hold two or more non-empty names, got {names!r}")
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"safety_categories must not repeat a name, but {duplicates} occur more than once")
        if num_safety_categories is not None and num_safety_categories != len(names):
            raise ValueError(
                f"num_safety_categories is {num_safety_categories}, but safety_categories names {len(names)}; "
                "leave num_safety_categories out, or give one name for each column"
            )
        for field, valid, expected in (
            ("safety_head_hidden_scale", lambda value: value > 0, "a number above 0"),
            ("safety_num_hidden_layers", lambda value: value >= 0 and value == int(value), "a whole number from 0"),
            ("safety_loss_lambda", lambda value: 0 <= value < float("inf"), "a finite number from 0"),
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not valid(value):
                raise ValueError(f"{field} must be {expected}, got {value!r}")


__all__ = ["SafeQwen2_5_VLConfig"]
