"""The config checks the guard's fields, keeps plain Qwen2.5-VL's, and says the same in both its layouts."""

import json

import pytest
from tiny import TEXT_CONFIG, TOKEN_IDS, VISION_CONFIG, nested_config
from transformers import Qwen2_5_VLConfig

from safeqwen import CATEGORIES, SafeQwen2_5_VLConfig
from safeqwen.hub.configuration_safeqwen import AUTO_MAP


PAPER_ORDER = """safe gender_discrimination race_discrimination religion_discrimination harassment
disability_discrimination drug_related_hazards property_crime facial_data_exposure identity_data_exposure
physical_self_injury suicide animal_abuse obscene_gestures physical_altercation terrorism weapon_related_violence
sexual_content financial_advice medical_advice""".split()


def test_the_defaults_are_holisafes():
    config = SafeQwen2_5_VLConfig()
    assert config.safety_categories == PAPER_ORDER
    assert config.num_safety_categories == 20
    assert (config.safety_head_hidden_scale, config.safety_num_hidden_layers, config.safety_loss_lambda) == (0.5, 1, 1)
    assert [category.name for category in CATEGORIES] == PAPER_ORDER


def test_aliases_are_those_of_holisafes_files():
    assert {alias: c.name for c in CATEGORIES for alias in c.aliases} == {
        "gender": "gender_discrimination",
        "race": "race_discrimination",
        "religion": "religion_discrimination",
    }


def test_the_flat_and_the_nested_layout_are_the_same_config():
    flat = SafeQwen2_5_VLConfig(**TEXT_CONFIG, **TOKEN_IDS, vision_config=VISION_CONFIG, safety_loss_lambda=0.5)
    nested = nested_config(safety_loss_lambda=0.5)
    for field in ("hidden_size", "num_hidden_layers", "vocab_size", "num_key_value_heads"):
        assert getattr(flat.text_config, field) == getattr(nested.text_config, field) == TEXT_CONFIG[field]
    assert flat.safety_loss_lambda == nested.safety_loss_lambda == 0.5
    assert flat.image_token_id == nested.image_token_id == 110


@pytest.mark.parametrize("layout", ["flat", "nested"])
def test_a_round_trip_through_json_keeps_everything(tmp_path, layout):
    own = {
        "safety_categories": ["safe", "cat"],
        "safety_head_hidden_scale": 2.0,
        "safety_num_hidden_layers": 2,
        "safety_loss_lambda": 0.1,
        "safety_prompt_ids": {"before": [5, 112], "after": [113]},
    }
    if layout == "flat":
        config = SafeQwen2_5_VLConfig(**TEXT_CONFIG, **TOKEN_IDS, vision_config=VISION_CONFIG, **own)
    else:
        config = nested_config(**own)
    config.save_pretrained(tmp_path)
    again = SafeQwen2_5_VLConfig.from_pretrained(tmp_path)
    for field, value in own.items():
        assert getattr(again, field) == value
    assert again.id2label == {0: "safe", 1: "cat"} and again.num_labels == 2
    for part in ("text_config", "vision_config"):
        assert again.to_dict()[part] == config.to_dict()[part]


def test_the_guards_fields_do_not_leak_into_plain_qwen(tmp_path):
    nested_config().save_pretrained(tmp_path)
    plain = Qwen2_5_VLConfig.from_pretrained(tmp_path)
    assert plain.text_config.hidden_size == TEXT_CONFIG["hidden_size"]
    assert type(plain) is Qwen2_5_VLConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"safety_categories": ["safe"]}, "two or more"),
        ({"safety_categories": []}, "two or more"),
        ({"safety_categories": ["safe", " "]}, "none empty"),
        ({"safety_categories": ["safe", 3]}, "two or more names"),
        ({"safety_categories": ["safe", "cat", "cat"]}, "none twice"),
        ({"num_safety_categories": 19}, "is 19, but safety_categories are 20"),
        ({"safety_categories": ["a", "b"], "num_safety_categories": 3}, "is 3, but safety_categories are 2"),
        ({"safety_head_hidden_scale": 0}, "safety_head_hidden_scale must be a finite number from 1e-09, got 0"),
        ({"safety_num_hidden_layers": -1}, "safety_num_hidden_layers must be a whole number from 0, got -1"),
        ({"safety_num_hidden_layers": 1.5}, "whole number"),
        ({"safety_loss_lambda": float("nan")}, "safety_loss_lambda must be a finite number"),
        ({"safety_loss_lambda": "1"}, "safety_loss_lambda must be a finite number"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        nested_config(**fields)


def test_the_code_is_always_looked_for_beside_the_weights():
    # as the library notes it when the checkpoint came from the Hub
    theirs = {name: f"someone/SafeQwen--{reference}" for name, reference in AUTO_MAP.items()}
    assert nested_config(auto_map=theirs).auto_map == AUTO_MAP


def test_the_auto_map_names_seven_classes_and_keeps_a_folders_own():
    model, view = "modeling_safeqwen.SafeQwen2_5_VLForConditionalGeneration", "modeling_safeqwen.SafeQwen2_5_VLFor"
    assert AUTO_MAP == {
        "AutoConfig": "configuration_safeqwen.SafeQwen2_5_VLConfig",
        **dict.fromkeys(["AutoModel", "AutoModelForVision2Seq", "AutoModelForImageTextToText"], model),
        **dict.fromkeys(["AutoModelForMultimodalLM", "AutoModelForCausalLM"], model),
        "AutoModelForImageClassification": f"{view}ImageClassification",
    }
    own = {"AutoModelForSequenceClassification": "modeling_own.Own", "AutoModel": "modeling_own.Other"}
    assert nested_config(auto_map=own).auto_map == {**own, **AUTO_MAP}


def test_the_default_prompt_is_the_released_models():
    """Its chat template around one picture: "You are a helpful assistant." and the user's turn."""
    assert SafeQwen2_5_VLConfig().safety_prompt_ids == {
        "before": [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198, 151652],
        "after": [151653, 151645, 198],
    }
    changed = SafeQwen2_5_VLConfig()
    changed.safety_prompt_ids["before"].append(1)
    assert SafeQwen2_5_VLConfig().safety_prompt_ids["before"][-1] == 151652


def test_labels_are_the_categories_whatever_the_library_sets():
    config = nested_config(safety_categories=["safe", "cat"])
    assert config.id2label == {0: "safe", 1: "cat"}
    config.safety_categories = ["safe", "dog"]
    config.num_labels = 2  # which sets LABEL_0 and LABEL_1
    assert config.id2label == {0: "safe", 1: "dog"}


def test_architectures_and_dtype_are_written_into_both_parts():
    config = nested_config(dtype="bfloat16", text_config={**TEXT_CONFIG, "dtype": "float16"})
    fields = config.to_dict()
    for part in (fields, fields["text_config"], fields["vision_config"]):
        assert part["architectures"] == ["SafeQwen2_5_VLForConditionalGeneration"]
        assert str(part["dtype"]).removeprefix("torch.") == "bfloat16"


def test_the_flags_of_an_earlier_version_are_no_longer_written(tmp_path):
    nested_config().save_pretrained(tmp_path)
    assert "safety_untrained" not in json.loads((tmp_path / "config.json").read_text())
