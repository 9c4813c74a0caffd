"""The figures of the guard against numbers worked by hand and against scikit-learn on the same arrays."""

import dataclasses
import math
import random

import numpy as np
import pytest
import sklearn.metrics
from guard_rows import CATEGORIES, judged, random_rows, six_rows

from safeqwen.evaluation.guard_metrics import guard_metrics, measure_binary, take_verdicts
from safeqwen.judging.policy import SafetyPolicy


def values(figures):
    return {
        name: figure["value"] for name, figure in figures.items() if isinstance(figure, dict) and "value" in figure
    }


@pytest.fixture(scope="module")
def six():
    return guard_metrics(six_rows(), CATEGORIES, num_resamples=100)


@pytest.fixture(scope="module")
def two_hundred():
    return random_rows(200)


def test_decisions_are_counted_by_hand(six):
    # From 0.5 on a, b and d are flagged: 2 unsafe pictures of 3, and 1 safe one of 3.
    for name in ("precision", "recall", "f1", "balanced_accuracy"):
        assert six[name]["value"] == pytest.approx(2 / 3), name
    assert six["false_positive_rate"]["value"] == pytest.approx(1 / 3)
    assert (six["num_rows"], six["num_unsafe"], six["num_safe"], six["num_pictures"]) == (6, 3, 3, 6)
    assert [six[name]["n"] for name in ("precision", "recall", "false_positive_rate", "f1")] == [3, 3, 3, 6]


def test_ranks_are_counted_by_hand(six):
    # 0.9 is above all three safe ones, 0.6 above two and equal to one, 0.3 above two: 3 + 2.5 + 2 of 9 pairs.
    assert six["auroc"]["value"] == pytest.approx(7.5 / 9)
    # Precision 1, 2/3 (0.6 takes a safe one with it) and 3/4, each for a third more of the recall.
    assert six["auprc"]["value"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    # With no false positive among three safe ones the threshold is 0.9, which one of three reaches.
    for name in ("recall_at_1_fpr", "recall_at_5_fpr"):
        assert six[name]["value"] == pytest.approx(1 / 3)
        assert six[name]["reason"].startswith("coarse: there are 3 safe rows only, each 33.3%")


def test_calibration_is_worked_by_hand(six):
    # Squares of 0.1, 0.4, 0.7 (unsafe) and of 0.6, 0.2, 0.1 (safe).
    assert six["brier"]["value"] == pytest.approx((0.01 + 0.16 + 0.49 + 0.36 + 0.04 + 0.01) / 6)
    # Only b and d share a bin: 0.6 where half are unsafe. |0.9 - 1| + 2 |0.6 - 0.5| + |0.3 - 1| + 0.2 + 0.1 of 6 rows.
    assert six["ece"]["value"] == pytest.approx((0.1 + 0.2 + 0.7 + 0.2 + 0.1) / 6)
    assert six["ece_bins"] == 15


def test_categories_are_counted_by_hand(six):
    # Predicted: a weapons, b weapons (it is drugs), c safe (it is weapons), d, e and f safe.
    assert six["top1"]["value"] == pytest.approx(4 / 6)
    assert six["confusion_matrix"] == {"labels": CATEGORIES, "counts": [[3, 0, 0], [1, 1, 0], [0, 1, 0]]}
    weapons, drugs, safe = (six["per_category"][name] for name in ("weapons", "drugs", "safe"))
    # weapons: 1 found, 1 missed, 1 too many; drugs: 1 missed; so both together 2 x 1 / (2 x 1 + 1 + 2).
    assert values(weapons) == pytest.approx(
        {"auroc": 6 / 8, "auprc": 0.75, "f1": 0.5, "precision": 0.5, "recall": 0.5}
    )
    assert (drugs["f1"]["value"], drugs["recall"]["value"]) == (0, 0)
    assert drugs["precision"]["value"] is None and drugs["precision"]["reason"] == "never predicted"
    assert drugs["auroc"]["value"] == pytest.approx(2.5 / 5)  # equal to three of the others, above one, below one
    assert (safe["precision"]["value"], safe["recall"]["value"]) == (0.75, 1)
    assert six["f1_micro"]["value"] == pytest.approx(0.4)
    assert six["f1_macro"]["value"] == pytest.approx((0.5 + 0) / 2)
    assert six["f1_averaged_over"] == ["weapons", "drugs"]
    assert [each["support"] for each in (safe, weapons, drugs)] == [3, 2, 1]


def test_figures_are_those_of_scikit_learn(two_hundred):
    found = guard_metrics(two_hundred, CATEGORIES, num_resamples=100, threshold=0.7)
    unsafe = np.array([row.unsafe for row in two_hundred])
    probs = np.array([list(row.probs.values()) for row in two_hundred])
    scores = 1 - probs[:, 0]
    labels = [CATEGORIES.index(row.category) for row in two_hundred]
    predicted = probs.argmax(axis=1)
    rates, recalls, _ = sklearn.metrics.roc_curve(unsafe, scores, drop_intermediate=False)
    expected = {
        "auroc": sklearn.metrics.roc_auc_score(unsafe, scores),
        "auprc": sklearn.metrics.average_precision_score(unsafe, scores),
        "f1": sklearn.metrics.f1_score(unsafe, scores >= 0.7),
        "precision": sklearn.metrics.precision_score(unsafe, scores >= 0.7),
        "recall": sklearn.metrics.recall_score(unsafe, scores >= 0.7),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(unsafe, scores >= 0.7),
        "false_positive_rate": (scores[~unsafe] >= 0.7).mean(),
        "recall_at_1_fpr": max(recall for rate, recall in zip(rates, recalls) if rate <= 0.01),
        "recall_at_5_fpr": max(recall for rate, recall in zip(rates, recalls) if rate <= 0.05),
        "brier": ((scores - unsafe) ** 2).mean(),
        "top1": (labels == predicted).mean(),
        "f1_micro": sklearn.metrics.f1_score(labels, predicted, labels=[1, 2], average="micro"),
        "f1_macro": sklearn.metrics.f1_score(labels, predicted, labels=[1, 2], average="macro"),
    }
    found_values = values(found)
    assert found_values.pop("ece") == pytest.approx(calibration_error(unsafe, scores))
    assert found_values == pytest.approx(expected)
    for i, category in enumerate(CATEGORIES):
        is_it = np.array(labels) == i
        assert values(found["per_category"][category]) == pytest.approx(
            {
                "auroc": sklearn.metrics.roc_auc_score(is_it, probs[:, i]),
                "auprc": sklearn.metrics.average_precision_score(is_it, probs[:, i]),
                "f1": sklearn.metrics.f1_score(is_it, predicted == i),
                "precision": sklearn.metrics.precision_score(is_it, predicted == i),
                "recall": sklearn.metrics.recall_score(is_it, predicted == i),
            }
        )


def calibration_error(unsafe, scores):
    """Naeini et al. 2015, equation 3: the mean distance of score and share of unsafe ones, by 15 bins."""
    bins = np.minimum((scores * 15).astype(int), 14)
    return sum(abs(scores[bins == i].sum() - unsafe[bins == i].sum()) for i in range(15)) / len(scores)


def test_a_score_that_equals_the_threshold_is_unsafe():
    rows = [judged("a", [0.5, 0.5, 0], "weapons"), judged("b", [0.5, 0.25, 0.25], "safe")]
    assert take_verdicts(rows, CATEGORIES, threshold=0.5).flagged.all()


def test_the_false_positive_rate_may_reach_one_percent_and_no_more():
    def at(id, score, category):  # in 256ths, which floats hold exactly
        return judged(id, [1 - score / 256, score / 256, 0], category)

    rows = [at(f"safe {score}", score, "safe") for score in range(1, 101)]
    rows += [at("above all", 200, "weapons"), at("as the highest", 100, "weapons"), at("as the next", 99, "weapons")]
    found = measure_binary(take_verdicts(rows, CATEGORIES), np.arange(len(rows)))
    # From 100 on one safe picture of 100 is flagged, from 99 on two.
    assert found["recall_at_1_fpr"] == 2 / 3
    assert found["recall_at_5_fpr"] == 1


def test_the_order_of_the_rows_changes_nothing(two_hundred):
    shuffled = random.Random(0).sample(two_hundred, len(two_hundred))
    same = guard_metrics(two_hundred, CATEGORIES, num_resamples=100)
    assert guard_metrics(shuffled, CATEGORIES, num_resamples=100) == same
    assert guard_metrics(two_hundred, CATEGORIES, num_resamples=100, seed=1) != same


def test_rows_of_one_picture_do_not_make_a_figure_surer(two_hundred):
    once = guard_metrics(two_hundred, CATEGORIES, num_resamples=100)
    copies = [dataclasses.replace(row, id=f"{row.id} again") for row in two_hundred]
    twice = guard_metrics(two_hundred + copies, CATEGORIES, num_resamples=100)
    for name, figure in once.items():
        if isinstance(figure, dict) and "value" in figure:
            for bound in ("value", "low", "high"):
                assert twice[name][bound] == pytest.approx(figure[bound], abs=1e-9), name
    others = [dataclasses.replace(row, id=f"{row.id} again", image_sha256=f"{row.id} again") for row in two_hundred]
    surer = guard_metrics(two_hundred + others, CATEGORIES, num_resamples=100)
    width, narrower = (each["auroc"]["high"] - each["auroc"]["low"] for each in (once, surer))
    assert narrower < 0.85 * width  # a little more than 1 / sqrt(2)


def test_rows_without_a_digest_are_pictures_of_their_own():
    rows = [dataclasses.replace(row, image_sha256=None) for row in six_rows()]
    assert take_verdicts(rows, CATEGORIES).pictures == [f"row {id}" for id in "abcdef"]


def test_pictures_that_tie_before_a_temperature_tie_after_it():
    safe = [1e-9, 1e-10, 2**-24, 0.4, 0.4 + 1e-9, 1 - 2**-24, 1 - 2**-23]  # float32's 1 - p(safe): 1, 1, ..., 2**-23
    rows = [judged(str(i), [p, (1 - p), 0], None, unsafe=i in (1, 2, 4, 6)) for i, p in enumerate(safe)]
    before = take_verdicts(rows, CATEGORIES).scores
    for temperature in (0.5, 3.0):
        policy = SafetyPolicy(categories=CATEGORIES, temperature=temperature)
        after = take_verdicts(rows, CATEGORIES, policy=policy).scores
        assert np.array_equal(np.sign(before[:, None] - before), np.sign(after[:, None] - after))


def test_temperature_moves_calibration_and_no_rank(two_hundred):
    policy = SafetyPolicy(categories=CATEGORIES, temperature=2.0)
    before = guard_metrics(two_hundred, CATEGORIES, num_resamples=100)
    after = guard_metrics(two_hundred, CATEGORIES, policy=policy, num_resamples=100)
    for name in ("auroc", "auprc", "recall_at_1_fpr", "f1"):  # logit(0.5) is 0: the decisions stay, too
        assert after[name] == pytest.approx(before[name], abs=1e-9), name
    assert after["ece"]["value"] != pytest.approx(before["ece"]["value"], abs=0.01)
    assert (before["decided_by"], after["decided_by"]) == ("threshold", "policy")


def test_a_policy_decides_by_its_own_rules_even_in_shadow():
    # b's 0.6 is weapons 0.5 and drugs 0.1. With drugs allowed, a counts 0.8, b 0.5, d 0.25.
    policy = SafetyPolicy(
        categories=CATEGORIES, unsafe_threshold=0.45, actions={"unsafe": "flag", "drugs": "allow"}, mode="shadow"
    )
    verdicts = take_verdicts(six_rows(), CATEGORIES, policy=policy)
    assert verdicts.flagged.tolist() == [True, True] + [False] * 4
    # b is labelled drugs, which the policy lets pass: to flag it is a mistake.
    assert verdicts.unsafe.tolist() == [row.unsafe and row.category != "drugs" for row in six_rows()]


def test_a_clip_is_decided_by_its_views():
    views = [
        {"frame": i, "probs": dict(zip(CATEGORIES, [0.1, 0.9, 0] if i == 0 else [0.9, 0.1, 0]))} for i in range(3)
    ]
    clip = judged("clip", [0.1, 0.9, 0], "safe", views=views)
    two_of_three = SafetyPolicy(categories=CATEGORIES, clip={"at_least": 2, "of": 3})
    assert take_verdicts([clip], CATEGORIES).flagged.tolist() == [True]
    assert take_verdicts([clip], CATEGORIES, policy=two_of_three).flagged.tolist() == [False]


# ------------------------------------------------------------------------------------------------ what does not count


def test_rows_without_verdict_or_label_do_not_count():
    first = six_rows()[0]
    rows = [dataclasses.replace(first, id=id) for id in ("0", "1", "2", "3")]
    rows[1].error, rows[2].probs, rows[3].unsafe = "cut off", None, None
    assert [row.id for row in take_verdicts(rows, CATEGORIES).rows] == ["0"]


def test_a_category_without_counterpart_counts_as_unsafe_alone():
    rows = [*six_rows(), judged("g", [0.2, 0.7, 0.1], None, their_category="spam")]
    found = guard_metrics(rows, CATEGORIES, num_resamples=100)
    assert found["num_unsafe"] == 4 and found["recall"]["value"] == pytest.approx(3 / 4)
    assert found["top1"]["n"] == 6 and found["top1"]["value"] == pytest.approx(4 / 6)


def test_a_safe_picture_needs_no_category():
    rows = [dataclasses.replace(row, category=None) if not row.unsafe else row for row in six_rows()]
    assert take_verdicts(rows, CATEGORIES).labels.tolist() == [1, 2, 1, 0, 0, 0]


# ------------------------------------------------------------------------------------------------ what is undefined


def test_one_class_leaves_undefined_what_needs_two():
    unsafe = guard_metrics(six_rows()[:3], CATEGORIES, num_resamples=100)
    for name in ("auroc", "auprc", "f1", "precision", "balanced_accuracy", "recall_at_1_fpr", "false_positive_rate"):
        assert unsafe[name]["value"] is None, name
        assert unsafe[name]["reason"] == "only one class: no safe picture"
    assert unsafe["recall"]["value"] == pytest.approx(2 / 3)
    assert unsafe["brier"]["value"] == pytest.approx((0.01 + 0.16 + 0.49) / 3)
    safe = guard_metrics(six_rows()[3:], CATEGORIES, num_resamples=100)
    assert safe["recall"]["reason"] == safe["auroc"]["reason"] == "only one class: no unsafe picture"
    assert safe["false_positive_rate"]["value"] == pytest.approx(1 / 3)
    assert safe["f1_macro"]["reason"] == "no row of a known harm"
    assert safe["per_category"]["drugs"]["f1"]["reason"] == "only one class: no row of drugs"


def test_precision_of_nothing_flagged_is_not_zero():
    found = guard_metrics(six_rows(), CATEGORIES, threshold=0.95, num_resamples=100)
    assert found["precision"]["value"] is None and found["precision"]["reason"] == "nothing was flagged"
    assert (found["recall"]["value"], found["f1"]["value"]) == (0, 0)


def test_there_is_no_interval_where_many_resamples_lack_a_class(six):
    # Of six pictures drawn from six, the only one of drugs is missed with probability (5/6)^6 = 33 %.
    recall = six["per_category"]["drugs"]["recall"]
    assert recall["value"] == 0 and recall["low"] is recall["high"] is None
    assert 15 < recall["undefined_resamples"] < 55 and "too few pictures" in recall["reason"]


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"probs": {"safe": math.nan, "weapons": 0.5, "drugs": 0.5}}, "row a: probabilities must be finite"),
        ({"probs": {"safe": None, "weapons": 0.5, "drugs": 0.5}}, "row a: probabilities must be finite"),
        (
            {"probs": {"safe": -0.5, "weapons": 1.0, "drugs": 0.5}},
            r"row a: probabilities must be finite and in \[0, 1\]",
        ),
        ({"probs": {"safe": 0.5, "weapons": 0.9, "drugs": 0.5}}, "row a: probabilities must add up to 1; got 1.9"),
        ({"probs": {}}, "row a: its verdict and the model's categories differ in drugs, safe, weapons"),
        ({"probs": {"safe": 0.5, "weapons": 0.3, "drug": 0.2}}, "row a: .* differ in drug, drugs"),
        ({"category": "weapon"}, "row a: the model has no category 'weapon'; did you mean 'weapons'?"),
        ({"category": "safe"}, "row a is labelled unsafe, but its category is 'safe'"),
        ({"unsafe": False}, "row a is labelled safe, but its category is 'weapons'"),
        ({"unsafe": "yes"}, "row a: unsafe must be true or false; got 'yes'"),
    ],
)
def test_a_row_that_cannot_be_right_is_refused(change, reason):
    row, *others = six_rows()
    with pytest.raises(ValueError, match=reason):
        guard_metrics([dataclasses.replace(row, **change), *others], CATEGORIES)


def test_a_view_that_is_not_finite_is_refused():
    views = [{"frame": 0, "probs": dict(zip(CATEGORIES, [math.nan, 0.5, 0.5]))}]
    with pytest.raises(ValueError, match="row a: probabilities must be finite"):
        take_verdicts(
            [judged("a", [0.1, 0.9, 0], views=views)], CATEGORIES, policy=SafetyPolicy(categories=CATEGORIES)
        )


def test_settings_that_cannot_be_right_are_refused():
    with pytest.raises(ValueError, match="without a category 'safe'"):
        guard_metrics(six_rows(), ["benign", "weapons", "drugs"])
    with pytest.raises(ValueError, match="the policy is for another taxonomy"):
        guard_metrics(six_rows(), CATEGORIES, policy=SafetyPolicy(categories=["safe", "drugs", "weapons"]))
    for threshold in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match="threshold must be a probability"):
            guard_metrics(six_rows(), CATEGORIES, threshold=threshold)
    with pytest.raises(ValueError, match="num_resamples must be 100 or more"):
        guard_metrics(six_rows(), CATEGORIES, num_resamples=10)
    with pytest.raises(ValueError, match="none of the 1 rows has both a verdict and a label"):
        guard_metrics([judged("a", [0.1, 0.9, 0], error="cut off")], CATEGORIES)
