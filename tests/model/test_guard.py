"""`guard` gives forward's verdict for less work, and splits it by picture and by patch."""

import pytest
import torch
from tiny import Pic, batch, head_by_hand, stock_hidden_states
from torch import nn
from torch.testing import assert_close

from safeqwen.hub.guard_safeqwen import pool


CAT, DOG, SUN = Pic(4, 6, seed=1), Pic(4, 4, seed=2), Pic(8, 4, seed=3)
CLIP = Pic(4, 6, seed=4, frames=3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_prompt_verdict_is_forwards(model, side):
    inputs = batch([5, CAT, 7, 8, 9, 9, 9], [6, 7], [SUN, 4, CLIP], [DOG, CAT, 5], padding_side=side)
    expected = model(**inputs, do_safety=True)
    verdict = model.guard(**inputs)
    assert set(verdict) == {"img_safety_logits", "img_safety_probs"}
    assert_close(verdict.img_safety_logits, expected.img_safety_logits, equal_nan=True, atol=1e-5, rtol=1e-5)
    assert_close(verdict.img_safety_probs, expected.img_safety_probs, equal_nan=True, atol=1e-5, rtol=1e-5)
    assert verdict.img_safety_probs[1].isnan().all()


def test_each_pictures_verdict_is_pooled_over_its_own_tokens(model, stock, state_dict):
    inputs = batch([5, CAT, 7, CLIP, 8], [9, 9], [DOG, SUN])
    hidden = stock_hidden_states(stock, inputs)
    # prompt 0 is the longest: 5 <start> 6 cat tokens <end> 7 <start> 18 clip tokens <end> 8
    # prompt 2 is padded on the left by 15: <start> 4 dog tokens <end> <start> 8 sun tokens <end>
    spans = [(0, 2, 8), (0, 11, 29), (2, 16, 20), (2, 22, 30)]
    pooled = torch.stack([hidden[row, start:stop].mean(0) for row, start, stop in spans])
    verdict = model.guard(**inputs, granularity="image")
    assert_close(verdict.img_safety_logits, head_by_hand(state_dict, pooled), atol=1e-5, rtol=1e-5)
    assert_close(verdict.img_safety_probs, head_by_hand(state_dict, pooled).softmax(-1), atol=1e-5, rtol=1e-5)


def test_the_patch_map_is_the_guard_on_each_token_in_its_place(model, stock, state_dict):
    inputs = batch([5, CAT, 7, CLIP])
    hidden = stock_hidden_states(stock, inputs)[0]
    maps = model.guard(**inputs, granularity="patch").img_safety_logits
    assert [tuple(one.shape) for one in maps] == [(2, 3, 20), (3, 2, 3, 20)]
    cat, clip = 2, 11  # first tokens
    for row in range(2):
        for column in range(3):
            expected = head_by_hand(state_dict, hidden[cat + 3 * row + column])
            assert_close(maps[0][row, column], expected, atol=1e-5, rtol=1e-5)
            for frame in range(3):
                expected = head_by_hand(state_dict, hidden[clip + 6 * frame + 3 * row + column])
                assert_close(maps[1][frame, row, column], expected, atol=1e-5, rtol=1e-5)


def test_a_picture_that_differs_in_one_corner_differs_in_that_corner_of_the_first_layers(model):
    """The rows and columns of a map are the picture's: features of later patches only move later entries."""
    inputs = batch([CAT])
    changed = {**inputs, "pixel_values": inputs["pixel_values"].clone()}
    changed["pixel_values"][-4:] += 3.0  # the last merged patch: bottom right
    # Attention within the vision tower is mutual; switching its blocks off leaves the causal language model alone.
    for block in model.model.visual.blocks:
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.zeros_(block.attn.proj.bias)
    before, after = (model.guard(**x, granularity="patch").img_safety_logits[0] for x in (inputs, changed))
    moved = (after - before).abs().amax(-1) > 1e-4
    assert moved.tolist() == [[False, False, False], [False, False, True]]


def test_a_text_only_batch_gives_none(model):
    for granularity in ("prompt", "image", "patch"):
        verdict = model.guard(**batch([5, 6, 7], [8]), granularity=granularity)
        assert verdict.img_safety_logits is None and verdict.img_safety_probs is None


def test_prompts_as_embeddings_are_refused(model):
    inputs = batch([5, CAT, 7])
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
    with pytest.raises(ValueError, match="a verdict needs the prompt as input_ids"):
        model.guard(inputs_embeds=embeddings, **inputs)


def test_token_types_of_a_processor_are_taken_and_change_nothing(model):
    inputs = batch([5, CAT, 7])
    expected = model.guard(**inputs).img_safety_logits
    verdict = model.guard(**inputs, mm_token_type_ids=(inputs["input_ids"] == 110).int())
    assert torch.equal(verdict.img_safety_logits, expected)


def test_an_argument_that_no_processor_makes_is_refused(model):
    with pytest.raises(TypeError, match="pixel_value"):
        model.guard(**batch([5, CAT]), pixel_value=None)


def test_picture_states_pooled_by_ones_own_hand_are_what_guard_scores(model, state_dict):
    inputs = batch([5, CAT, 7, SUN], [9, 9], [CLIP])
    states, pictures = model.picture_states(**inputs)
    # 5 <start> 6 cat tokens <end> 7 <start> 8 sun tokens; the third prompt is padded on the left
    padding = inputs["attention_mask"][2].eq(0).sum().item()
    spans = [(p.row, p.start, p.size, p.shape) for p in pictures]
    assert spans == [(0, 2, 6, (2, 3)), (0, 11, 8, (4, 2)), (2, padding + 1, 18, (3, 2, 3))]
    assert states.shape == (3, padding + 19, 64) and not states[1].any()
    for granularity, rows in (("prompt", [0, 2]), ("image", slice(None))):
        pooled = pool(states, pictures, granularity)
        by_hand = head_by_hand(state_dict, pooled)
        verdict = model.guard(**inputs, granularity=granularity).img_safety_logits
        assert_close(verdict[rows], by_hand, atol=1e-5, rtol=1e-5)


def test_nothing_after_the_last_picture_and_no_lm_head_and_no_cache_is_computed(model):
    seen = {}

    def record(module, args, kwargs, output):
        seen["length"] = output.last_hidden_state.shape[1]
        seen["rows"] = output.last_hidden_state.shape[0]
        seen["cache"] = output.past_key_values

    def fail(*args):
        raise AssertionError("guard ran lm_head")

    model.model.language_model.register_forward_hook(record, with_kwargs=True)
    model.lm_head.register_forward_hook(fail)
    model.guard(**batch([5, CAT, *range(20, 60)], [6, 7]))
    # the text-only row, as long as its padding, is left out; 5 <start> and 6 tokens are kept
    assert seen == {"length": 8, "rows": 1, "cache": None}


def test_nothing_of_a_call_stays_on_the_module(model):
    def state():
        keep = (str, int, float, bool, set, type(None))
        return {
            (name, field): value if isinstance(value, keep) else id(value)
            for name, module in model.named_modules()
            for field, value in vars(module).items()
            if field != "rope_deltas"  # the library's own, which every answer leaves
        }

    inputs = batch([5, CAT, 7], [SUN])
    model.generate(**inputs, max_new_tokens=2)
    before, rope_deltas = state(), model.model.rope_deltas
    model.guard(**batch([SUN, SUN], [CLIP]), granularity="patch")
    assert model.model.rope_deltas is rope_deltas  # an answer that is being given meanwhile needs them
    model(**inputs, do_safety=True)
    model.generate(**inputs, safety_threshold=0.5, max_new_tokens=2, return_dict_in_generate=True)
    assert state() == before


def test_an_unknown_granularity_is_refused(model):
    with pytest.raises(ValueError, match="'image', 'patch'., got 'pixel'"):
        model.guard(**batch([5, CAT]), granularity="pixel")


def test_training_mode_is_refused(model):
    model.train()
    with pytest.raises(RuntimeError, match=r"model.eval\(\)"):
        model.guard(**batch([5, CAT]))
    with pytest.raises(RuntimeError, match=r"model.eval\(\)"):
        model.generate(**batch([5, CAT]), do_safety=True)


def test_guard_needs_no_gradient(model):
    assert not model.guard(**batch([5, CAT])).img_safety_logits.requires_grad


def test_pictures_of_a_batch_are_judged_apart(model):
    one = model.guard(**batch([CAT], [DOG]), granularity="image").img_safety_logits
    two = model.guard(**batch([DOG], [CAT]), granularity="image").img_safety_logits
    assert_close(one.flip(0), two, atol=1e-5, rtol=1e-5)
