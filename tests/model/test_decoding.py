"""Streamers, assisted decoding and chunked prefill do what they do in stock Qwen2.5-VL, and the verdict comes too."""

import pytest
import torch
from tiny import EOS, VERSION_4, Pic, batch, build_guarded, build_stock, for_stock, random_state_dict
from torch.testing import assert_close
from transformers.generation.streamers import BaseStreamer


CAT, DOG, SUN = Pic(4, 6, seed=1), Pic(4, 4, seed=2), Pic(8, 4, seed=3)
GREEDY = {"max_new_tokens": 12, "do_sample": False}
WITH_VERDICT = {"do_safety": True, "return_dict_in_generate": True}


@pytest.fixture
def model(mild):
    return mild  # 1 - p(safe) stays under a threshold of 1


class Recorder(BaseStreamer):
    """Keeps what `generate` streams: the prompt, then the tokens as they come."""

    def __init__(self):
        self.chunks = []
        self.ended = 0

    def put(self, value):
        self.chunks.append(value.flatten().tolist())

    def end(self):
        self.ended += 1


# ---------------------------------------------------------------------------------------------------------- streamers


@pytest.mark.parametrize("kwargs", [{}, {"prompt_lookup_num_tokens": 3}], ids=["greedy", "prompt lookup"])
@pytest.mark.parametrize("ours", [{}, WITH_VERDICT], ids=["plain", "verdict"])
def test_the_tokens_streamed_are_stocks_one_by_one(model, stock, kwargs, ours):
    inputs = batch([5, CAT, 7, 8, 9, 7, 8])
    expected, streamed = Recorder(), Recorder()
    sequences = stock.generate(**for_stock(inputs), **GREEDY, **kwargs, streamer=expected)
    model.generate(**inputs, **GREEDY, **kwargs, **ours, streamer=streamed)
    assert streamed.chunks == expected.chunks and streamed.ended == expected.ended == 1
    assert sum(streamed.chunks, []) == sequences[0].tolist()


def test_a_flagged_answer_streams_its_end_and_nothing_else(model):
    inputs, streamed = batch([5, CAT, 7]), Recorder()
    output = model.generate(**inputs, **GREEDY, safety_threshold=0.0, return_dict_in_generate=True, streamer=streamed)
    assert output.safety_flagged.item()
    assert streamed.chunks == [inputs["input_ids"][0].tolist(), [EOS]] and streamed.ended == 1


# -------------------------------------------------------------------------------------------------- assisted decoding


@pytest.fixture(scope="module")
def other_weights(state_dict):
    """Near enough for some of its guesses to be right, far enough for others to be wrong."""
    noise = random_state_dict(seed=1)
    floats = [name for name, tensor in state_dict.items() if tensor.is_floating_point()]
    return {**state_dict, **{name: state_dict[name] + 0.15 * (noise[name] - noise[name].mean()) for name in floats}}


ASSISTANTS = {"stock": build_stock, "guarded": build_guarded}


def generate_and_count(model, inputs, **kwargs):
    """What `generate` returns, and how many passes it took."""
    passes = []
    handle = model.lm_head.register_forward_hook(lambda *args: passes.append(1))
    output = model.generate(**inputs, **kwargs)
    handle.remove()
    return output, len(passes)


PROMPTS = pytest.mark.parametrize(
    "prompt", [[5, CAT, 7, 8], [5, SUN, 6, DOG, 7], [5, 6, 7, 8]], ids=["picture", "pictures", "text"]
)


@pytest.mark.parametrize("assistant", ASSISTANTS)
@pytest.mark.parametrize("settings", [GREEDY, {**GREEDY, "do_sample": True}], ids=["greedy", "sampling"])
@PROMPTS
def test_assisted_answers_are_stocks(model, stock, other_weights, assistant, settings, prompt):
    inputs = batch(prompt)
    # `generate` counts its guesses up and down on the assistant: a new one for every call.
    helper = build_stock(other_weights)
    torch.manual_seed(0)
    expected, num_passes = generate_and_count(stock, for_stock(inputs), **settings, assistant_model=helper)
    assert num_passes < settings["max_new_tokens"]  # some guesses were right
    helper = ASSISTANTS[assistant](other_weights)
    torch.manual_seed(0)
    output, passes = generate_and_count(model, inputs, **settings, assistant_model=helper)
    assert torch.equal(output, expected) and passes == num_passes
    for asked in (WITH_VERDICT, {"safety_threshold": 1.0}):
        with pytest.raises(ValueError, match="a verdict does not go with assistant_model"):
            model.generate(**inputs, **settings, **asked, assistant_model=helper)


def test_a_guarded_assistant_serves_stock_as_a_stock_one_does(stock, other_weights):
    inputs = for_stock(batch([5, CAT, 7, 8]))
    expected = generate_and_count(stock, inputs, **GREEDY, assistant_model=build_stock(other_weights))
    served = generate_and_count(stock, inputs, **GREEDY, assistant_model=build_guarded(other_weights))
    assert torch.equal(served[0], expected[0])
    assert served[1] == expected[1]


@PROMPTS
def test_prompt_lookup_answers_are_stocks_and_the_verdict_is_forwards(model, stock, prompt):
    inputs, kwargs = batch([*prompt, 9, 7, 8]), {**GREEDY, "prompt_lookup_num_tokens": 3}
    expected, num_passes = generate_and_count(stock, for_stock(inputs), **kwargs)
    streamed, verdicts = Recorder(), []
    streamed.put_verdict = verdicts.append
    output, passes = generate_and_count(
        model, inputs, **kwargs, **WITH_VERDICT, granularity="image", streamer=streamed
    )
    assert torch.equal(output.sequences, expected) and passes == num_passes
    verdict = model.guard(**inputs, granularity="image").img_safety_logits
    if verdict is None:
        assert output.img_safety_logits is None and not verdicts
    else:
        assert_close(output.img_safety_logits, verdict, atol=1e-5, rtol=1e-5)
        assert [each.img_safety_logits.shape for each in verdicts] == [verdict.shape]


def test_guesses_that_hold_placeholders_fail_as_in_stock(model, state_dict):
    """Prompt lookup guesses on from where the prompt's last tokens stood before: here, before the picture."""
    inputs, kwargs = batch([7, 8, CAT, 9, 7, 8]), {**GREEDY, "prompt_lookup_num_tokens": 4}
    with pytest.raises((ValueError, IndexError)) as in_stock:
        build_stock(state_dict).generate(**for_stock(inputs), **kwargs)
    for ours in ({}, WITH_VERDICT):
        with pytest.raises(in_stock.type):
            model.generate(**inputs, **kwargs, **ours)


# ---------------------------------------------------------------------------------------------------- chunked prefill


def tokens_or_error(model, inputs, kwargs):
    try:
        return model.generate(**inputs, **kwargs).tolist()
    except (ValueError, IndexError, RuntimeError) as error:
        return type(error), str(error)


@pytest.mark.parametrize("chunk_size", [4, 8, 64], ids=["within the picture", "at its end", "whole prompt"])
@pytest.mark.parametrize("prompt", [[5, CAT, 7, 8, 9], [5, 6, 7, 8, 9, 10]], ids=["picture", "text"])
def test_chunked_prefill_does_what_it_does_in_stock(model, state_dict, prompt, chunk_size):
    """4.57 fails with any chunk on a new Qwen2.5-VL, and goes by the last prompt's positions on a used one."""
    stock, inputs = build_stock(state_dict), batch(prompt)
    for _ in range(2):
        chunked = {**GREEDY, "prefill_chunk_size": chunk_size}
        expected = tokens_or_error(stock, for_stock(inputs), chunked)
        assert tokens_or_error(model, inputs, chunked) == expected
        whole = stock.generate(**for_stock(inputs), **GREEDY)
        assert torch.equal(model.generate(**inputs, **GREEDY), whole)
        assert VERSION_4 or expected == whole.tolist()
