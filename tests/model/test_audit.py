"""What an auditor who had never seen the code made it answer wrongly: each is refused, or right, now."""

import copy

import pytest
import torch
from test_quantization import INT8, QUANTIZERS
from tiny import INPUTS, Pic, batch, build_guarded, for_stock, write_released_folder
from torch.testing import assert_close
from transformers import StoppingCriteriaList

from safeqwen import SafeQwen2_5_VLForConditionalGeneration
from safeqwen.hub.modeling_safeqwen import Prefill


CAT, DOG = Pic(4, 6, seed=1), Pic(4, 4, seed=2)


@pytest.mark.parametrize("quantizer", INT8)
def test_quantising_does_not_excuse_layers_that_the_config_leaves_out(tmp_path, state_dict, quantizer):
    folder = write_released_folder(tmp_path, state_dict, num_hidden_layers=1)
    with pytest.raises(RuntimeError, match="are left over"):
        SafeQwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, quantization_config=QUANTIZERS[quantizer](), dtype=torch.float32
        )


def test_several_prompts_without_a_mask_are_refused(model):
    inputs = {name: value for name, value in INPUTS.items() if name != "attention_mask"}
    calls = (model.guard, lambda **kwargs: model(**kwargs, do_safety=True))
    for call in (*calls, lambda **kwargs: model.generate(**kwargs, do_safety=True)):
        with pytest.raises(ValueError, match="attention_mask"):
            call(**inputs)
    alone = batch([5, CAT, 7])
    expected = model.guard(**alone).img_safety_probs
    del alone["attention_mask"]
    assert torch.equal(model.guard(**alone).img_safety_probs, expected)


def test_a_threshold_in_a_generation_config_counts(model):
    model.generation_config.safety_threshold = 0.0
    inputs = batch([5, CAT, 7])
    for settings in ({}, {"generation_config": copy.deepcopy(model.generation_config)}):
        output = model.generate(**inputs, **settings, max_new_tokens=4, return_dict_in_generate=True)
        assert output.safety_flagged.tolist() == [True]


def test_a_threshold_whose_verdict_never_came_lets_nothing_through():
    prefill = Prefill([object()], 1, "prompt", None)
    with pytest.raises(AttributeError):
        prefill(None, torch.zeros(1, 5))


def test_positional_arguments_of_generate_are_stocks(model, stock):
    inputs = batch([5, CAT, 7])
    ids = inputs.pop("input_ids")
    stops = StoppingCriteriaList([lambda tokens, scores, **kwargs: torch.tensor([tokens.shape[1] > ids.shape[1] + 2])])
    settings = {"max_new_tokens": 8, "do_sample": False}
    expected = stock.generate(ids, None, None, stops, **_without_ids(ids, inputs), **settings)
    assert torch.equal(model.generate(ids, None, None, stops, **inputs, **settings), expected)


def _without_ids(ids, inputs):
    return {name: value for name, value in for_stock({"input_ids": ids, **inputs}).items() if name != "input_ids"}


def test_an_all_quantised_folder_still_judges(tmp_path, state_dict):
    folder = write_released_folder(tmp_path, state_dict)
    for quantizer in INT8:
        loaded = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, quantization_config=QUANTIZERS[quantizer](), dtype=torch.float32
        )
        assert_close(loaded.guard(**INPUTS).img_safety_probs.sum(-1), torch.ones(2))
    assert build_guarded(state_dict).refusal() is None
