"""Which bars a verdict is drawn with, wherever it is drawn: probabilities, and the thresholds that are for them."""

from dataclasses import dataclass

from safeqwen.data.taxonomy import title_of


NUM_CATEGORIES = 5
SHOWN_FROM = 0.01  # probability, but for the likeliest category and those whose rule fires


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
    def bound(self):
        """The threshold in words; empty if there is none."""
        return "" if self.threshold is None else f"{100 * self.threshold:.4g} %"

    @property
    def width(self):
        return f"{100 * self.probability:.2f}%"

    @property
    def mark(self):
        return f"{100 * self.threshold:.2f}%"


def bar_rows(verdict, top=None, unsafe_at=None):
    """
    Returns a verdict's bars (`list[Bar]`): "unsafe", then its likeliest categories and all whose own rule fires.

    With a policy the numbers are the decision's: calibrated, of the view that it was made on, and "unsafe" leaves out
    what is allowed.

    Args:
        verdict ([`Verdict`])
        top (`int`, *optional*): show this many categories, however unlikely, instead of up to 5 from 1 %.
        unsafe_at (`float` in [0, 1], *optional*): the threshold of "unsafe" where there is no policy.

    Raises:
        ValueError: if the verdict is an error.
    """
    decision, policy = verdict.decision, verdict.policy
    if decision is None:
        scores, unsafe, allowed = verdict.scores, verdict.unsafe, []
        thresholds, fired, is_unsafe = {}, set(), verdict.flagged
        if unsafe is not None and unsafe_at is not None:
            thresholds, is_unsafe = {"unsafe": unsafe_at}, unsafe >= unsafe_at
    else:
        scores, unsafe, allowed = decision.scores, decision.score, policy.allowed
        thresholds = {"unsafe": policy.unsafe_threshold, **policy.category_thresholds}
        thresholds = {name: value for name, value in thresholds.items() if policy.actions.get(name) != "allow"}
        fired = {reason.category for reason in decision.fired if reason.rule == "category"}
        is_unsafe = any(reason.rule == "unsafe" for reason in decision.fired)
    ranked = sorted(scores, key=scores.get, reverse=True)
    shown = ranked[: top or NUM_CATEGORIES]
    if top is None:
        shown = [name for i, name in enumerate(shown) if not i or scores[name] >= SHOWN_FROM]
    shown += [name for name in ranked if name in fired and name not in shown]
    titles = {name: title_of(name) + (" (allowed)" if name in allowed else "") for name in shown}
    rows = [Bar(name, titles[name], scores[name], thresholds.get(name), name in fired) for name in shown]
    if unsafe is None:
        return rows
    title = "unsafe, without what is allowed" if allowed else "unsafe"
    return [Bar("unsafe", title, unsafe, thresholds.get("unsafe"), is_unsafe), *rows]


def is_of_another_view(verdict):
    """Whether a verdict's bars (`bool`) are of another view than `verdict.view`, which the picture shows.

    A policy may want several frames, and decides by the last of those that it needs.
    """
    if verdict.decision is None or len(verdict.frames) == 1:
        return False
    calibrated = verdict.policy.calibrated(verdict.probs[verdict.view]).tolist()
    return dict(zip(verdict.categories, calibrated)) != verdict.decision.scores
