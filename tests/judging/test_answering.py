"""Verdict and answer of one pass: the answer is stock Qwen2.5-VL's, the verdict the engine's, in a batch or alone."""

import pytest
import torch
from tiny import VERSION_4
from torch.testing import assert_close
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

import safeqwen
from safeqwen.judging.answering import Prompt, answer
from safeqwen.judging.engine import Engine
from tools.demo.pictograms import draw


SEED = 5_000_000
PICTURES = [
    draw("suicide", SEED, size=200),
    draw("safe", SEED + 1, size=112),
    draw("weapon_related_violence", SEED + 2, size=168).resize((224, 112)),
    draw("safe", SEED + 3, size=112),
]
QUESTIONS = ["What is in this picture?", "Why?", "Describe the picture. " * 6, "Is anybody in danger?"]
PROMPTS = [Prompt([picture], text) for picture, text in zip(PICTURES, QUESTIONS)]


@pytest.fixture(scope="module")
def engine():
    return Engine(*safeqwen.load(dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def ask_stock():
    """Frames and a question -> the greedy answer of stock Qwen2.5-VL with the same weights."""
    stock = Qwen2_5_VLForConditionalGeneration.from_pretrained(safeqwen.DEMO_CHECKPOINT, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(safeqwen.DEMO_CHECKPOINT)

    def ask(frames, question):
        content = [{"type": "image"}] * len(frames) + [{"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        inputs = processor(text=[text], images=frames, return_tensors="pt")
        if VERSION_4:
            inputs.pop("mm_token_type_ids", None)
        tokens = stock.generate(**inputs, max_new_tokens=40, do_sample=False)
        return processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return ask


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_answer_is_stocks_and_the_verdict_the_engines_alone_and_in_a_batch(engine, ask_stock, batch_size):
    answered = answer(engine, PROMPTS, max_new_tokens=40, batch_size=batch_size)
    texts = [ask_stock(prompt.frames, prompt.text) for prompt in PROMPTS]
    assert [one.text for one in answered] == texts and len(set(texts)) > 1
    for one, picture in zip(answered, PICTURES):
        (expected,) = engine.judge(engine.prepare([picture]))
        assert one.probs.shape == (1, 20) and one.probs.dtype == torch.float32
        assert_close(one.probs[0], expected, atol=1e-5, rtol=0)
        assert one.error is None and one.seconds > 0


def test_the_frames_of_one_prompt_are_judged_each_by_itself_and_answered_about_together(engine, ask_stock):
    frames = [PICTURES[1], PICTURES[0]]
    (one,) = answer(engine, [Prompt(frames, QUESTIONS[0])], max_new_tokens=40)
    assert one.text == ask_stock(frames, QUESTIONS[0])
    assert_close(one.probs, torch.stack(engine.judge(engine.prepare(frames))), atol=1e-6, rtol=0)
    (only_answered,) = answer(engine, [Prompt(frames, QUESTIONS[0])], max_new_tokens=40, judge=False)
    assert only_answered.probs is None and only_answered.text == one.text


def test_answers_keep_the_order_of_their_prompts(engine):
    mixed = [Prompt([PICTURES[1], PICTURES[0]], "What?"), *PROMPTS[:2]]
    together = answer(engine, mixed, max_new_tokens=12, batch_size=4)
    for prompt, one in zip(mixed, together):
        (alone,) = answer(engine, [prompt], max_new_tokens=12)
        assert one.text == alone.text
        assert_close(one.probs, alone.probs, atol=1e-5, rtol=0)


def test_max_pixels_bounds_what_is_judged_and_answered_from(engine):
    (bounded,) = answer(engine, PROMPTS[:1], max_new_tokens=1, max_pixels=3136)
    (expected,) = engine.judge(engine.prepare(PICTURES[:1], max_pixels=3136))
    assert_close(bounded.probs[0], expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="784"):
        answer(engine, PROMPTS[:1], max_pixels=783)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), FloatingPointError("NaN")])
def test_what_a_batch_cannot_do_is_tried_in_halves_and_is_then_one_prompts_error(engine, monkeypatch, error):
    expected = answer(engine, PROMPTS, max_new_tokens=8)
    usual, rows = engine.model.generate, []

    def generate(**inputs):
        rows.append(len(inputs["input_ids"]))
        grids = inputs["image_grid_thw"]
        if (grids[:, 1] != grids[:, 2]).any():  # the wide picture
            raise error
        return usual(**inputs)

    monkeypatch.setattr(engine.model, "generate", generate)
    answered = answer(engine, PROMPTS, max_new_tokens=8, batch_size=4)
    assert rows == [4, 2, 2, 1, 1]
    assert [one.text for one in answered] == [one.text if i != 2 else None for i, one in enumerate(expected)]
    failed = answered[2]
    assert failed.probs is None and type(failed.error) is (
        FloatingPointError if isinstance(error, FloatingPointError) else MemoryError
    )
    if isinstance(failed.error, MemoryError):
        assert "224 x 112" in str(failed.error) and "max_pixels" in str(failed.error)


def test_a_frame_that_cannot_be_judged_is_its_prompts_error(engine, monkeypatch):
    usual = engine.model.guard

    def guard(**inputs):
        grid = inputs["image_grid_thw"]
        return usual(**inputs) if (grid[:, 1] == grid[:, 2]).all() else torch.empty(2**50)

    monkeypatch.setattr(engine.model, "guard", guard)
    prompts = [Prompt(PICTURES[1:3], "What?"), PROMPTS[0]]
    failed, answered = answer(engine, prompts, max_new_tokens=1)
    assert isinstance(failed.error, MemoryError) and failed.text is None and answered.error is None


def test_another_error_of_the_model_is_raised(engine, monkeypatch):
    def generate(**inputs):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(engine.model, "generate", generate)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        answer(engine, PROMPTS)


def test_a_prompt_without_frames_and_a_streamer_for_several_prompts_are_refused(engine):
    with pytest.raises(ValueError, match="no frame"):
        answer(engine, [Prompt([], "What?")])
    with pytest.raises(ValueError, match="one prompt, got 4"):
        answer(engine, PROMPTS, streamer=object())


def test_verdicts_come_with_the_seconds_they_took(engine):
    verdicts = list(engine.judge_each([PICTURES[0], b"no picture", PICTURES[1]], batch_size=2))
    assert [verdict.seconds > 0 for verdict in verdicts] == [True, False, True]
    assert verdicts[1].error.startswith("<10 bytes>")
