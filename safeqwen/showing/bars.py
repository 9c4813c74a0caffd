"""Which bars a verdict is drawn with: probabilities, and the thresholds that apply to these very numbers."""

from dataclasses import dataclass


SHOWN_FROM = 0.1  # probability


@dataclass(frozen=True)
class Bar:
    """
    A row of a verdict's picture in numbers.

    Args:
        name (`str`): a category; "unsafe" for the picture as a whole, or "not allowed" if the policy allows a part.
        value (`float`): probability in [0, 1].
        threshold (`float`, *optional*): in [0, 1], of the rule for it, if there is one.
        reached (`bool`): whether that rule fired.
    """

    name: str
    value: float
    threshold: float | None = None
    reached: bool = False


def bars(verdict, unsafe_at, top=None):
    """
    The bars of a [`Verdict`]: that of the picture as a whole first, then its categories, the likeliest first.

    With a policy these are the calibrated probabilities of the view that decided, which its thresholds are for;
    without one the model's own, and `unsafe_at` is the threshold of the first.

    Args:
        verdict: `scores`, `unsafe`, `policy` and `decision` are read.
        unsafe_at (`float`): in [0, 1], without a policy.
        top (`int`, *optional*): this many categories, in place of those over 10 % and those whose rule fired.

    Returns:
        `list[Bar]`
    """
    decision, policy = verdict.decision, verdict.policy
    if decision is None:
        unsafe = verdict.unsafe
        whole = [] if unsafe is None else [Bar("unsafe", unsafe, unsafe_at, unsafe >= unsafe_at)]
        categories = [Bar(name, value) for name, value in verdict.scores.items()]
    else:
        fired = {(reason.rule, reason.category) for reason in decision.fired}
        default = policy.actions["unsafe"]
        threshold = None if default == "allow" else policy.unsafe_threshold
        # The rule counts the harms that are not allowed, and so does this bar.
        name = "not allowed" if policy.allowed else "unsafe"
        whole = [Bar(name, decision.score, threshold, any(rule == "unsafe" for rule, _ in fired))]
        categories = []
        for name, value in decision.scores.items():
            has_rule = name in policy.category_thresholds and policy.actions.get(name, default) != "allow"
            threshold = policy.category_thresholds[name] if has_rule else None
            categories.append(Bar(name, value, threshold, ("category", name) in fired))
    categories.sort(key=lambda bar: bar.value, reverse=True)
    if top is None:
        likeliest = categories[0]
        categories = [bar for bar in categories if bar is likeliest or bar.value >= SHOWN_FROM or bar.reached]
    return whole + categories[:top]
