"""Configuration of SafeQwen2.5-VL: Qwen2.5-VL's own, plus the guard's shape and the names of its categories."""

from transformers import Qwen2_5_VLConfig


# HoliSafe's taxonomy (arXiv 2506.04704), in the order of the released guard's output columns.
HOLISAFE_CATEGORIES = tuple(
    """
    safe gender_discrimination race_discrimination religion_discrimination harassment disability_discrimination
    drug_related_hazards property_crime facial_data_exposure identity_data_exposure physical_self_injury suicide
    animal_abuse obscene_gestures physical_altercation terrorism weapon_related_violence sexual_content
    financial_advice medical_advice
    """.split()
)
# The token ids of the released model's chat prompt around one picture without text: system prompt and user's turn.
RELEASED_PROMPT_IDS = {
    "before": [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198, 151652],
    "after": [151653, 151645, 198],
}
ARCHITECTURE = "SafeQwen2_5_VLForConditionalGeneration"
# Vision2Seq exists in transformers 4.x only, MultimodalLM in 5.x; LLaMA-Factory looks for CausalLM.
AUTO_CLASSES = ("", "ForVision2Seq", "ForImageTextToText", "ForMultimodalLM", "ForCausalLM")
AUTO_MAP = {
    "AutoConfig": "configuration_safeqwen.SafeQwen2_5_VLConfig",
    **{f"AutoModel{suffix}": f"modeling_safeqwen.{ARCHITECTURE}" for suffix in AUTO_CLASSES},
    "AutoModelForImageClassification": "modeling_safeqwen.SafeQwen2_5_VLForImageClassification",
}


class SafeQwen2_5_VLConfig(Qwen2_5_VLConfig):
    """
    A Qwen2.5-VL configuration, nested or flat as released, with a guard.

    Args:
        safety_categories (`list[str]`, *optional*, defaults to HoliSafe's 20): name of each output column of the
            guard, in order; two or more, no duplicates, none empty. `num_safety_categories` is checked against them.
        safety_head_hidden_scale (`float`, *optional*, defaults to 0.5): width of the guard's hidden layers as a
            multiple of the language model's hidden size.
        safety_num_hidden_layers (`int`, *optional*, defaults to 1): of the guard; 0 makes it a linear probe.
        safety_loss_lambda (`float`, *optional*, defaults to 1.0): weight of the safety loss beside the LM loss.
        safety_prompt_ids (`dict[str, list[int]]`, *optional*, defaults to the released model's): token ids `"before"`
            and `"after"` the placeholders of a picture that is judged without text, for clients without a tokenizer.
    """

    model_type = "qwen2_5_vl"  # for processors, PEFT, TRL and serving engines it is Qwen2.5-VL
    _auto_class = "AutoConfig"  # makes save_pretrained copy this file and write the auto_map

    def __init__(
        self, safety_categories=None, num_safety_categories=None, safety_head_hidden_scale=0.5,
        safety_num_hidden_layers=1, safety_loss_lambda=1.0, safety_prompt_ids=None, auto_map=None, **kwargs,
    ):  # fmt: skip
        self.safety_categories = list(HOLISAFE_CATEGORIES if safety_categories is None else safety_categories)
        super().__init__(**kwargs)
        vars(self.text_config).pop("id2label", None)  # where 4.57 would look for ours
        # A checkpoint from the Hub names its repository here; but the code travels with every folder that is saved.
        self.auto_map = {**(auto_map or {}), **AUTO_MAP}
        self.safety_head_hidden_scale = safety_head_hidden_scale
        self.safety_num_hidden_layers = safety_num_hidden_layers
        self.safety_loss_lambda = safety_loss_lambda
        self.safety_prompt_ids = safety_prompt_ids or {side: [*ids] for side, ids in RELEASED_PROMPT_IDS.items()}
        check_categories(self.safety_categories, num_safety_categories)
        for name, lowest in (("head_hidden_scale", 1e-9), ("num_hidden_layers", 0), ("loss_lambda", 0)):
            value, kind = getattr(self, f"safety_{name}"), "whole" if name == "num_hidden_layers" else "finite"
            if type(value) not in (int, int if kind == "whole" else float) or not lowest <= value < float("inf"):
                raise ValueError(f"safety_{name} must be a {kind} number from {lowest}, got {value!r}")

    num_safety_categories = property(lambda self: len(self.safety_categories))  # output columns of the guard
    # the categories where image classification looks for them; the library sets LABEL_0, LABEL_1, ...
    id2label = property(lambda self: dict(enumerate(self.safety_categories)), lambda self, value: None)

    def to_dict(self):
        """The parent's dictionary, with `num_safety_categories` and what both generations of transformers need."""
        fields = {**super().to_dict(), "num_safety_categories": self.num_safety_categories}
        fields["architectures"] = [ARCHITECTURE]  # what a view of the model saves is the model
        fields.pop("label2id", None)
        text = fields["text_config"]
        for part in (text, fields["vision_config"]):  # 4.57 reads both from text_config
            part["architectures"] = [ARCHITECTURE]
            if fields.get("dtype") is not None:
                part["dtype"] = fields["dtype"]
        if text.get("rope_parameters"):  # transformers 5.x; 4.x knows these under other names or in another place
            text["rope_scaling"] = dict(text["rope_parameters"])
            text["rope_theta"] = text["rope_scaling"].pop("rope_theta")
            text["tie_word_embeddings"] = self.tie_word_embeddings
        return fields


def check_categories(names, num_names=None):
    """Raises a ValueError unless `names` are two or more, all different, and `num_names` if that is given."""
    if len({*names}) < max(2, len(names)) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"safety_categories must be two or more names, none empty, none twice, got {names!r}")
    if num_names is not None and num_names != len(names):
        raise ValueError(f"num_safety_categories is {num_names}, but safety_categories are {len(names)}; leave it out")
