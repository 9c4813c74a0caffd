"""Numbers of a policy that are fitted to labelled scores: the temperature, and thresholds with and without a promise.

Everything here takes plain arrays: `scores` are probabilities in [0, 1] that a picture is unsafe, and a picture is
flagged if its score is at least the threshold. [`safeqwen.judging.calibrate`] says which pictures they are of.
"""

from bisect import bisect_left

import numpy as np
from scipy.special import logit
from scipy.stats import binom, binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve


OPERATING_POINTS = {
    "high_precision": "the highest recall among the thresholds with a precision of at least 95 %",
    "balanced": "the largest difference of recall and false-positive rate (Youden's J)",
    "high_recall": "the lowest false-positive rate among the thresholds with a recall of at least 95 %",
}
ENOUGH = 0.95  # of precision, of recall
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
NEAREST = 2.0**-24  # float32 knows no number between 1 - this and 1; a model's 0 and 1 are taken for no more than that


def inside(probs):
    """Probabilities in [0, 1] -> in [2**-24, 1 - 2**-24], whose log-odds are finite: within 16.7 of 0."""
    return np.clip(np.asarray(probs, dtype=np.float64), NEAREST, 1 - NEAREST)


def fit_temperature(scores, unsafe):
    """
    Returns the temperature (`float`) that makes scores the likeliest for the labels, and why it is not fitted (`str`),
    or `None`.

    sigmoid(logit(score) / temperature) has the lowest mean negative log-likelihood (Guo et al. 2017, arXiv 1706.04599,
    section 4.2): logistic regression on the log-odds, without an intercept, whose slope is 1 / temperature. Where that
    has no sensible answer the temperature is 1, with the reason: labels that 0.5 separates without a mistake, for
    which the answer is 0, or an answer outside of [0.05, 20].

    Args:
        scores (`(pictures,)` array of probabilities): not calibrated.
        unsafe (`(pictures,)` array of `bool`): the labels.

    Raises:
        ValueError: if all labels are the same; if the scores rank backwards: harmless pictures above unsafe ones.
    """
    scores, unsafe = np.asarray(scores, dtype=np.float64), np.asarray(unsafe, dtype=bool)
    if unsafe.all() or not unsafe.any():
        kind = "unsafe" if unsafe.any() else "safe"
        raise ValueError(f"expected safe and unsafe pictures, but all {len(unsafe)} are labelled {kind}")
    auroc = roc_auc_score(unsafe, scores)
    if auroc < 0.5:
        raise ValueError(
            f"the guard ranks backwards: its unsafe probability is higher on safe pictures (AUROC {auroc:.3f}, where "
            "0.5 is chance); are the labels swapped, or of another model?"
        )
    log_odds = logit(inside(scores))
    if (np.where(unsafe, log_odds, -log_odds) >= 0).all():
        return 1.0, "the probability 0.5 separates safe from unsafe without a mistake, and any lower one fits better"
    regression = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8, max_iter=1000)
    slope = float(regression.fit(log_odds[:, None], unsafe).coef_[0, 0])
    if not 1 / MAX_TEMPERATURE <= slope <= 1 / MIN_TEMPERATURE:
        answer = f"would be {1 / slope:.3g}" if slope > 0 else "has no answer (the slope is not positive)"
        bounds = f"[{MIN_TEMPERATURE}, {MAX_TEMPERATURE:g}]"
        return 1.0, f"the fit {answer}, outside of {bounds}: the guard's probabilities lean to one side of 0.5"
    return 1 / slope, None


def operating_threshold(name, scores, unsafe):
    """
    Returns the threshold (`float`) of an operating point, halfway between the scores that it parts.

    Args:
        name (`str`): one of `OPERATING_POINTS`, which defines it.
        scores (`(pictures,)` array of probabilities), unsafe (`(pictures,)` array of `bool`): with both labels.

    Raises:
        ValueError: if no threshold is such a point.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if name == "high_precision":
        precision, recall, thresholds = precision_recall_curve(unsafe, scores)
        precision, recall = precision[:-1], recall[:-1]  # the curve's last point has no threshold
        if not (precision >= ENOUGH).any():
            raise ValueError(
                f"{name}: no threshold has a precision of 95 %, the best has {precision.max():.1%}; choose another "
                "point, or a larger share of unsafe rows if yours is not what the guard will see"
            )
        highest = recall[precision >= ENOUGH].max()
        return _halfway(thresholds[(precision >= ENOUGH) & (recall == highest)].max(), scores)
    false_positive_rate, recall, thresholds = roc_curve(unsafe, scores, drop_intermediate=False)
    if name == "high_recall":
        return _halfway(thresholds[(recall >= ENOUGH).argmax()], scores)
    best = np.round(recall - false_positive_rate, 12).argmax()  # of equal ones the highest threshold
    if not np.isfinite(thresholds[best]):  # the curve's first point, where nothing is flagged
        raise ValueError(f"{name}: no threshold flags a larger share of the unsafe pictures than of the safe ones")
    return _halfway(thresholds[best], scores)


def num_rows_needed(max_fpr, confidence):
    """Returns the fewest safe pictures (`int`) that can promise the rate: the smallest n with (1 - max_fpr)**n <= 1 -
    confidence, for with n of them none is flagged by chance in that share of draws."""
    return 1 + bisect_left(range(1, 10**15), True, key=lambda n: binom.cdf(0, n, max_fpr) <= 1 - confidence)


def num_false_positives_allowed(num_safe, max_fpr, confidence):
    """Returns how many of the safe pictures a promised threshold may flag (`int`); -1 if there are too few for any."""
    p_values = binom.cdf(np.arange(num_safe + 1), num_safe, max_fpr)
    return int((p_values <= 1 - confidence).sum()) - 1


def promised_threshold(safe_scores, other_scores, max_fpr, confidence):
    """
    Returns a threshold (`float`) whose false-positive rate on new safe pictures is at most `max_fpr`, with probability
    at least `confidence` over the draw of `safe_scores`, whatever their distribution.

    Learn-then-Test (Angelopoulos et al., arXiv 2110.01052, sections 2 and 3) with fixed-sequence testing: all numbers
    from high to low are tested, each by "its rate exceeds max_fpr", until one is not rejected. The p-value is the
    binomial probability of no more false positives than were seen. The sequence is fixed before any score is seen:
    that the count changes at observed scores only is what makes it finite to walk, and is no choice made on the data.
    Since the rate falls as the threshold rises, the first true hypothesis of the sequence is one and the same for
    every draw, and it is rejected in at most 1 - confidence of them. This is also the order statistic of the
    Neyman-Pearson umbrella algorithm (Tong, Feng & Li, arXiv 1608.03109, proposition 1), which holds with ties.
    All thresholds before the stop are promised at once, so any of them may be taken by any rule: here the lowest gap
    between observed scores, halfway.

    Args:
        safe_scores (`(pictures,)` array of probabilities): of safe pictures, independent of one another and of what
            made the scores.
        other_scores (array of probabilities): of unsafe pictures. They place the threshold in the gap and no more.
        max_fpr, confidence (`float` in (0, 1)).

    Raises:
        ValueError: if there are too few safe pictures to promise it (how many are needed), or too many of them have a
            score of 1.
    """
    safe_scores = np.sort(np.asarray(safe_scores, dtype=np.float64))[::-1]
    allowed = num_false_positives_allowed(len(safe_scores), max_fpr, confidence)
    if allowed < 0:
        raise ValueError(
            f"{len(safe_scores)} safe pictures to fit to are too few to promise a false-positive rate of at most "
            f"{max_fpr:.2%} with probability {confidence:.2%}: it takes {num_rows_needed(max_fpr, confidence)} or "
            "more, none of which is flagged then; add safe rows, hold out fewer, or ask for a higher rate or a lower "
            "confidence"
        )
    above = safe_scores[allowed]  # the highest score that must not be flagged
    if above == 1:
        raise ValueError(
            f"{allowed + 1} or more of {len(safe_scores)} safe pictures have an unsafe probability of 1, and "
            f"{allowed} may be flagged: no threshold promises a false-positive rate of at most {max_fpr:.2%}"
        )
    scores = np.concatenate([safe_scores, np.asarray(other_scores, dtype=np.float64), [1.0]])
    return _halfway(scores[scores > above].min(), scores)


def rate(count, total):
    """Returns `{"value", "low", "high", "n"}`: a rate with its 95 % interval of Clopper and Pearson, which covers the
    true rate in at least 95 % of draws; or all `None` for a total of 0."""
    if total == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    low, high = binomtest(int(count), int(total)).proportion_ci(0.95, method="exact")
    return {"value": count / total, "low": float(low), "high": float(high), "n": int(total)}


def _halfway(threshold, scores):
    """An observed score -> the middle between it and the next lower one, so that both keep their side when rounded."""
    lower = scores[scores < threshold]
    middle = (threshold + lower.max()) / 2 if lower.size else threshold
    return float(middle if not lower.size or middle > lower.max() else threshold)
