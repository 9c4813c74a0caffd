"""The verdict of `forward` is the guard's algebra on stock Qwen2.5-VL's hidden states, and nothing else changes."""

import pytest
import torch
from tiny import (
    IMAGE,
    VIDEO,
    Pic,
    batch,
    build_guarded,
    for_stock,
    head_by_hand,
    stock_hidden_states,
    tokens,
)
from torch.testing import assert_close

from safeqwen.hub.guard_safeqwen import pool
from safeqwen.hub.pictures_safeqwen import Picture


CAT, DOG, SUN = Pic(4, 6, seed=1), Pic(4, 4, seed=2), Pic(8, 4, seed=3)
CLIP = Pic(4, 4, seed=4, frames=3)


def verdict_by_hand(stock, state_dict, inputs):
    hidden = stock_hidden_states(stock, inputs)
    is_picture = (inputs["input_ids"] == IMAGE) | (inputs["input_ids"] == VIDEO)
    pooled = torch.stack([row[mask].mean(0) for row, mask in zip(hidden, is_picture, strict=True)])
    return head_by_hand(state_dict, pooled)


@pytest.mark.parametrize(
    "prompts",
    [
        [[5, CAT, 7, 8]],
        [[5, CAT, 7, DOG, 9], [6, SUN]],
        [[5, CLIP, 7]],
        [[5, CLIP, 6, CAT, 7], [DOG]],
    ],
    ids=["one picture", "several pictures", "video", "video and pictures"],
)
def test_the_verdict_is_the_guard_on_stocks_mean_picture_features(model, stock, state_dict, prompts):
    inputs = batch(*prompts)
    output = model(**inputs, do_safety=True)
    expected = verdict_by_hand(stock, state_dict, inputs)
    assert_close(output.img_safety_logits, expected, atol=1e-5, rtol=1e-5)
    assert_close(output.img_safety_probs, expected.exp() / expected.exp().sum(-1, keepdim=True))
    assert output.img_safety_probs.std() > 0.02  # the weights are such that categories differ


def test_logits_and_losses_are_stocks_to_the_bit(model, stock):
    inputs = batch([5, CAT, 7, 8, 9], [6, 7, SUN, 8])
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    expected = stock(**for_stock(inputs), labels=labels)
    for kwargs in ({}, {"do_safety": True}):
        output = model(**inputs, labels=labels, **kwargs)
        assert torch.equal(output.logits, expected.logits)
        assert torch.equal(output.loss, expected.loss)
    assert model(**inputs).img_safety_logits is None


def test_everything_stock_returns_is_returned(model, stock):
    inputs = batch([5, CAT, 7])
    wanted = {"output_hidden_states": True, "use_cache": True}
    output, expected = model(**inputs, do_safety=True, **wanted), stock(**for_stock(inputs), **wanted)
    assert set(output) == set(expected) | {"img_safety_logits", "img_safety_probs"}
    for ours, theirs in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(ours, theirs)
    as_tuple = model(**inputs, do_safety=True, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[-1], output.img_safety_probs)
    kept = model(**inputs, logits_to_keep=2)
    assert torch.equal(kept.logits, stock(**for_stock(inputs), logits_to_keep=2).logits)


def test_batched_verdicts_equal_single_ones_on_either_padding_side(model):
    prompts = [[5, CAT, 7, 8, 9, 10, 11], [SUN, 3], [4, DOG, 5, CAT, 6, 7]]
    single = torch.cat([model(**batch(prompt), do_safety=True).img_safety_logits for prompt in prompts])
    for side in ("left", "right"):
        together = model(**batch(*prompts, padding_side=side), do_safety=True).img_safety_logits
        assert_close(together, single, atol=1e-5, rtol=1e-5)


def test_text_after_the_picture_moves_no_verdict_and_text_before_it_does(model):
    base = model(**batch([5, CAT]), do_safety=True).img_safety_logits
    after = model(**batch([5, CAT, 30, 31, 32, 33]), do_safety=True).img_safety_logits
    before = model(**batch([50, CAT]), do_safety=True).img_safety_logits
    assert_close(after, base, atol=1e-5, rtol=1e-5)
    assert (before - base).abs().max() > 1e-3


def test_rows_without_a_picture_are_nan_and_a_text_only_batch_gives_none(model):
    mixed = model(**batch([5, CAT, 7], [6, 7, 8]), do_safety=True)
    assert mixed.img_safety_probs[1].isnan().all() and mixed.img_safety_logits[1].isnan().all()
    assert_close(mixed.img_safety_logits[:1], model(**batch([5, CAT, 7]), do_safety=True).img_safety_logits)
    text = model(**batch([5, 6, 7]), do_safety=True)
    assert text.img_safety_logits is None and text.img_safety_probs is None


def test_token_types_in_the_inputs_change_nothing(model):
    inputs = batch([5, CAT, 7], [DOG, 6, SUN])
    without = model(**inputs, do_safety=True)
    types = (inputs["input_ids"] == IMAGE).int()
    for given in (types, torch.zeros_like(types)):  # right ones, and those of a collator that knows no pictures
        output = model(**inputs, mm_token_type_ids=given, do_safety=True)
        assert torch.equal(output.logits, without.logits)
        assert torch.equal(output.img_safety_logits, without.img_safety_logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_give_float32_verdicts(state_dict, model, dtype):
    inputs = batch([5, CAT, 7], [SUN])
    half = build_guarded(state_dict).to(dtype)
    output = half(**{**inputs, "pixel_values": inputs["pixel_values"].to(dtype)}, do_safety=True)
    assert output.logits.dtype == dtype
    assert output.img_safety_logits.dtype == output.img_safety_probs.dtype == torch.float32
    assert_close(output.img_safety_probs.sum(-1), torch.ones(2))
    full = model(**inputs, do_safety=True).img_safety_probs
    assert (output.img_safety_probs - full).abs().max() < (0.02 if dtype == torch.float16 else 0.15)


def test_half_precision_features_are_averaged_in_float32():
    # The mean of 1 and 1 + 2^-10 lies between two neighbours of float16.
    features = torch.full((4096, 1), 1.0, dtype=torch.float16)
    features[::2] = 1.0009765625
    pooled = pool(features[None], [Picture(row=0, start=0, size=4096, shape=(64, 64))])
    assert pooled.dtype == torch.float32
    assert pooled.item() == pytest.approx(1.00048828125, abs=1e-7)


# ------------------------------------------------------------------------------------------------------------- losses


def test_the_loss_is_lm_loss_plus_lambda_times_cross_entropy(state_dict, stock):
    model = build_guarded(state_dict, safety_loss_lambda=0.25)
    inputs = batch([5, CAT, 7], [6, SUN, 8], [9, DOG, 9])
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    output = model(**inputs, labels=labels, safety_labels=torch.tensor([3, -100, 0]))
    logits = verdict_by_hand(stock, state_dict, inputs)
    log_probs = logits - logits.exp().sum(-1, keepdim=True).log()
    safety_loss = -(log_probs[0, 3] + log_probs[2, 0]) / 2
    assert_close(output.safety_loss, safety_loss, atol=1e-5, rtol=1e-5)
    lm_loss = stock(**for_stock(inputs), labels=labels).loss
    assert_close(output.loss, lm_loss + 0.25 * safety_loss, atol=1e-5, rtol=1e-5)


def test_labels_of_pictures_and_of_prompts_weigh_the_same_in_the_loss(model, stock, state_dict):
    inputs = batch([5, CAT, 7, DOG, 9], [6, SUN], [4, 4, CLIP])
    pictures = [[5, CAT], [5, CAT, 7, DOG], [6, SUN], [4, 4, CLIP]]  # what follows a picture cannot move it
    labels, picture_labels = torch.tensor([3, -100, 0]), torch.tensor([2, 5, 7, -100])
    output = model(**inputs, safety_labels=labels, picture_categories=picture_labels)

    rows = []
    for prompt in pictures:
        hidden = stock_hidden_states(stock, batch(prompt))
        rows.append(hidden[0, -prompt[-1].num_tokens - 1 : -1].mean(0))  # before <|vision_end|>
    by_picture = head_by_hand(state_dict, torch.stack(rows))
    assert_close(output.picture_safety_logits, by_picture, atol=1e-5, rtol=1e-5)
    assert_close(by_picture, model.guard(**inputs, granularity="image").img_safety_logits, atol=1e-5, rtol=1e-5)
    by_prompt = verdict_by_hand(stock, state_dict, inputs)
    log_probs = torch.cat([by_prompt, by_picture]).log_softmax(-1)
    expected = -(log_probs[0, 3] + log_probs[2, 0] + log_probs[3, 2] + log_probs[4, 5] + log_probs[5, 7]) / 5
    assert_close(output.safety_loss, expected, atol=1e-5, rtol=1e-5)


def test_safety_labels_alone_give_the_weighted_safety_loss(state_dict):
    model = build_guarded(state_dict, safety_loss_lambda=2.0)
    output = model(**batch([5, CAT, 7]), safety_labels=torch.tensor([3]))
    assert_close(output.loss, 2.0 * output.safety_loss)
    assert output.img_safety_probs is not None


def test_labels_may_be_int32(model):
    inputs, labels = batch([5, CAT, 7]), torch.tensor([3])
    assert_close(model(**inputs, safety_labels=labels.int()).loss, model(**inputs, safety_labels=labels).loss)


def test_training_mode_gives_no_verdict_without_labels(model):
    inputs = batch([5, CAT, 7])
    with pytest.raises(RuntimeError, match=r"model.eval\(\)"):
        model.train()(**inputs, do_safety=True)
    assert model(**inputs, do_safety=True, safety_labels=torch.tensor([3])).img_safety_probs is not None


def test_a_guard_whose_weights_are_stored_as_integers_gets_whole_features(model):
    """As quantised layers do: a stand-in that keeps integers under `weight` and computes what the layer computed."""
    inputs = batch([5, CAT, 7], [SUN])
    expected = model(**inputs, do_safety=True).img_safety_probs
    layer = model.img_safety_head.mlp[0]

    class Quantised(torch.nn.Module):
        weight = torch.zeros(1, dtype=torch.uint8)

        def forward(self, features):
            return layer(features)

    model.img_safety_head.mlp[0] = Quantised()
    assert torch.equal(model(**inputs, do_safety=True).img_safety_probs, expected)


def test_unlabelled_rows_give_the_guard_a_zero_gradient(model):
    for inputs, labels in (
        (batch([5, CAT, 7], [8, 9]), torch.tensor([-100, -100])),
        (batch([5, 6, 7]), torch.tensor([-100])),
    ):
        model.zero_grad()
        output = model(**inputs, labels=inputs["input_ids"], safety_labels=labels)
        output.loss.backward()
        assert output.safety_loss == 0
        gradients = [parameter.grad for parameter in model.img_safety_head.parameters()]
        assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_a_row_without_a_picture_does_not_spoil_the_gradient_of_the_others(model):
    def gradient(inputs, labels):
        model.zero_grad()
        model(**inputs, safety_labels=torch.tensor(labels)).loss.backward()
        return model.img_safety_head.mlp[0].weight.grad.clone()

    assert_close(gradient(batch([5, CAT, 7], [8, 9]), [4, -100]), gradient(batch([5, CAT, 7]), [4]))


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([20, 0]), r"holds 20, but the config has 20 categories \(0-19"),
        (torch.tensor([-1, 0]), "holds -1"),
        (torch.tensor([0]), r"integers \(torch.long\) of shape \(2,\), got torch.int64 of shape"),
        (torch.tensor([[0], [0]]), r"integers \(torch.long\) of shape \(2,\), got torch.int64 of shape"),
        (torch.tensor([0.0, 1.0]), "tensor of integers"),
        (torch.tensor([True, False]), "tensor of integers"),
        ([0, 1], "tensor of integers .* got list"),
    ],
)
def test_bad_safety_labels_are_refused(model, labels, message):
    with pytest.raises(ValueError, match=message):
        model(**batch([5, CAT], [SUN]), safety_labels=labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 20, 0]), "picture_categories holds 20"),
        (torch.tensor([0, 0]), r"of shape \(3,\), got torch.int64 of shape"),
        ([0, 1, 2], "picture_categories must be a tensor of integers"),
    ],
)
def test_bad_labels_of_pictures_are_refused(model, labels, message):
    inputs = batch([5, CAT, 7, DOG], [SUN])
    with pytest.raises(ValueError, match=message):
        model(**inputs, safety_labels=torch.tensor([0, -100]), picture_categories=labels)
    with pytest.raises(ValueError, match="need safety_labels beside them"):
        model(**inputs, picture_categories=torch.tensor([0, 0, 0]))


def test_a_label_for_a_prompt_without_a_picture_is_refused(model):
    with pytest.raises(ValueError, match=r"prompts \[1\] hold no picture"):
        model(**batch([5, CAT], [6, 7]), safety_labels=torch.tensor([0, 0]))


TORN = [112, 110, 110, 110, 6, 110, 110, 110, 113]


def spoil(inputs, **changes):
    return {key: value for key, value in {**inputs, **changes}.items() if value is not None}


@pytest.mark.parametrize("method", ["forward", "guard", "generate"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_values": None, "image_grid_thw": None}, r"runs of \[\] placeholders .* hold \[6, 4\]"),
        ({"pixel_values": None}, "pixels hold 0 patches, but image_grid_thw asks for 40"),
        ({"image_grid_thw": None}, "pixels hold 40 patches, but image_grid_thw asks for 0"),
        ({"pixel_values": torch.zeros(24, 1176)}, "pixels hold 24 patches, but image_grid_thw asks for 40"),
        (
            {"pixel_values": torch.zeros(24, 1176), "image_grid_thw": torch.tensor([[1, 4, 6]])},
            r"runs of \[6\] placeholders .* hold \[6, 4\]",
        ),
        ({"image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 6]])}, r"runs of \[4, 6\] placeholders .* hold \[6, 4\]"),
        (
            {"pixel_values": torch.zeros(56, 1176), "image_grid_thw": torch.tensor([[1, 4, 6], [1, 4, 4], [1, 4, 4]])},
            r"runs of \[6, 4, 4\] placeholders .* hold \[6, 4\]",
        ),
        ({"input_ids": torch.tensor([[5, *TORN, 7, *tokens(DOG)]])}, r"runs of \[6, 4\] .* hold \[3, 3, 4\]"),
        ({"attention_mask": torch.tensor([[1] * 5 + [0] + [1] * 10])}, "hide part of a picture"),
    ],
    ids=[
        "no pictures",
        "grids without pixels",
        "pixels without grids",
        "too few pixels",
        "one picture less",
        "swapped pictures",
        "one picture more",
        "a picture in two pieces",
        "masked picture",
    ],
)
def test_pictures_that_do_not_fit_their_placeholders_are_refused(model, method, changes, message):
    inputs = spoil(batch([5, CAT, 7, DOG]), **changes)
    call = {
        "forward": lambda: model(**inputs, do_safety=True),
        "guard": lambda: model.guard(**inputs),
        "generate": lambda: model.generate(**inputs, do_safety=True, max_new_tokens=1),
    }[method]
    with pytest.raises(ValueError, match=message):
        call()


def test_pictures_that_belong_to_another_row_are_refused(model):
    inputs = batch([5, CAT, 7], [DOG, 8, 9, 10])
    inputs["image_grid_thw"] = inputs["image_grid_thw"].flip(0)  # the counts agree in sum only
    with pytest.raises(ValueError, match=r"runs of \[4, 6\] placeholders .* hold \[6, 4\]"):
        model(**inputs, do_safety=True)


def test_pictures_whose_placeholders_touch_are_refused(model):
    """Two runs could be cut in more than one place."""
    inputs = batch([5, CAT, DOG, 7])
    ids = inputs["input_ids"][0].tolist()
    keep = [index for index in range(len(ids)) if index not in (8, 9)]  # the first's end and the second's start
    inputs = {**inputs, "input_ids": inputs["input_ids"][:, keep], "attention_mask": inputs["attention_mask"][:, keep]}
    with pytest.raises(ValueError, match=r"runs of \[6, 4\] placeholders .* hold \[10\]"):
        model(**inputs, do_safety=True)


@pytest.mark.parametrize("granularity", ["image", "patch"])
def test_forward_splits_the_verdict_as_guard_does(model, granularity):
    inputs = batch([5, CAT, 7, DOG, 9], [9, 9], [6, SUN, CLIP])
    output, expected = (call(**inputs, granularity=granularity) for call in (judging(model), model.guard))
    for field in ("img_safety_logits", "img_safety_probs"):
        assert len(output[field]) == 4
        assert_close(output[field], expected[field], atol=1e-5, rtol=1e-5)


def judging(model):
    return lambda **inputs: model(**inputs, do_safety=True)


@pytest.mark.parametrize("granularity", ["image", "patch"])
def test_labels_of_prompts_go_with_verdicts_on_prompts(model, granularity):
    with pytest.raises(ValueError, match="safety_labels go with granularity='prompt'"):
        model(**batch([5, CAT]), safety_labels=torch.tensor([1]), granularity=granularity)


def test_an_unknown_granularity_is_refused_by_forward(model):
    with pytest.raises(ValueError, match="'image', 'patch'., got 'pixel'"):
        model(**batch([5, CAT]), do_safety=True, granularity="pixel")


def test_prompts_as_embeddings_are_stocks_without_a_verdict_and_refused_with_one(model, stock):
    inputs = for_stock(batch([5, CAT, 7], [DOG, 6, SUN]))
    embeddings = stock.get_input_embeddings()(inputs.pop("input_ids"))
    stock.model.rope_deltas = None  # what the last call left, where embeddings look for it
    expected = stock(inputs_embeds=embeddings, **inputs).logits
    assert torch.equal(model(inputs_embeds=embeddings, **inputs).logits, expected)
    with pytest.raises(ValueError, match="a verdict needs the prompt as input_ids"):
        model(inputs_embeds=embeddings, **inputs, do_safety=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_give_no_verdict(model, value):
    inputs = batch([5, CAT, 7], [SUN])
    model.model.language_model.norm.weight.data[3] = value
    for call in (lambda: model(**inputs, do_safety=True), lambda: model.guard(**inputs)):
        with pytest.raises(FloatingPointError, match="no verdict"):
            call()
    with pytest.raises(FloatingPointError, match="no verdict"):
        model.generate(**inputs, do_safety=True, max_new_tokens=2)


def test_float16_overflow_in_the_language_model_gives_no_verdict(state_dict):
    model = build_guarded(state_dict)
    model.model.language_model.layers[1].mlp.down_proj.weight.data *= 1e6
    inputs = batch([5, CAT, 7])
    inputs["pixel_values"] = inputs["pixel_values"].half()
    with pytest.raises(FloatingPointError, match="torch.bfloat16"):
        model.half()(**inputs, do_safety=True)


def test_a_picture_after_a_kept_cache_is_not_judged(model):
    cache = model(**batch([5, 6, 7]), use_cache=True).past_key_values
    inputs = batch([CAT, 8])
    inputs["attention_mask"] = torch.ones(1, 3 + inputs["input_ids"].shape[1], dtype=torch.long)
    with pytest.raises(ValueError, match="kept cache"):
        model(**inputs, past_key_values=cache, do_safety=True)
