"""Temperature and thresholds on numbers worked by hand, by scipy and MAPIE, and over redrawn sets of a known rate."""

import numpy as np
import pytest
from mapie.risk_control import BinaryClassificationController
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from scipy.stats import beta, binom, binomtest
from sklearn.metrics import log_loss

from safeqwen.judging.thresholds import (
    fit_temperature,
    inside,
    num_false_positives_allowed,
    num_rows_needed,
    operating_threshold,
    promised_threshold,
    rate,
)


def noisy(num, temperature, seed=0):
    """Scores that are right if their log-odds are divided by the temperature."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(scale=2, size=num)
    return expit(log_odds * temperature), rng.random(num) < expit(log_odds)


# ------------------------------------------------------------------------------------------------------- temperature


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_one_of_the_lowest_negative_log_likelihood(temperature):
    scores, unsafe = noisy(2_000, temperature)
    found, why = fit_temperature(scores, unsafe)
    best = minimize_scalar(lambda t: log_loss(unsafe, expit(logit(scores) / t)), bounds=(0.05, 20), method="bounded")
    assert why is None
    assert found == pytest.approx(best.x, rel=1e-3)
    assert found == pytest.approx(temperature, rel=0.15)


def test_three_of_four_right_at_a_log_odds_of_two_gives_two_over_log_three():
    """At logit +-2 the guard is right in 3 of 4: the likeliest probability there is 3/4, whose log-odds are log 3."""
    scores = np.repeat(expit([2.0, -2.0]), 4)
    unsafe = np.array([1, 1, 1, 0, 0, 0, 0, 1], dtype=bool)
    assert fit_temperature(scores, unsafe)[0] == pytest.approx(2 / np.log(3), rel=1e-4)


def test_labels_without_a_mistake_leave_the_temperature_at_one_and_say_so():
    temperature, why = fit_temperature([0.1, 0.4, 0.6, 0.9], [False, False, True, True])
    assert temperature == 1 and "without a mistake" in why


def test_a_guard_that_leans_to_one_side_keeps_its_temperature_and_says_so():
    scores, unsafe = np.array([0.9] * 18 + [0.99] * 2), np.array([False] * 17 + [True] * 3)
    temperature, why = fit_temperature(scores, unsafe)
    assert temperature == 1 and "slope is not positive" in why


def test_scores_of_exactly_zero_and_one_give_finite_numbers():
    scores = np.array([0] * 9 + [1] * 9 + [0, 1], dtype=np.float32)
    unsafe = np.array([0] * 9 + [1] * 9 + [1, 0], dtype=bool)  # the last two are as wrong as can be
    temperature, why = fit_temperature(scores, unsafe)
    assert why is None
    assert temperature == pytest.approx(np.log(2**24) / np.log(9), rel=1e-3)  # 9 of 10 right at log-odds of 24 log 2
    assert np.isfinite(log_loss(unsafe, inside(scores)))


@pytest.mark.parametrize(("label", "kind"), [(False, "safe"), (True, "unsafe")])
def test_one_label_alone_is_refused(label, kind):
    with pytest.raises(ValueError, match=f"all 2 are labelled {kind}"):
        fit_temperature([0.1, 0.9], [label, label])


def test_a_guard_that_ranks_backwards_is_refused():
    scores, unsafe = noisy(200, 1.0)
    with pytest.raises(ValueError, match="ranks backwards.*AUROC 0.1"):
        fit_temperature(1 - scores, unsafe)


# -------------------------------------------------------------------------------------------------- operating points

#                  safe   safe  unsafe  safe  unsafe  unsafe
SCORES = np.array([0.125, 0.25, 0.375, 0.5, 0.625, 0.875])
UNSAFE = np.array([False, False, True, False, True, True])


@pytest.mark.parametrize(
    ("name", "threshold"),
    [
        ("high_precision", 0.5625),  # 2 of 2 flagged are unsafe; one lower 2 of 3, two lower 3 of 4
        ("balanced", 0.5625),  # 2/3 - 0, as good as 3/3 - 1/3: of equal ones the highest
        ("high_recall", 0.3125),  # 3 of 3, and 1 of 3 safe ones
    ],
)
def test_each_operating_point_lies_halfway_between_the_scores_that_its_definition_parts(name, threshold):
    assert operating_threshold(name, SCORES, UNSAFE) == threshold


def test_high_precision_does_not_go_lower_for_no_more_recall():
    scores = np.concatenate([np.full(39, 0.875), [0.5, 0.25]])  # a safe one at 0.5 still leaves 39 of 40
    unsafe = np.array([True] * 39 + [False, False])
    assert operating_threshold("high_precision", scores, unsafe) == (0.875 + 0.5) / 2


def test_a_precision_that_no_threshold_has_is_refused_with_the_best_one():
    with pytest.raises(ValueError, match="the best has 75.0%"):
        operating_threshold("high_precision", [0.875, 0.75, 0.5, 0.25], [False, True, True, True])


def test_a_point_below_which_no_score_lies_flags_all():
    assert operating_threshold("high_recall", [0.5, 0.75], [True, False]) == 0.5


# ----------------------------------------------------------------------------------------------------------- promise


@pytest.mark.parametrize(("max_fpr", "confidence", "needed"), [(0.05, 0.9, 45), (0.1, 0.9, 22), (0.01, 0.95, 299)])
def test_the_rows_that_are_needed_are_the_fewest_that_can_promise(max_fpr, confidence, needed):
    """0.95^44 = 0.105 and 0.95^45 = 0.099; 0.9^21 = 0.109 and 0.9^22 = 0.098; 0.99^298 > 0.05 > 0.99^299."""
    assert num_rows_needed(max_fpr, confidence) == needed
    assert num_false_positives_allowed(needed, max_fpr, confidence) == 0
    assert num_false_positives_allowed(needed - 1, max_fpr, confidence) == -1
    with pytest.raises(ValueError, match=f"it takes {needed} or more"):
        promised_threshold(np.linspace(0, 0.5, needed - 1), [], max_fpr, confidence)


def test_of_a_hundred_safe_pictures_one_may_be_flagged_for_five_percent():
    """Binomial(100, 0.05): no more than 1 has the probability 0.037, no more than 2 has 0.118."""
    assert num_false_positives_allowed(100, 0.05, 0.9) == 1
    safe = np.arange(100) / 128
    threshold = promised_threshold(safe, [], 0.05, 0.9)
    assert threshold == (98 + 99) / 2 / 128
    assert (safe >= threshold).sum() == 1
    assert promised_threshold(safe, [98.25 / 128], 0.05, 0.9) == (98 + 98.25) / 2 / 128  # the gap is smaller


def test_equal_scores_are_never_parted():
    safe = np.concatenate([np.zeros(90), np.full(10, 0.5)])  # one may be flagged, and ten stand and fall together
    assert promised_threshold(safe, [0.75], 0.05, 0.9) == 0.625


def test_too_many_safe_scores_of_one_are_refused():
    safe = np.concatenate([np.zeros(98), np.ones(2)])
    with pytest.raises(ValueError, match="2 or more of 100 safe pictures have an unsafe probability of 1"):
        promised_threshold(safe, [], 0.05, 0.9)
    assert promised_threshold(safe[:-1], [], 0.1, 0.9) == 0.5


def test_neighbouring_floats_are_parted():
    below = 0.5
    above = np.nextafter(below, 1)
    threshold = promised_threshold(np.concatenate([np.zeros(98), [below, above]]), [], 0.05, 0.9)
    assert threshold == above


@pytest.mark.parametrize(("num", "max_fpr"), [(60, 0.05), (100, 0.1), (250, 0.05), (250, 0.02)])
def test_the_threshold_is_the_lowest_that_mapie_accepts(num, max_fpr):
    rng = np.random.default_rng(num)
    safe, unsafe = rng.beta(1, 6, num), rng.beta(4, 2, num)
    scores = np.sort(safe)[::-1]
    between = (scores + np.concatenate([[1.0], scores[:-1]])) / 2
    controller = BinaryClassificationController(
        lambda x: np.stack([1 - x, x], axis=1),
        "fpr",
        max_fpr,
        0.9,
        list_predict_params=between,
        fwer_method="fixed_sequence",
    )
    controller.calibrate(np.concatenate([safe, unsafe]), np.repeat([0, 1], num))
    assert promised_threshold(safe, [], max_fpr, 0.9) == controller.best_predict_param


@pytest.mark.parametrize(("num", "max_fpr"), [(45, 0.05), (100, 0.05), (100, 0.1), (300, 0.05), (1_000, 0.1)])
def test_over_redrawn_sets_the_promise_is_broken_in_no_more_than_its_share(num, max_fpr):
    rng = np.random.default_rng(num)
    safe, unsafe = beta(1, 6).rvs((200, num), random_state=rng), beta(4, 2).rvs((200, num), random_state=rng)
    thresholds = [promised_threshold(*scores, max_fpr, 0.9) for scores in zip(safe, unsafe)]
    broken = int((beta(1, 6).sf(thresholds) > max_fpr).sum())  # the rate of each threshold on new rows, exactly
    assert broken <= binom.ppf(0.99, 200, 0.1)  # 30
    assert binomtest(broken, 200, 0.1, alternative="greater").pvalue > 0.01
    assert broken > 0  # a threshold that never errs would have given recall away


def test_the_promise_holds_where_many_scores_are_equal():
    rng = np.random.default_rng(0)
    values, shares = np.array([0.0, 0.25, 0.5, 0.75]), np.array([0.8, 0.12, 0.05, 0.03])
    thresholds = np.array([promised_threshold(rng.choice(values, 100, p=shares), [], 0.05, 0.9) for _ in range(200)])
    rates = ((values >= thresholds[:, None]) * shares).sum(axis=1)
    assert (rates > 0.05).sum() <= binom.ppf(0.99, 200, 0.1)


def test_a_quantile_of_the_same_scores_breaks_the_rate_in_about_half_of_the_sets():
    rng = np.random.default_rng(0)
    sets = beta(1, 6).rvs((200, 100), random_state=rng)
    broken = (beta(1, 6).sf(np.quantile(sets, 0.95, axis=1)) > 0.05).sum()
    assert broken > binom.ppf(0.99, 200, 0.1)


# --------------------------------------------------------------------------------------------------------- intervals


def test_the_interval_of_a_rate_is_clopper_and_pearsons():
    """Without a case in n the upper end solves (1 - p)^n = 0.025."""
    found = rate(0, 100)
    assert (found["value"], found["low"], found["n"]) == (0, 0, 100)
    assert found["high"] == pytest.approx(1 - 0.025 ** (1 / 100))
    middle = rate(7, 50)
    assert middle["low"] == pytest.approx(beta(7, 44).ppf(0.025))
    assert middle["high"] == pytest.approx(beta(8, 43).ppf(0.975))
    assert rate(0, 0) == {"value": None, "low": None, "high": None, "n": 0}
