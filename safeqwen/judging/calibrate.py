"""`calibrate`: fits a [`SafetyPolicy`] to labelled rows, and measures it on rows that it was not fitted to.

One row a picture counts, because every statement about new pictures takes rows that are independent of one another.
The pictures are split by their bytes (sha256), so none is on both sides. On the fit part: the temperature, the
threshold of "unsafe", thresholds of categories, and how many frames of a clip must fire. On the held-out part: what
the policy then does, beside what the guard does without one.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.metrics import brier_score_loss, log_loss
from sklearn.model_selection import train_test_split
from torchmetrics.functional.classification import binary_calibration_error

from safeqwen.judging.decision import ACTIONS, UNSAFE
from safeqwen.judging.policy import ANY_FRAME, SafetyPolicy
from safeqwen.judging.thresholds import (
    OPERATING_POINTS,
    fit_temperature,
    inside,
    num_false_positives_allowed,
    operating_threshold,
    promised_threshold,
    rate,
)
from safeqwen.judging.verdict import SAFE


PROCEDURE = "Learn-then-Test, fixed sequence of all thresholds, binomial p-values (arXiv 2110.01052)"
MIN_PICTURES = 20  # of a label, to fit to: 95 % of fewer are all of them
ECE_BINS = 15
CLIP_STEPS = 100  # at_least k of 100 frames
LENGTHS = ((2, 4), (5, 8), (9, None))  # of clips, in frames


@dataclass
class Picture:
    """
    One picture of the rows, with the label that the policy goes by.

    Args:
        unsafe (`bool`): whether it should be flagged: it is labelled unsafe, and not with a category that is allowed.
        category (`str`, *optional*): as it is labelled, among the model's categories.
        probs (`(views, categories)` array): the model's own probabilities.
        frames (`list[int]`): the number of each view's frame. A clip has several; a still one, in one view or two.
    """

    unsafe: bool
    category: str | None
    probs: np.ndarray
    frames: list

    @property
    def num_frames(self):
        return len({*self.frames})


@dataclass
class Calibration:
    """
    What [`calibrate`] returns.

    Args:
        policy ([`SafetyPolicy`]): whose `fitted` holds what it was fitted to, and the figures on held-out pictures.
        notes (`list[str]`): what a reader must know beside the figures: what was left out, bounded or kept, and why.
    """

    policy: SafetyPolicy
    notes: list


def calibrate(
    rows,
    categories,
    *,
    fingerprint=None,
    base=None,
    operating_point="balanced",
    max_fpr=None,
    confidence=0.9,
    held_out=0.3,
    seed=0,
    per_category=False,
    record=None,
):
    """
    Fits a policy to rows and returns a [`Calibration`].

    Args:
        rows: of evaluations of one model, as `safeqwen.evaluation.rows.read_rows` returns them: objects with `id`,
            `image_sha256`, `unsafe`, `category`, `probs` and `views`.
        categories (`list[str]`): of the model, in its order.
        fingerprint (`str`, *optional*): of its weights, for the policy's `model`.
        base ([`SafetyPolicy`], *optional*): whose mode, actions, groups and severity levels are kept. Its rule for
            clips and its categories' thresholds are kept, too, where none is fitted, but no threshold below the new
            one of "unsafe". If it allows categories its temperature is kept: a new one would reorder the pictures by
            their rows' labels, and a promise needs an order that is not made of the rows that it is made with.
        operating_point (`str`): a key of `OPERATING_POINTS`: for the thresholds that come without a promise.
        max_fpr (`float` in (0, 1), *optional*): with it the threshold of "unsafe" is one whose false-positive rate on
            new still pictures is at most this, with probability at least `confidence` over the draw of the rows.
        confidence (`float` in (0, 1)).
        held_out (`float` in (0, 1)): share of the pictures that nothing is fitted to.
        seed (`int`): of the split.
        per_category (`bool`): fit thresholds of categories, where one has `MIN_PICTURES` still pictures or more in the
            fit part. None is below that of "unsafe": a category's rule chooses the action, and flags nothing more.
        record (`dict`, *optional*): what else `fitted` should hold.

    Raises:
        ValueError: if an argument is out of range; if there are too few pictures of a label, or too few safe ones for
            the promise; if the guard ranks backwards; if a row's verdict is of other categories.
    """
    if operating_point not in OPERATING_POINTS:
        raise ValueError(f"operating_point must be one of {', '.join(OPERATING_POINTS)}, got {operating_point!r}")
    for name, value in (("max_fpr", max_fpr), ("confidence", confidence), ("held_out", held_out)):
        if value is not None and not 0 < value < 1:
            raise ValueError(f"{name} must be a number between 0 and 1, got {value!r}")
    base = SafetyPolicy(categories=categories) if base is None else base
    base.check(categories)
    if base.actions[UNSAFE] == "allow":
        raise ValueError(
            "the policy to start from allows 'unsafe': that rule never fires, and has no threshold to fit"
        )
    allowed = base.allowed
    policy = replace(base, model=fingerprint, fitted=None)

    pictures, excluded = _one_a_picture(rows, base.categories, allowed)
    fit, held = _split(pictures, held_out, seed)
    stills = [picture for picture in fit if picture.num_frames == 1]
    unsafe = _labels(stills)
    notes = [f"{num} rows left out: {why}" for why, num in excluded.items()]

    if allowed:
        notes.append(f"the temperature stays {policy.temperature:g}: the policy allows {', '.join(allowed)}")
    else:
        temperature, why = fit_temperature(_scores(replace(policy, temperature=1.0), stills), unsafe)
        policy = replace(policy, temperature=temperature)
        notes += [f"the temperature stays 1: {why}"] if why else []

    scores = _scores(policy, stills)
    if max_fpr is None:
        threshold = operating_threshold(operating_point, scores, unsafe)
        rule = {"operating_point": operating_point, "definition": OPERATING_POINTS[operating_point]}
    else:
        threshold = promised_threshold(scores[~unsafe], scores[unsafe], max_fpr, confidence)
        may_err = num_false_positives_allowed(int((~unsafe).sum()), max_fpr, confidence)
        rule = {"max_fpr": max_fpr, "confidence": confidence, "procedure": PROCEDURE, "may_err": may_err}
    thresholds, found = dict(policy.category_thresholds), {}
    if per_category:
        found, category_notes = _category_thresholds(policy, stills, operating_point, allowed)
        notes += category_notes
    thresholds |= found
    if raised := [name for name, value in thresholds.items() if value < threshold and name not in allowed]:
        notes.append(f"raised to the threshold of unsafe, below which they would flag more: {', '.join(raised)}")
    thresholds |= dict.fromkeys(raised, threshold)
    policy = replace(policy, unsafe_threshold=threshold, category_thresholds=thresholds)

    flagged = _flagged(policy, stills)[~unsafe]
    if max_fpr is not None and flagged.sum() > may_err:  # the policy as a whole must keep what its threshold promises
        raise ValueError(
            f"the policy flags {flagged.sum()} of {len(flagged)} safe pictures to fit to, and may flag {may_err}: the "
            "rows' probabilities are rounded too coarsely to add up to 1; evaluate again"
        )
    clips = [picture for picture in fit if picture.num_frames > 1]
    clip, clip_notes = _clip_rule(policy, clips, flagged.mean() if max_fpr is None else max_fpr)
    notes += clip_notes
    policy = replace(policy, clip=clip)
    if base.model not in (None, fingerprint):
        kept = [name for name, value in base.category_thresholds.items() if policy.category_thresholds[name] == value]
        kept = [f"the threshold of {name}" for name in kept if name not in allowed]
        kept += ["the temperature"] * (policy.temperature == base.temperature != 1)
        kept += ["the rule for clips"] * (policy.clip == base.clip != ANY_FRAME)
        if kept:
            notes.append(f"kept as they were fitted to other weights ({base.model[:12]}...): {', '.join(kept)}")
    fitted = {
        "pictures": {"fit": _counts(fit), "held_out": _counts(held), "rows_left_out": excluded},
        "split": {"by": "image_sha256, one row a picture", "held_out": held_out, "seed": seed},
        "unsafe_threshold": {**rule, "safe": len(flagged), "false_positives": int(flagged.sum())},
        "category_thresholds": {name: operating_point for name in found},
        "held_out": _report(policy, held, allowed),
        "notes": notes,
    }
    return Calibration(replace(policy, fitted={**fitted, **(record or {})}), notes)


# ---------------------------------------------------------------------------------------------------------- pictures


def _one_a_picture(rows, categories, allowed):
    """`(list[Picture], {reason: number of rows left out})`: of rows with the same bytes the first."""
    excluded, by_bytes = Counter(), {}
    for row in rows:
        if row.probs is None:
            excluded["no verdict"] += 1
        elif row.unsafe is None:
            excluded["no label of the picture"] += 1
        elif row.category is not None and row.unsafe == (row.category == SAFE):
            excluded["label and category contradict each other"] += 1
        elif row.unsafe and allowed and row.category is None:
            excluded["unsafe without a category, and the policy allows some"] += 1
        elif not row.image_sha256:
            excluded["no image_sha256, which tells pictures apart"] += 1
        else:
            by_bytes.setdefault(row.image_sha256, []).append(row)
    pictures = []
    for doubles in by_bytes.values():
        if len({row.unsafe and row.category not in allowed for row in doubles}) > 1:
            excluded["one picture labelled both safe and unsafe"] += len(doubles)
            continue
        if len(doubles) > 1:
            excluded["a picture that another row has"] += len(doubles) - 1
        pictures.append(_picture(doubles[0], categories, allowed))
    return pictures, dict(excluded)


def _picture(row, categories, allowed):
    views = row.views or [{"frame": 0, "probs": row.probs}]
    for view in views:
        if view["probs"].keys() != {*categories}:
            odd = ", ".join(sorted(view["probs"].keys() ^ {*categories}))
            raise ValueError(f"row {row.id!r}: its verdict and the model's categories differ in {odd}")
    if row.category is not None and row.category not in categories:
        raise ValueError(f"row {row.id!r}: its label {row.category!r} is none of {', '.join(categories)}")
    return Picture(
        unsafe=row.unsafe and row.category not in allowed,
        category=row.category,
        probs=np.array([[view["probs"][name] for name in categories] for view in views], dtype=np.float64),
        frames=[view["frame"] for view in views],
    )


def _split(pictures, held_out, seed):
    """The pictures to fit to and the held-out ones, in the same shares of safe and unsafe stills and clips."""
    counts = _counts(pictures)
    parts = pictures, []
    if min(counts["safe"], counts["unsafe"]) > MIN_PICTURES:
        is_clip = [picture.num_frames > 1 for picture in pictures]
        kinds = Counter(zip(_labels(pictures), is_clip))
        strata = [
            2 * label + (clip and kinds[label, clip] >= MIN_PICTURES)
            for label, clip in zip(_labels(pictures), is_clip)
        ]
        parts = train_test_split(pictures, test_size=held_out, random_state=seed, stratify=strata)
    fit, held = map(_counts, parts)
    if any(fit[label] < MIN_PICTURES or not held[label] for label in ("safe", "unsafe")):
        raise ValueError(
            f"there are {counts['safe']} safe and {counts['unsafe']} unsafe still pictures, {fit['safe']} and "
            f"{fit['unsafe']} of them to fit to: it takes {MIN_PICTURES} of each to fit to, and one held out; add "
            "rows, or hold out another share"
        )
    return parts


def _counts(pictures):
    kinds = Counter((picture.unsafe, picture.num_frames > 1) for picture in pictures)
    names = {
        "safe": (False, False),
        "unsafe": (True, False),
        "safe_clips": (False, True),
        "unsafe_clips": (True, True),
    }
    return {name: kinds[kind] for name, kind in names.items()}


def _labels(pictures):
    return np.array([picture.unsafe for picture in pictures], dtype=bool)


def _scores(policy, pictures):
    """`(pictures,)` scores of the rule "unsafe": of the worst view."""
    return np.array([policy.unsafe_score(picture.probs).max() for picture in pictures])


# ------------------------------------------------------------------------------------------------- categories, clips


def _category_thresholds(policy, stills, operating_point, allowed):
    """`({category: threshold}, notes on those without one)`, each category against all other pictures."""
    calibrated = np.array([policy.calibrated(picture.probs).max(axis=0) for picture in stills])
    known = np.array([picture.category is not None or not picture.unsafe for picture in stills])
    found, too_few, notes = {}, [], []
    for column, name in enumerate(policy.categories):
        if name == SAFE or name in allowed:
            continue
        is_it = np.array([picture.category == name for picture in stills])
        if is_it.sum() < MIN_PICTURES:
            too_few.append(f"{name} ({is_it.sum()})")
            continue
        try:
            found[name] = operating_threshold(operating_point, calibrated[known, column], is_it[known])
        except ValueError as error:
            notes.append(f"no threshold of {name}: {error}")
    if too_few:
        notes.append(f"no threshold of categories with fewer than {MIN_PICTURES} to fit to: {', '.join(too_few)}")
    return found, notes


def _clip_rule(policy, clips, target):
    """`(clip, notes)`: the fewest frames that keep the false-positive rate of the clips to the target."""
    safe = [clip for clip in clips if not clip.unsafe]
    if len(safe) < MIN_PICTURES:
        return policy.clip, [
            f"{len(safe)} safe clips to fit to, and it takes {MIN_PICTURES}: the rule for clips stays at_least "
            f"{policy.clip['at_least']} of {policy.clip['of']}. Where one frame is enough, a "
            f"rate of 6 % a frame flags {1 - 0.94**30:.0%} of harmless clips of 30 frames, if they err independently"
        ]

    def false_positive_rate(at_least):
        rule = replace(policy, clip={"at_least": at_least, "of": CLIP_STEPS})
        return _flagged(rule, safe).mean()

    steps = range(1, CLIP_STEPS + 1)
    fewest = bisect_left(steps, -target, key=lambda at_least: -false_positive_rate(at_least)) + 1
    if fewest > CLIP_STEPS:  # then a rule that misses unsafe clips would buy nothing
        return policy.clip, [
            f"clips: even if all frames must fire, {false_positive_rate(CLIP_STEPS):.2%} of the safe clips to fit to "
            f"are flagged, more than {target:.2%}: the rule for clips stays at_least {policy.clip['at_least']} of "
            f"{policy.clip['of']}"
        ]
    return {"at_least": fewest, "of": CLIP_STEPS}, []


# ----------------------------------------------------------------------------------------------------------- figures


def _decisions(policy, pictures):
    return [policy.decide(picture.probs, picture.frames) for picture in pictures]


def _flagged(policy, pictures):
    return np.array([decision.would_action != "allow" for decision in _decisions(policy, pictures)], dtype=bool)


def _figures(flagged, unsafe):
    """False-positive rate, recall and precision, each as `rate` gives it."""
    return {
        "false_positive_rate": rate((flagged & ~unsafe).sum(), (~unsafe).sum()),
        "recall": rate((flagged & unsafe).sum(), unsafe.sum()),
        "precision": rate((flagged & unsafe).sum(), flagged.sum()),
    }


def _report(policy, held, allowed):
    stills = [picture for picture in held if picture.num_frames == 1]
    unsafe, raw = _labels(stills), replace(policy, temperature=1.0)
    harmless = [name in (SAFE, *allowed) for name in policy.categories]
    likeliest = np.array([not np.array(harmless)[picture.probs.argmax(axis=1)].all() for picture in stills])
    actions = Counter(decision.would_action for decision in _decisions(policy, stills))
    return {
        "argmax": _figures(likeliest, unsafe),
        "threshold_0.5": _figures(_scores(raw, stills) >= 0.5, unsafe),
        "policy": _figures(_flagged(policy, stills), unsafe),
        "actions": {action: actions[action] for action in ACTIONS},
        "before": _reliability(_scores(raw, stills), unsafe),
        "after": _reliability(_scores(policy, stills), unsafe),
        "clips": _clip_figures(policy, [picture for picture in held if picture.num_frames > 1]),
    }


def _reliability(scores, unsafe):
    """Mean negative log-likelihood, expected calibration error in 15 bins and Brier score: the lower the better."""
    ece = binary_calibration_error(torch.from_numpy(scores), torch.from_numpy(unsafe).long(), n_bins=ECE_BINS)
    return {
        "nll": float(log_loss(unsafe, inside(scores), labels=[False, True])),
        "ece": float(ece),
        "brier": float(brier_score_loss(unsafe, scores, pos_label=True)),
    }


def _clip_figures(policy, clips):
    """By length: the rates of the policy, and those if one frame were enough (`any_frame`)."""
    found = {}
    for low, high in LENGTHS:
        chosen = [clip for clip in clips if low <= clip.num_frames <= (high or clip.num_frames)]
        if not chosen:
            continue
        unsafe, any_frame = _labels(chosen), [max(_scores(policy, [clip])) for clip in chosen]
        name = f"{low}-{high} frames" if high else f"{low} frames and more"
        found[name] = {
            "policy": _figures(_flagged(policy, chosen), unsafe),
            "any_frame": _figures(np.array(any_frame) >= policy.unsafe_threshold, unsafe),
        }
    return found
