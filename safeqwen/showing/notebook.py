"""A verdict as HTML that a notebook shows: picture, bars, thresholds, the decision in words, and the heat map.

A fragment needs no script, no network and no style: where a viewer drops `<style>`, as GitHub does, the table still
says everything, and a flagged picture is still not seen before it is asked for. So what stands there first is blurred
in its pixels, and the clear picture lies in `<details>`.
"""

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markupsafe import Markup
from PIL import Image, ImageFilter

from safeqwen.data.taxonomy import title_of
from safeqwen.showing.html import data_url, templates


NUM_CATEGORIES = 5
SHOWN_FROM = 0.01  # probability, but for the likeliest category and those whose rule fires
SIDES = (320, 256, 192, 128, 64)  # pixels of the longer side, until the file is small enough
MAX_BYTES = 10_000  # of one picture
GRID_SIDES, GRID_MAX_BYTES = (192, 128, 64), 5_000
BLURRED_SIDE, BLUR_RADIUS = 32, 5  # pixels: of a longer side of 32 nothing below a sixth of the picture is left


@dataclass(frozen=True)
class Bar:
    """
    One row of a verdict's bars.

    Args:
        name (`str`): of the category; "unsafe" for the picture as a whole.
        title (`str`): for people.
        probability (`float` in [0, 1]): by the policy's calibration, if there is a policy.
        threshold (`float` in [0, 1], *optional*): from which the policy's rule of this name fires; `None` if it has
            none that could.
        fires (`bool`): whether it does. Without a policy: "unsafe" of a flagged verdict.
    """

    name: str
    title: str
    probability: float
    threshold: float | None
    fires: bool

    @property
    def percent(self):
        """The probability in words, with as many digits as show on which side of the threshold it is."""
        for digits in range(1, 7):
            text = f"{100 * self.probability:.{digits}f}"
            if self.threshold is None or (float(text) >= 100 * self.threshold) == (self.probability >= self.threshold):
                break
        return f"{text} %"

    @property
    def rule(self):
        """The threshold in words, and whether the rule fires."""
        words = [] if self.threshold is None else [f"from {100 * self.threshold:.4g} %"]
        return ": ".join([*words, "fires"] if self.fires and words else words)

    @property
    def width(self):
        return f"{100 * self.probability:.2f}%"

    @property
    def mark(self):
        return f"{100 * self.threshold:.2f}%"


def bar_rows(verdict):
    """
    Returns a verdict's bars (`list[Bar]`): "unsafe", then its likeliest categories and all whose own rule fires.

    With a policy the numbers are the decision's: calibrated, of the view that it was made on, and "unsafe" leaves out
    what is allowed.

    Raises:
        ValueError: if the verdict is an error.
    """
    decision, policy = verdict.decision, verdict.policy
    if decision is None:
        scores, unsafe, allowed = verdict.scores, verdict.unsafe, []
        thresholds, fired, is_unsafe = {}, set(), verdict.flagged
    else:
        scores, unsafe, allowed = decision.scores, decision.score, policy.allowed
        thresholds = {"unsafe": policy.unsafe_threshold, **policy.category_thresholds}
        thresholds = {name: value for name, value in thresholds.items() if policy.actions.get(name) != "allow"}
        fired = {reason.category for reason in decision.fired if reason.rule == "category"}
        is_unsafe = any(reason.rule == "unsafe" for reason in decision.fired)
    ranked = sorted(scores, key=scores.get, reverse=True)
    shown = [name for i, name in enumerate(ranked[:NUM_CATEGORIES]) if not i or scores[name] >= SHOWN_FROM]
    shown += [name for name in ranked if name in fired and name not in shown]
    titles = {name: title_of(name) + (" (allowed)" if name in allowed else "") for name in shown}
    rows = [Bar(name, titles[name], scores[name], thresholds.get(name), name in fired) for name in shown]
    if unsafe is None:
        return rows
    title = "unsafe, without what is allowed" if allowed else "unsafe"
    return [Bar("unsafe", title, unsafe, thresholds.get("unsafe"), is_unsafe), *rows]


def caption(verdict):
    """Returns what the bars of a verdict are (`str`)."""
    if verdict.decision is None:
        return "Probabilities by the guard; there is no policy"
    return "Probabilities, calibrated by the policy; the mark is the policy's threshold"


@dataclass(frozen=True)
class Picture:
    """A small picture to embed: its `data:` URL, and width and height in pixels."""

    url: str
    width: int
    height: int


@dataclass(frozen=True)
class Shown:
    """What the template shows of a verdict; of an error only `name` and `error`."""

    name: str
    error: str | None = None
    flagged: bool = False
    decision: str = ""
    notes: tuple = ()
    rows: tuple = ()
    caption: str = ""
    blurred: Picture | None = None
    picture: Picture | None = None
    overlay: Picture | None = None
    overlay_caption: str = ""


def verdict_html(verdict, heatmap=None):
    """
    Returns a verdict as a fragment of HTML (`str`), of some 30 kB at most: what `Verdict._repr_html_` returns.

    A flagged picture is blurred, and so is its heat map, until a person asks for it. All text is escaped.

    Args:
        verdict ([`Verdict`])
        heatmap ([`Heatmap`] or `str`, *optional*): where the verdict comes from, or why that cannot be shown.
    """
    return _macro("fragment", _shown(verdict, heatmap))


def heatmap_or_reason(verdict):
    """
    Returns the [`Heatmap`] of a verdict's label, the reason (`str`) if there can be none, or `None` if the verdict is
    "safe" or an error: nobody asks where that comes from. It costs a forward and a backward.
    """
    if verdict.error is not None or verdict.label == "safe":
        return None
    try:
        return verdict.heatmap()
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        return f"no heat map: {error}"


def show(verdicts, heatmaps=False):
    """
    Returns a [`Grid`] of all verdicts, errors among them, which a notebook shows.

    Args:
        verdicts (iterable of [`Verdict`], or one)
        heatmaps (`bool`): whether to compute the heat map of each that is a harm: a forward and a backward each.

    Raises:
        TypeError: on anything else, as the dicts that `pipeline("image-safety")` returns.
    """
    verdicts = [verdicts] if hasattr(verdicts, "num_frames") else list(verdicts)
    for verdict in verdicts:
        if not hasattr(verdict, "to_dict"):
            raise TypeError(
                "show expects verdicts, as SafetyPipeline.verdicts and Verdict.of return them, got "
                f"{type(verdict).__name__}"
            )
    return Grid(verdicts, [heatmap_or_reason(verdict) if heatmaps else None for verdict in verdicts])


class Grid:
    """Verdicts side by side: HTML in a notebook, one after another in a terminal."""

    def __init__(self, verdicts, heatmaps):
        self.verdicts, self.heatmaps = verdicts, heatmaps

    def __repr__(self):
        return "\n".join(map(repr, self.verdicts)) or "no verdicts"

    def _repr_html_(self):
        sizes = (GRID_SIDES, GRID_MAX_BYTES)
        return _macro("grid", [_shown(*pair, *sizes) for pair in zip(self.verdicts, self.heatmaps)])


@cache
def _templates():
    return templates(Path(__file__).parent)


@cache
def style():
    """Returns the rules (`Markup`) for a `<style>`; they touch nothing outside of elements of class "safeqwen"."""
    return Markup((Path(__file__).parent / "verdict.css").read_text(encoding="utf-8"))


def macro(name, *values):
    """Returns what a macro of `verdict.html.jinja` makes of the values (`Markup`), e.g. `macro("bars", rows, caption)`."""
    return getattr(_templates().get_template("verdict.html.jinja").module, name)(*values)
