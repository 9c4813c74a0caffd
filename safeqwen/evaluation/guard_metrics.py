"""How well the guard judges pictures: scikit-learn computes every metric, torchmetrics the calibration error.

Conventions:

- The score of a picture is its unsafe probability, 1 - p(safe); a score equal to the threshold is unsafe.
- What is undefined is `None` with a reason, never 0 or 1: precision where nothing was flagged, AUROC of one class.
- Where several categories are equally likely, the first in the model's order is the predicted one.
"""

import math
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import torch
from sklearn.metrics import (
    accuracy_score,
    auc,
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    roc_curve,
)
from torchmetrics.functional.classification import binary_calibration_error

from safeqwen.evaluation.bootstrap import FEWEST_RESAMPLES, LEVEL, NUM_RESAMPLES, bootstrap, figure_of, picture_of
from safeqwen.judging.verdict import SAFE, unsafe_probability


ECE_BINS = 15  # of equal width
COARSE_BELOW = 100  # safe rows: each is then more than 1 % of the false-positive rate
SUM_WITHIN = 1e-3  # of 1, for probabilities that were written with few digits
BINARY = (
    "auroc",
    "auprc",
    "f1",
    "balanced_accuracy",
    "recall_at_1_fpr",
    "recall_at_5_fpr",
    "precision",
    "recall",
    "false_positive_rate",
    "ece",
    "brier",
)
OF_CATEGORIES = ("top1", "f1_micro", "f1_macro")
PER_CATEGORY = ("auroc", "auprc", "f1", "precision", "recall")


@dataclass
class Verdicts:
    """
    The rows that have a verdict and a label, as arrays.

    Args:
        rows (`list[Row]`): in the order of their ids.
        unsafe (`np.ndarray` of shape `(num_rows,)`, bool): the labels; a category that the policy allows is safe.
        labels (`np.ndarray` of shape `(num_rows,)`, int): indices of the labelled categories, -1 where unknown.
        probs (`np.ndarray` of shape `(num_rows, num_categories)`): the policy's, if there is one.
        scores (`np.ndarray` of shape `(num_rows,)`): unsafe probabilities, of `probs`.
        flagged (`np.ndarray` of shape `(num_rows,)`, bool): decided to be unsafe.
        safe (`int`): index of the category "safe".
    """

    rows: list
    unsafe: np.ndarray
    labels: np.ndarray
    probs: np.ndarray
    scores: np.ndarray
    flagged: np.ndarray
    safe: int

    @property
    def pictures(self):
        return [picture_of(row) for row in self.rows]


def guard_metrics(rows, categories, *, policy=None, threshold=0.5, num_resamples=NUM_RESAMPLES, seed=0):
    """
    How well the guard tells unsafe pictures from safe ones, and categories from each other.

    Args:
        rows (`list[Row]`): those with a verdict and a label count.
        categories (`list[str]`): the model's, in its order.
        policy ([`SafetyPolicy`], *optional*): its calibrated probabilities are then the scores, and a picture is
            flagged if the policy would flag or block it, enforced or not.
        threshold (`float`): without a policy, the unsafe probability in [0, 1] from which a picture is flagged.
        num_resamples, seed (`int`): as in [`bootstrap`].

    Returns:
        `dict`: the figures that docs/evaluation.md defines, `per_category`, `confusion_matrix` (rows are labels,
        columns predictions), and what they were computed with.

    Raises:
        ValueError: if no row counts, or as [`take_verdicts`] and [`bootstrap`].
    """
    verdicts = take_verdicts(rows, categories, policy=policy, threshold=threshold)
    if not verdicts.rows:
        raise ValueError(f"none of the {len(rows)} rows has both a verdict and a label of its picture")
    known = verdicts.labels >= 0
    support = np.bincount(verdicts.labels[known], minlength=len(categories))
    figures = bootstrap(
        lambda chosen: measure_binary(verdicts, chosen) | measure_predictions(verdicts, chosen),
        verdicts.pictures,
        num_resamples=num_resamples,
        seed=seed,
    )
    # Two curves a category cost most of the time, so they get the first fifth of the same draws.
    num_curve_resamples = max(FEWEST_RESAMPLES, num_resamples // 5)
    figures |= bootstrap(
        lambda chosen: measure_curves(verdicts, chosen),
        verdicts.pictures,
        num_resamples=num_curve_resamples,
        seed=seed,
    )
    num_unsafe, num_flagged = int(verdicts.unsafe.sum()), int(verdicts.flagged.sum())
    num_rows, num_known = len(verdicts.rows), int(known.sum())
    num_safe = num_rows - num_unsafe
    denominators = {"recall": num_unsafe, "false_positive_rate": num_safe, "precision": num_flagged}
    found = {}
    for name in BINARY:
        why = _why_undefined(name, num_unsafe, num_safe, num_flagged, "unsafe picture", "safe picture")
        found[name] = figure_of(figures[name], denominators.get(name, num_rows), why)
        if name.startswith("recall_at") and 0 < num_safe < COARSE_BELOW and found[name]["value"] is not None:
            coarse = f"coarse: there are {num_safe} safe rows only, each {1 / num_safe:.1%} of the false-positive rate"
            found[name]["reason"] = "; ".join(filter(None, (coarse, found[name].get("reason"))))
    for name in OF_CATEGORIES:
        why = "no row of a known harm" if num_known and name != "top1" else "no row of a known category"
        found[name] = figure_of(figures[name], num_known, why)
    predicted = verdicts.probs[known].argmax(axis=1)
    num_predicted = np.bincount(predicted, minlength=len(categories))
    found["per_category"] = {}
    for i, category in enumerate(categories):
        counts = (int(support[i]), num_known - int(support[i]), int(num_predicted[i]))
        found["per_category"][category] = {
            name: figure_of(
                figures[i, name],
                {"recall": counts[0], "precision": counts[2]}.get(name, num_known),
                _why_undefined(name, *counts, f"row of {category}", "row of another category"),
            )
            for name in PER_CATEGORY
        } | {"support": counts[0]}
    matrix = np.zeros((len(categories), len(categories)), dtype=int)
    if num_known:
        matrix = confusion_matrix(verdicts.labels[known], predicted, labels=range(len(categories)))
    return found | {
        "confusion_matrix": {"labels": list(categories), "counts": matrix.tolist()},
        "threshold": threshold if policy is None else policy.unsafe_threshold,
        "decided_by": "threshold" if policy is None else "policy",
        "allowed": [] if policy is None else policy.allowed,
        "num_rows": num_rows,
        "num_unsafe": num_unsafe,
        "num_safe": num_safe,
        "num_pictures": len(set(verdicts.pictures)),
        "f1_averaged_over": [categories[i] for i in _harms_with_rows(support, verdicts.safe)],
        "ece_bins": ECE_BINS,
        "bootstrap": {
            "resampled": "pictures",
            "num_resamples": num_resamples,
            "num_resamples_of_category_curves": num_curve_resamples,
            "seed": seed,
            "level": LEVEL,
        },
    }


def take_verdicts(rows, categories, *, policy=None, threshold=0.5):
    """
    The rows that count for the guard, as [`Verdicts`].

    Raises:
        ValueError: if the categories have no "safe", or the policy is for others; if `threshold` lies outside [0, 1];
            if a row that counts holds probabilities that are not finite, outside [0, 1], of other categories or that
            do not add up to 1, a category that the model has not, or one that contradicts its label.
    """
    categories = list(categories)
    if SAFE not in categories:
        raise ValueError(f"without a category 'safe' nothing is safe or unsafe; got {', '.join(categories)}")
    if policy is not None:
        policy.check(categories)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be a probability in [0, 1]; got {threshold}")
    counted = sorted((row for row in rows if why_not_counted(row) is None), key=lambda row: row.id)
    labels = np.array([_label(row, categories) for row in counted], dtype=int)
    probs = np.array([_probabilities(row.probs, row, categories) for row in counted]).reshape(-1, len(categories))
    # In float32, as the model gives them and `generate` and policies compare them: so the same pictures tie.
    scores = unsafe_probability(probs.astype(np.float32), categories).astype(float)
    flagged = scores >= threshold
    if policy is not None:
        scores = policy.unsafe_score(probs)
        flagged = np.array([_would_act(policy, row, categories) for row in counted], dtype=bool)
        probs = policy.calibrated(probs)
    # A picture of a category that the policy allows is one to let pass, as in `calibrate`.
    allowed = () if policy is None else policy.allowed
    unsafe = np.array([row.unsafe and row.category not in allowed for row in counted], dtype=bool)
    return Verdicts(counted, unsafe, labels, probs, scores, flagged, categories.index(SAFE))


def why_not_counted(row):
    """Why a row says nothing of the guard (`str`), or `None` if it has a verdict and a label."""
    if row.error is not None:
        return row.error
    if row.probs is None:
        return "no verdict"
    return None if row.unsafe is not None else "no label of the picture"


def _label(row, categories):
    """The index of a row's category, -1 if it is unknown. A safe picture's is "safe", whether or not it is given."""
    if not isinstance(row.unsafe, bool):
        raise ValueError(f"row {row.id}: unsafe must be true or false; got {row.unsafe!r}")
    if row.category is not None and row.category not in categories:
        near = get_close_matches(row.category, categories, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(categories)}"
        raise ValueError(f"row {row.id}: the model has no category {row.category!r}; {hint}")
    if row.category is not None and (row.category == SAFE) == row.unsafe:
        label = "unsafe" if row.unsafe else "safe"
        raise ValueError(f"row {row.id} is labelled {label}, but its category is {row.category!r}")
    if not row.unsafe:
        return categories.index(SAFE)
    return -1 if row.category is None else categories.index(row.category)


def _probabilities(probs, row, categories):
    if set(probs) != set(categories):
        odd = sorted(set(probs) ^ set(categories))
        raise ValueError(f"row {row.id}: its verdict and the model's categories differ in {', '.join(odd)}")
    values = np.array([probs[name] for name in categories], dtype=float)
    if not (np.isfinite(values) & (values >= 0) & (values <= 1)).all():
        raise ValueError(f"row {row.id}: probabilities must be finite and in [0, 1]; got {values.tolist()}")
    if abs(values.sum() - 1) > SUM_WITHIN:
        raise ValueError(f"row {row.id}: probabilities must add up to 1; got {values.sum():.4f}")
    return values


def _would_act(policy, row, categories):
    if not row.views:
        return policy.decide(_probabilities(row.probs, row, categories)).would_action != "allow"
    views = np.array([_probabilities(view["probs"], row, categories) for view in row.views])
    return policy.decide(views, frames=[view["frame"] for view in row.views]).would_action != "allow"


def measure_binary(verdicts, chosen):
    """`dict`: each of `BINARY` on the `chosen` rows (indices), NaN where they do not define it."""
    unsafe, scores, flagged = verdicts.unsafe[chosen], verdicts.scores[chosen], verdicts.flagged[chosen]
    found = dict.fromkeys(BINARY, math.nan)
    # zero_division is the value of what is undefined.
    precision, recall, f1, support = precision_recall_fscore_support(
        unsafe, flagged, labels=[False, True], zero_division=np.nan
    )
    found["recall"], found["false_positive_rate"] = recall[1], 1 - recall[0]
    found["brier"] = brier_score_loss(unsafe, scores, pos_label=True)
    found["ece"] = float(
        binary_calibration_error(
            torch.from_numpy(scores), torch.from_numpy(unsafe).long(), n_bins=ECE_BINS, norm="l1", validate_args=False
        )
    )
    if support.min() == 0:
        return found
    found["precision"], found["f1"], found["balanced_accuracy"] = precision[1], f1[1], recall.mean()
    found["auprc"] = average_precision_score(unsafe, scores)
    false_positives, recalls, _ = roc_curve(unsafe, scores, drop_intermediate=False)
    found["auroc"] = auc(false_positives, recalls)
    found["recall_at_1_fpr"] = recalls[false_positives <= 0.01].max()
    found["recall_at_5_fpr"] = recalls[false_positives <= 0.05].max()
    return found


def measure_predictions(verdicts, chosen):
    """`dict`: each of `OF_CATEGORIES`; `(category's index, "f1" | "precision" | "recall")`. NaN where undefined."""
    labels, probs = _known(verdicts, chosen)
    num_categories = probs.shape[1]
    found = dict.fromkeys(OF_CATEGORIES, math.nan)
    found |= {(i, name): math.nan for i in range(num_categories) for name in ("f1", "precision", "recall")}
    if len(labels) == 0:
        return found
    predicted = probs.argmax(axis=1)
    found["top1"] = accuracy_score(labels, predicted)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=range(num_categories), zero_division=np.nan
    )
    if harms := _harms_with_rows(support, verdicts.safe):
        found["f1_micro"] = f1_score(labels, predicted, labels=harms, average="micro")
        found["f1_macro"] = f1[harms].mean()
    for i in np.flatnonzero(support):
        found[i, "recall"] = recall[i]
        if support[i] < len(labels):
            found[i, "f1"], found[i, "precision"] = f1[i], precision[i]
    return found


def measure_curves(verdicts, chosen):
    """`dict`: `(category's index, "auroc" | "auprc")`, the category against all others, NaN where undefined."""
    labels, probs = _known(verdicts, chosen)
    found = {(i, name): math.nan for i in range(probs.shape[1]) for name in ("auroc", "auprc")}
    for i in np.unique(labels):
        if not (labels == i).all():
            false_positives, recalls, _ = roc_curve(labels == i, probs[:, i], drop_intermediate=False)
            found[i, "auroc"] = auc(false_positives, recalls)
            found[i, "auprc"] = average_precision_score(labels == i, probs[:, i])
    return found


def _known(verdicts, chosen):
    chosen = chosen[verdicts.labels[chosen] >= 0]
    return verdicts.labels[chosen], verdicts.probs[chosen]


def _harms_with_rows(support, safe):
    """The indices of the harms that some row is labelled with: F1 is averaged over them, as "safe" would hide them."""
    return [i for i, count in enumerate(support) if count and i != safe]


def _why_undefined(name, num_positive, num_negative, num_predicted, positive, negative):
    """The reason (`str`) for a figure that is NaN."""
    if num_positive == 0 and name != "false_positive_rate":
        return f"only one class: no {positive}"
    if num_negative == 0:
        return f"only one class: no {negative}"
    return "nothing was flagged" if positive == "unsafe picture" else "never predicted"
