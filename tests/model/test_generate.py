"""`generate` says what stock Qwen2.5-VL says, to the token, and returns the verdict of its own prefill."""

import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from tiny import EOS, PAD, VERSION_4, Pic, batch, build_guarded, for_stock
from torch.testing import assert_close
from transformers import DynamicCache


CAT, DOG, SUN = Pic(4, 6, seed=1), Pic(4, 4, seed=2), Pic(8, 4, seed=3)
CLIP = Pic(4, 4, seed=4, frames=3)
WITH_VERDICT = {"do_safety": True, "return_dict_in_generate": True}

STRATEGIES = {
    "greedy": {"do_sample": False},
    "beams": {"num_beams": 3, "do_sample": False},
    "beams, two returned": {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
    "sampling": {"do_sample": True, "top_k": 0},
    "sampling, three returned": {"do_sample": True, "num_return_sequences": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 3, "do_sample": False},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tokens_are_stocks_and_the_verdict_is_forwards(model, stock, strategy):
    prompts = [[5, CAT, 7, 8, 9, 7, 8]] if strategy == "prompt lookup" else [[5, CAT, 7], [6, SUN, 8, DOG], [9, 10]]
    inputs, kwargs = batch(*prompts), {**STRATEGIES[strategy], "max_new_tokens": 12}
    torch.manual_seed(0)
    expected = stock.generate(**for_stock(inputs), **kwargs)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**inputs, **kwargs), expected)
    torch.manual_seed(0)
    output = model.generate(**inputs, **kwargs, **WITH_VERDICT)
    assert torch.equal(output.sequences, expected)
    verdict = model(**inputs, do_safety=True)
    assert_close(output.img_safety_probs, verdict.img_safety_probs, equal_nan=True, atol=1e-5, rtol=1e-5)
    assert_close(output.img_safety_logits, verdict.img_safety_logits, equal_nan=True, atol=1e-5, rtol=1e-5)
    assert output.safety_flagged is None


def test_scores_are_stocks_to_the_bit(model, stock):
    inputs, kwargs = batch([5, CAT, 7]), {"max_new_tokens": 6, "do_sample": False, "output_logits": True}
    expected = stock.generate(**for_stock(inputs), **kwargs, return_dict_in_generate=True)
    output = model.generate(**inputs, **kwargs, **WITH_VERDICT)
    assert all(torch.equal(*pair) for pair in zip(output.logits, expected.logits, strict=True))


def test_videos_are_judged_as_pictures_are(model, stock):
    inputs = batch([5, CLIP, 6, CAT, 7])
    expected = stock.generate(**for_stock(inputs), max_new_tokens=8, do_sample=False)
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False, **WITH_VERDICT)
    assert torch.equal(output.sequences, expected)
    assert_close(output.img_safety_logits, model(**inputs, do_safety=True).img_safety_logits)


def test_the_prefill_is_the_only_pass_over_the_pictures(model):
    calls = []
    model.model.visual.register_forward_hook(lambda *args: calls.append("visual"))
    model.img_safety_head.register_forward_hook(lambda *args: calls.append("guard"))
    model.model.language_model.register_forward_hook(
        lambda module, args, kwargs, output: calls.append(output.last_hidden_state.shape[1]), with_kwargs=True
    )
    model.generate(**batch([5, CAT, 7]), max_new_tokens=4, min_new_tokens=4, do_sample=False, **WITH_VERDICT)
    assert calls == ["visual", 10, "guard", 1, 1, 1]


def test_decode_steps_get_stocks_arguments(model, stock):
    def arguments(which, inputs, **kwargs):
        seen = []
        handle = which.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append({key for key, value in kwargs.items() if value is not None}),
            with_kwargs=True,
        )
        which.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, **kwargs)
        handle.remove()
        return seen[1:]

    inputs = batch([5, CAT, 7])
    assert arguments(model, inputs, **WITH_VERDICT) == arguments(stock, for_stock(inputs))


def test_a_text_only_batch_answers_without_a_verdict(model, stock):
    inputs = batch([5, 6, 7], [8, 9])
    output = model.generate(**inputs, max_new_tokens=5, do_sample=False, **WITH_VERDICT)
    assert torch.equal(output.sequences, stock.generate(**for_stock(inputs), max_new_tokens=5, do_sample=False))
    assert output.img_safety_probs is None and output.safety_flagged is None


def test_without_a_dictionary_the_tokens_come_alone(model, stock):
    inputs = batch([5, CAT, 7])
    expected = stock.generate(**for_stock(inputs), max_new_tokens=5, do_sample=False)
    assert torch.equal(model.generate(**inputs, do_safety=True, max_new_tokens=5, do_sample=False), expected)
    assert torch.equal(model.generate(inputs.pop("input_ids"), **inputs, max_new_tokens=5, do_sample=False), expected)


def test_a_prompt_is_needed_for_a_verdict_only(model, stock):
    assert torch.equal(model.generate(max_new_tokens=3), stock.generate(max_new_tokens=3))
    with pytest.raises(ValueError, match="a verdict needs the prompt as input_ids"):
        model.generate(max_new_tokens=3, do_safety=True)


# ---------------------------------------------------------------------------------------------------------- threshold


@pytest.mark.parametrize("strategy", ["greedy", "beams", "sampling, three returned"])
def test_flagged_prompts_end_after_the_prefill_and_the_others_are_untouched(mild, stock, strategy):
    kwargs = {**STRATEGIES[strategy], "max_new_tokens": 8, "pad_token_id": 0}
    inputs = batch([5, CAT, 7], [6, SUN, 8], [9, 10, 11])
    unsafe = 1 - mild.guard(**inputs).img_safety_probs[:, 0]
    flagged_row = int(unsafe[:2].argmax())
    threshold = float(unsafe[:2].mean())
    torch.manual_seed(0)
    expected = stock.generate(**for_stock(inputs), **kwargs)
    torch.manual_seed(0)
    output = mild.generate(**inputs, **kwargs, safety_threshold=threshold, return_dict_in_generate=True)
    assert output.safety_flagged.tolist() == [row == flagged_row for row in range(3)]
    per_prompt = kwargs.get("num_return_sequences", 1)
    prompt_length = inputs["input_ids"].shape[1]
    for row, sequence in enumerate(output.sequences):
        if row // per_prompt == flagged_row:
            answer = sequence[prompt_length:].tolist()
            assert answer[0] == EOS and set(answer) <= {EOS, PAD}
        elif strategy != "sampling, three returned":  # a flagged row takes no part in the draw of the others' tokens
            width = min(len(sequence), len(expected[row]))
            assert torch.equal(sequence[:width], expected[row, :width])


def test_a_batch_that_is_all_flagged_costs_the_prefill_alone(model):
    calls = []
    model.lm_head.register_forward_hook(lambda *args: calls.append(1))
    inputs = batch([5, CAT, 7], [6, SUN, 8])
    output = model.generate(
        **inputs, max_new_tokens=30, do_sample=False, safety_threshold=0.0, return_dict_in_generate=True
    )
    assert output.safety_flagged.all()
    assert len(calls) == 1
    assert output.sequences.shape[1] == inputs["input_ids"].shape[1] + 1


def test_the_threshold_is_reached_by_equality(mild):
    inputs = batch([5, CAT, 7])
    exact = mild.generate(**inputs, max_new_tokens=1, **WITH_VERDICT).img_safety_probs[:, 0]
    unsafe = float(1 - exact)
    kwargs = {"max_new_tokens": 1, "return_dict_in_generate": True}
    assert mild.generate(**inputs, **kwargs, safety_threshold=unsafe).safety_flagged.item()
    above = unsafe + 1e-6
    assert not mild.generate(**inputs, **kwargs, safety_threshold=above).safety_flagged.item()


def test_the_threshold_works_without_a_dictionary(model):
    inputs = batch([5, CAT, 7])
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False, safety_threshold=0.0)
    assert tokens[0, -1] == EOS and tokens.shape[1] == inputs["input_ids"].shape[1] + 1


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), True, "0.5"])
def test_a_threshold_that_is_no_probability_is_refused(model, threshold):
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        model.generate(**batch([5, CAT]), safety_threshold=threshold)


def test_a_threshold_needs_a_category_that_is_safe(state_dict):
    model = build_guarded(state_dict, safety_categories=[f"harm {i}" for i in range(20)])
    with pytest.raises(ValueError, match="needs a category 'safe'"):
        model.generate(**batch([5, CAT]), safety_threshold=0.5)


def test_a_threshold_needs_an_end_of_sequence_token(model):
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="eos_token_id"):
        model.generate(**batch([5, CAT]), safety_threshold=0.5)


def test_a_static_cache_changes_no_verdict_and_no_token(model, stock):
    inputs, kwargs = batch([5, CAT, 7]), {"max_new_tokens": 5, "do_sample": False, "cache_implementation": "static"}
    kwargs["disable_compile"] = True
    output = model.generate(**inputs, **kwargs, **WITH_VERDICT)
    assert torch.equal(output.sequences, stock.generate(**for_stock(inputs), **kwargs))
    assert_close(output.img_safety_logits, model(**inputs, do_safety=True).img_safety_logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("strategy", ["greedy", "beams, two returned", "sampling, three returned"])
@pytest.mark.parametrize("granularity", ["image", "patch"])
def test_the_verdict_of_the_prefill_has_guards_granularities(model, granularity, strategy):
    inputs = batch([5, CAT, 7, DOG], [9, 10], [6, CLIP, 8])
    kwargs = {**STRATEGIES[strategy], "max_new_tokens": 2, **WITH_VERDICT}
    output = model.generate(**inputs, **kwargs, granularity=granularity)
    expected = model.guard(**inputs, granularity=granularity)
    for field in ("img_safety_logits", "img_safety_probs"):
        assert_close(output[field], expected[field], atol=1e-5, rtol=1e-5)


def test_one_bad_picture_flags_its_prompt_when_pictures_are_judged_singly(mild):
    inputs = batch([5, CAT, 7, DOG, 8], [9, 10], [6, SUN, 8])
    first, second, third = (1 - mild.guard(**inputs, granularity="image").img_safety_probs[:, 0]).tolist()
    kwargs = {"max_new_tokens": 1, "return_dict_in_generate": True, "granularity": "image"}
    for threshold in (0.0, *(value + nudge for value in (first, second, third) for nudge in (-1e-5, 1e-5)), 1.0):
        threshold = min(max(threshold, 0.0), 1.0)
        flagged = mild.generate(**inputs, **kwargs, safety_threshold=threshold).safety_flagged.tolist()
        assert flagged == [max(first, second) >= threshold, False, third >= threshold]


def test_a_threshold_does_not_go_with_patches(model):
    with pytest.raises(ValueError, match="got 'patch'"):
        model.generate(**batch([5, CAT]), safety_threshold=0.5, granularity="patch")


def test_an_unknown_granularity_is_refused_by_generate(model):
    with pytest.raises(ValueError, match="granularity must be"):
        model.generate(**batch([5, CAT]), do_safety=True, granularity="pixel")


def test_a_streamer_hears_the_verdict_before_the_answer(model):
    events = []

    class Streamer:
        def put(self, value):
            events.append(value.tolist())

        def put_verdict(self, verdict):
            events.append(verdict.img_safety_probs)

        def end(self):
            events.append("end")

    inputs = batch([5, CAT, 7])
    output = model.generate(**inputs, max_new_tokens=3, do_sample=False, streamer=Streamer(), **WITH_VERDICT)
    prompt, verdict, *answer, end = events
    assert prompt == inputs["input_ids"].tolist() and end == "end"
    assert torch.equal(verdict, output.img_safety_probs)
    assert sum(answer, []) == output.sequences[0, inputs["input_ids"].shape[1] :].tolist()


def test_only_a_verdict_that_nobody_hears_is_warned_about(model, monkeypatch):
    messages = []
    monkeypatch.setattr(sys.modules[type(model).__module__].logger, "warning_once", messages.append)
    settings = {**batch([5, CAT, 7]), "max_new_tokens": 1, "do_sample": False, "do_safety": True}
    listener = SimpleNamespace(put=lambda value: None, end=lambda: None, put_verdict=lambda verdict: None)
    model.generate(**settings, streamer=listener)
    assert not messages
    model.generate(**settings)
    assert "return_dict_in_generate=True only" in messages[0]


# ----------------------------------------------------------------------------------------- what goes without a verdict


def kept_cache(which, first):
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True}
    turn = which.generate(**first, **settings)
    return turn.past_key_values, turn.sequences[0].tolist()[first["input_ids"].shape[1] :]


def chunks(which, inputs):
    return {**inputs, "prefill_chunk_size": 4}


def embeddings(which, inputs):
    return {**inputs, "inputs_embeds": which.get_input_embeddings()(inputs["input_ids"])}


def embeddings_alone(which, inputs):
    inputs = embeddings(which, inputs)
    return {name: value for name, value in inputs.items() if name != "input_ids"}


def assistant(which, inputs):
    return {**inputs, "assistant_model": copy.deepcopy(which)}


def cache(which, inputs):
    past, answered = kept_cache(which, inputs)
    whole = torch.tensor([[*inputs["input_ids"][0].tolist(), *answered, 20, 21]])
    return {"input_ids": whole, "attention_mask": torch.ones_like(whole), "past_key_values": past}


WITHOUT_VERDICT = {
    "a kept cache": cache,
    "inputs_embeds": embeddings,
    "inputs_embeds alone": embeddings_alone,
    "assistant_model": assistant,
}
if not VERSION_4:  # transformers 4.57 gives every chunk all the pictures, and so fails or errs
    WITHOUT_VERDICT["prefill_chunk_size"] = chunks


@pytest.mark.parametrize("what", WITHOUT_VERDICT)
def test_what_has_no_verdict_is_stocks_without_one_and_is_refused_with_one(model, stock, what):
    change, settings = WITHOUT_VERDICT[what], {"max_new_tokens": 5, "do_sample": False}
    inputs = batch([5, CAT, 7])
    model.model.rope_deltas = stock.model.rope_deltas = None  # what the last call left, where embeddings look for it
    expected = stock.generate(**change(stock, for_stock(inputs)), **settings)
    assert torch.equal(model.generate(**change(model, inputs), **settings), expected)
    for asked in ({"do_safety": True}, {"safety_threshold": 0.5}):
        message = "input_ids" if what == "inputs_embeds alone" else f"a verdict does not go with {what}"
        with pytest.raises(ValueError, match=message):
            model.generate(**change(model, inputs), **settings, **asked)


def test_chunks_that_the_generation_config_asks_for_are_refused_with_a_verdict(model):
    model.generation_config.prefill_chunk_size = 4
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        model.generate(**batch([5, CAT]), do_safety=True, max_new_tokens=2)
    config = copy.deepcopy(model.generation_config)
    model.generation_config.prefill_chunk_size = None
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        model.generate(**batch([5, CAT]), generation_config=config, do_safety=True, max_new_tokens=2)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_a_kept_cache_is_refused_by_either_of_its_names(model, name):
    past, _ = kept_cache(model, batch([5, CAT, 7]))
    with pytest.raises(ValueError, match="kept cache"):
        model.generate(**batch([5, CAT, 7, 8, 9, 10]), **{name: past}, do_safety=True, max_new_tokens=2)


def test_an_empty_cache_of_ones_own_is_no_kept_one(model):
    inputs, settings = batch([5, CAT, 7]), {"max_new_tokens": 5, "do_sample": False, **WITH_VERDICT}
    output = model.generate(**inputs, **settings, past_key_values=DynamicCache())
    expected = model.generate(**inputs, **settings)
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.equal(output.img_safety_probs, expected.img_safety_probs)


def test_encoded_pictures_are_refused_with_a_verdict(model):
    encoded = {"mm_encoder_outputs": {"image": object()}}
    with pytest.raises(ValueError, match="mm_encoder_outputs"):
        model.generate(**batch([5, CAT, 7]), **encoded, do_safety=True)


@pytest.mark.parametrize("where", ["argument", "generation config"])
def test_a_threshold_does_not_go_with_assisted_decoding(model, where):
    lookup = {"prompt_lookup_num_tokens": 3} if where == "argument" else {}
    if where == "generation config":
        model.generation_config.prompt_lookup_num_tokens = 3
    with pytest.raises(ValueError, match="prompt_lookup_num_tokens|assistant_model"):
        model.generate(**batch([5, CAT, 7, 8, 7, 8]), **lookup, safety_threshold=0.5, max_new_tokens=3)


# ---------------------------------------------------------------------------------------------- conversations, threads


def test_several_turns_work_by_passing_the_whole_conversation_anew(model, stock):
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True}
    conversation = []
    for turn in ([5, CAT, 7], [20, 21], [20, SUN, 21, CLIP, 22]):
        conversation += turn
        inputs = batch(conversation)
        output = model.generate(**inputs, **settings, do_safety=True)
        assert torch.equal(output.sequences, stock.generate(**for_stock(inputs), **settings).sequences)
        assert_close(output.img_safety_logits, model.guard(**inputs).img_safety_logits, atol=1e-5, rtol=1e-5)
        conversation += output.sequences[0].tolist()[inputs["input_ids"].shape[1] :]


def test_threads_that_generate_at_once_get_their_own_verdicts(model):
    # Same shape of prompt: stock keeps rope_deltas on the module, so other shapes could mix texts on 4.x.
    prompts = [batch([5, Pic(4, 4, seed=seed), 7]) for seed in range(4)]
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **WITH_VERDICT}
    expected = [model.generate(**inputs, **settings) for inputs in prompts]
    results = {}
    barrier = threading.Barrier(len(prompts))

    def work(index):
        barrier.wait()
        results[index] = [model.generate(**prompts[index], **settings) for _ in range(5)]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(prompts))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for index, wanted in enumerate(expected):
        for output in results[index]:
            assert torch.equal(output.img_safety_probs, wanted.img_safety_probs)
            assert torch.equal(output.sequences, wanted.sequences)
    distinct = torch.cat([output.img_safety_probs for output in expected])
    assert torch.pdist(distinct).min() > 1e-3


def test_threads_with_prompts_of_different_shapes_get_their_own_verdicts(model):
    """Their texts too on 5.x; on 4.x the library keeps rope_deltas on the module, which can mix those."""
    prompts = [batch([5, Pic(4, 4, seed=1), 7]), batch([5, Pic(8, 6, seed=2), 9, Pic(4, 4, seed=3), 9, 9, 9])]
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **WITH_VERDICT}
    expected = [model.generate(**inputs, **settings) for inputs in prompts]
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda index: (index, model.generate(**prompts[index], **settings)), [0, 1] * 8))
    for index, output in outputs:
        assert torch.equal(output.img_safety_probs, expected[index].img_safety_probs)
        assert VERSION_4 or torch.equal(output.sequences, expected[index].sequences)
