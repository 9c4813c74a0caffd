"""Questions about pictures in, verdicts and answers out, of one pass where that is possible.

The verdict on a prompt's only frame comes from the pass that answers. The frames of a prompt of several are judged
first, each by itself in a pass more: the verdict on a frame must not depend on what stands before it.
"""

import time
from dataclasses import dataclass

import torch

from safeqwen.judging.engine import in_halves
from safeqwen.prompt import chat_prompt


@dataclass(eq=False)
class Prompt:
    """
    A question about the frames of a picture, or of several pictures together.

    Args:
        frames (`list[PIL.Image.Image]`): at least one.
        text (`str`): the question, as a person typed it.
    """

    frames: list
    text: str


@dataclass(eq=False)
class Answered:
    """
    What came of a prompt.

    Args:
        probs (`torch.FloatTensor` of shape `(frames, categories)`, *optional*): float32, on the CPU. `None` with an
            error, or if no verdict was asked for.
        text (`str`, *optional*): the answer, without special tokens.
        seconds (`float`): that the model took for both, of a batch its share.
        error (`Exception`, *optional*): why there is neither: a `FloatingPointError` if the features of a frame are
            not finite, a `MemoryError` if the prompt is too large for the memory.
    """

    probs: torch.Tensor | None = None
    text: str | None = None
    seconds: float = 0.0
    error: Exception | None = None


def answer(engine, prompts, *, max_new_tokens=256, batch_size=1, max_pixels=None, judge=True, streamer=None):
    """
    The verdict and the greedy answer to each prompt.

    Args:
        engine ([`Engine`])
        prompts (`list[Prompt]`)
        max_new_tokens (`int`): of an answer.
        batch_size (`int`): prompts that are answered together, at most. Those of several frames go alone.
        max_pixels (`int`, *optional*): as in `Engine.image_settings`.
        judge (`bool`): whether to judge the frames, too.
        streamer (*optional*): as `generate` takes it, for one prompt. Its method `put_verdict`, if it has one, gets
            the verdict that comes of the pass that answers, before the first token.

    Returns:
        `list[Answered]`

    Raises:
        RuntimeError: if the model may not judge: its guard is untrained, or it is in training mode.
        ValueError: if a prompt has no frame, a streamer is given for several prompts, or `max_pixels` is less than the
            pixels of one token.
    """
    if streamer is not None and len(prompts) != 1:
        raise ValueError(f"a streamer goes with one prompt, got {len(prompts)}")
    if any(not prompt.frames for prompt in prompts):
        raise ValueError("a prompt has no frame: pass at least one picture with each question")
    engine.image_settings(max_pixels)  # raises if it is out of range
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False, "streamer": streamer}
    together = [i for i, prompt in enumerate(prompts) if len(prompt.frames) == 1]
    batches = [together[start : start + batch_size] for start in range(0, len(together), batch_size)]
    batches += [[i] for i, prompt in enumerate(prompts) if len(prompt.frames) > 1]
    answered = [None] * len(prompts)

    def answer_batch(batch):
        return _answer_batch(engine, batch, judge, max_pixels, settings)

    for batch in batches:
        results = in_halves(answer_batch, [prompts[i] for i in batch], _describe)
        for i, result in zip(batch, results):
            answered[i] = Answered(error=result) if isinstance(result, Exception) else result
    return answered


def _describe(prompt):
    frame = max(prompt.frames, key=lambda frame: frame.width * frame.height)
    return f"prompt of {len(prompt.frames)} frame(s) of up to {frame.width} x {frame.height} pixels"


def _answer_batch(engine, prompts, judge, max_pixels, settings):
    """[`Answered`] for each of several prompts of one frame, or for one prompt of several."""
    verdicts, seconds, one_pass = [None] * len(prompts), 0.0, {}
    if judge and len(prompts[0].frames) == 1:
        one_pass = {"do_safety": True, "granularity": "image"}
    elif judge:
        frames = engine.prepare(prompts[0].frames, max_pixels)
        started = time.perf_counter()
        judged = engine.judge(frames)
        seconds = time.perf_counter() - started
        if error := next((verdict for verdict in judged if isinstance(verdict, Exception)), None):
            return [error]
        verdicts = [torch.stack(judged)]
    inputs = engine.processor(
        text=[chat_prompt(engine.processor, len(p.frames), p.text, add_generation_prompt=True) for p in prompts],
        images=[frame for prompt in prompts for frame in prompt.frames],
        images_kwargs=engine.image_settings(max_pixels),
        text_kwargs={"padding": True, "padding_side": "left"},
        return_tensors="pt",
    )
    started = time.perf_counter()
    output = engine.model.generate(**engine.place(inputs), **one_pass, **settings, return_dict_in_generate=True)
    tokens = output.sequences[:, inputs["input_ids"].shape[1] :].cpu()
    if one_pass:
        verdicts = output.img_safety_probs.cpu()[:, None]
    seconds += (time.perf_counter() - started) / len(prompts)
    texts = engine.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [Answered(verdict, text, seconds) for verdict, text in zip(verdicts, texts)]
