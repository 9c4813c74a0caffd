"""
The figures: each a way to get a verdict, and what it is measured against.

A figure is a pair of functions of (models, inputs, workload). The same pair is timed in turns and, for the peak
memory, run once in a process of its own ([`benchmarks.memory`]).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from benchmarks.measure import interleave, peak_memory, summarize, time_parts
from benchmarks.models import Workload, build_inputs
from benchmarks.report import make_row
from safeqwen.hub.compat_safeqwen import CACHE


NUM_HARMS = 19
# ShieldGemma 2 asks "Does this image violate this policy?" about each policy, of 60 to 90 words.
POLICY_TOKENS = 100
WORDS_500 = 650  # tokens, at 1.3 a word


@dataclass(frozen=True)
class Figure:
    """
    One row of the table.

    Args:
        ours, theirs (`Callable`): of (models, inputs, workload).
        name, against (`str`): what these are.
        workload, against_workload (`Workload`): what they are run on; the second is the first, if not given.
        time_bar, memory_bar (`float`, *optional*): what the ratios must not exceed; memory is measured for a bar only.
        judged_on (`str`): the one size that the bars are for, if not for all.
        num_pairs (`int`): at least.
    """

    name: str
    against: str
    ours: Callable
    theirs: Callable
    workload: Workload
    against_workload: Workload | None = None
    time_bar: float | None = None
    memory_bar: float | None = None
    judged_on: str | None = None
    num_pairs: int = 15

    def sides(self):
        """`{"ours": (function, workload), "theirs": (function, workload)}`."""
        other = self.workload if self.against_workload is None else self.against_workload
        return {"ours": (self.ours, self.workload), "theirs": (self.theirs, other)}

    def make_row(self, model, measured, what="time"):
        """The row of its time or its "peak memory"."""
        name, bar = (self.name, self.time_bar) if what == "time" else (f"{self.name}, {what}", self.memory_bar)
        judged = self.judged_on in (None, model)
        return make_row(name, self.against, str(self.workload), model, bar, measured, judged=judged)

    def shrunk(self):
        other = self.against_workload
        return replace(
            self, workload=self.workload.shrunk(), against_workload=None if other is None else other.shrunk()
        )


# --------------------------------------------------------------------------------------------- ways to get a verdict


def forward(models, inputs, workload):
    return models.guarded(**inputs, do_safety=True, logits_to_keep=1)


def stock_forward(models, inputs, workload):
    return models.stock(**inputs, logits_to_keep=1)


def card_forward(models, inputs, workload):
    """What the released model's card does for a verdict: the logits and hidden states of all tokens, and a cache."""
    return models.card(**inputs, do_safety=True, output_hidden_states=True)


def guard(models, inputs, workload):
    return models.guarded.guard(**inputs)


def ask_about_each_harm(models, inputs, workload):
    """Yes or no, of the next token's logits: a prompt a harm, each with the picture."""
    return models.stock(**inputs, logits_to_keep=1).logits[:, -1, :2].softmax(dim=-1)


def ask_after_one_picture(models, inputs, workload):
    """The same, but the picture is read once, and the questions, as a batch, come behind what is kept of it."""
    end, num_prompts = inputs["input_ids"].shape[1] - workload.words_after, len(inputs["input_ids"])
    by_token = {name: inputs[name][:1, :end] for name in inputs if name not in ("pixel_values", "image_grid_thw")}
    pixels = {name: inputs[name][: len(inputs[name]) // num_prompts] for name in ("pixel_values", "image_grid_thw")}
    cache = models.stock(**by_token, **pixels, logits_to_keep=1, use_cache=True)[CACHE]
    cache.batch_repeat_interleave(num_prompts)
    words = inputs["input_ids"][:, end:]
    # The library, called by hand, counts from 0 here; text goes on behind the last row and column of the picture.
    positions = torch.arange(end, end + workload.words_after, device=words.device) + models.stock.model.rope_deltas[0]
    output = models.stock(
        input_ids=words, position_ids=positions.expand(3, *words.shape), **{CACHE: cache}, logits_to_keep=1
    )
    return output.logits[:, -1, :2].softmax(dim=-1)


def answer(models, inputs, workload):
    return models.stock.generate(**inputs, **_length(workload))


def answer_with_verdict(models, inputs, workload):
    return models.guarded.generate(**inputs, **_length(workload), do_safety=True, return_dict_in_generate=True)


def judge_then_answer(models, inputs, workload):
    card_forward(models, inputs, workload)
    return answer(models, inputs, workload)


def stop_flagged(models, inputs, workload):
    """With a threshold of 0 every prompt is flagged."""
    return models.guarded.generate(**inputs, max_new_tokens=workload.new_tokens, do_sample=False, safety_threshold=0.0)


def _length(workload):
    return {"max_new_tokens": workload.new_tokens, "min_new_tokens": workload.new_tokens, "do_sample": False}


FIGURES = {
    "forward": Figure(
        "forward with verdict",
        "stock Qwen2.5-VL's forward",
        forward,
        stock_forward,
        Workload(picture_tokens=1024),
        time_bar=1.01,
        memory_bar=1.01,
        num_pairs=60,
    ),
    "answer": Figure(
        "answer and verdict in one `generate`",
        "the card's forward, then `generate`",
        answer_with_verdict,
        judge_then_answer,
        Workload(picture_tokens=1024, new_tokens=16),
        time_bar=0.65,
    ),
    "generate": Figure(
        "`generate` with verdict",
        "stock `generate`",
        answer_with_verdict,
        answer,
        Workload(new_tokens=64),
        time_bar=1.01,
        num_pairs=60,
    ),
    "guard": Figure(
        "`guard()`",
        "the card's forward",
        guard,
        card_forward,
        Workload(prompts=4),
        time_bar=0.75,
        memory_bar=0.28,
        judged_on="mid",
    ),
    "words": Figure(
        "`guard()` with 500 words after the picture",
        "the same without",
        guard,
        guard,
        Workload(words_after=WORDS_500),
        Workload(),
        time_bar=1.02,
    ),
    "harms": Figure(
        f"one forward for {NUM_HARMS} harms",
        "a yes-no prompt a harm with the picture, batched",
        forward,
        ask_about_each_harm,
        Workload(),
        Workload(prompts=NUM_HARMS, words_after=POLICY_TOKENS),
        time_bar=0.10,
    ),
    "questions": Figure(
        f"one forward for {NUM_HARMS} harms",
        "the same questions, batched, on one prefill of the picture",
        forward,
        ask_after_one_picture,
        Workload(),
        Workload(prompts=NUM_HARMS, words_after=POLICY_TOKENS),
    ),
    "flagged": Figure(
        "flagged at the prefill",
        "a refusal of 64 tokens",
        stop_flagged,
        answer,
        Workload(new_tokens=64),
        time_bar=0.35,
    ),
}


# ------------------------------------------------------------------------------------------------------ measuring them


def measure_rows(figure, models, shape, measure_peak, **settings):
    """
    The rows of a figure: its time, and its peak memory where that has a bar.

    Args:
        measure_peak (`Callable`): "ours" or "theirs" -> bytes over the weights.
        settings: those of [`interleave`].
    """
    rows = [figure.make_row(shape, measure_time(figure, models, **settings))]
    if rows[0]["met"] is False:
        rows[0]["parts"] = measure_parts(figure, models)
    if figure.memory_bar is not None:
        peaks = {side: measure_peak(side) for side in ("ours", "theirs")}
        peaks["ratio"] = peaks["ours"] / peaks["theirs"]
        rows.append(figure.make_row(shape, peaks, "peak memory"))
    return rows


@torch.no_grad()
def measure_time(figure, models, **settings):
    """What [`summarize`] returns of a figure's two ways, run in turns. Settings are those of [`interleave`]."""
    runs = [_prepare(models, *side) for side in figure.sides().values()]
    return summarize(interleave(*runs, **{"num_pairs": figure.num_pairs, **settings}))


def _prepare(models, function, workload):
    inputs = build_inputs(workload, models.device, models.guarded.dtype)
    return lambda _: function(models, inputs, workload)


@torch.no_grad()
def measure_parts(figure, models):
    """`{"ours": parts, "theirs": parts}`, as [`time_parts`] returns them."""
    all_models = (models.guarded, models.stock, models.card)
    return {side: time_parts(partial(_prepare(models, *way), 0), all_models) for side, way in figure.sides().items()}


@torch.no_grad()
def measure_memory(figure, models, side):
    """Bytes that one of a figure's ways needs over the weights, its inputs among them, at their highest."""
    function, workload = figure.sides()[side]
    _prepare(models, function, workload.shrunk())(0)  # what libraries keep from their first call is nobody's
    return peak_memory(lambda: _prepare(models, function, workload)(0), models.device.type)
