"""A policy fitted to rows: what counts, what is split, what is promised, and what is refused."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from scipy.stats import beta, binom
from sklearn.metrics import brier_score_loss, log_loss, precision_score, recall_score

from safeqwen.evaluation.rows import Row
from safeqwen.judging.calibrate import _one_a_picture, _reliability, _split, calibrate
from safeqwen.judging.policy import SafetyPolicy


CATEGORIES = ["safe", "weapon", "drug"]


def row(number, unsafe, score, category="weapon", share=0.75, **fields):
    """A row with the unsafe probability `score`, of which `share` is its category's."""
    other = "drug" if category == "weapon" else "weapon"
    probs = {"safe": 1 - score, category: share * score, other: (1 - share) * score}
    label = category if unsafe else "safe"
    return Row(
        **{"id": f"{number}", "image_sha256": f"sha {number}", "unsafe": unsafe, "category": label, **fields},
        probs=probs,
    )


def draw_rows(num_safe=150, num_unsafe=150, seed=0):
    """Safe pictures score as Beta(1, 6), unsafe ones as Beta(4, 2), half of them of either category."""
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.beta(1, 6, num_safe), rng.beta(4, 2, num_unsafe)])
    return [row(i, i >= num_safe, score, ("weapon", "drug")[i % 2]) for i, score in enumerate(scores.tolist())]


def clip(number, unsafe, scores):
    views = [{"frame": i, "probs": {"safe": 1 - s, "weapon": s, "drug": 0.0}} for i, s in enumerate(scores)]
    probs = max(views, key=lambda view: view["probs"]["weapon"])["probs"]
    label = "weapon" if unsafe else "safe"
    return Row(
        f"clip {number}", image_sha256=f"clip {number}", unsafe=unsafe, category=label, probs=probs, views=views
    )


# -------------------------------------------------------------------------------------------------------- which rows


def test_rows_without_label_or_verdict_are_left_out_and_counted():
    bad = [
        row("a", None, 0.9),
        dataclasses.replace(row("b", True, 0.9), probs=None, error="cut off"),
        dataclasses.replace(row("c", True, 0.9), image_sha256=None),
        dataclasses.replace(row("d", True, 0.9), category="safe"),
        dataclasses.replace(row("e", False, 0.1), category="drug"),
    ]
    found = calibrate([*bad, *draw_rows()], CATEGORIES)
    assert found.policy.fitted["pictures"]["rows_left_out"] == {
        "no label of the picture": 1,
        "no verdict": 1,
        "no image_sha256, which tells pictures apart": 1,
        "label and category contradict each other": 2,
    }
    assert "1 rows left out: no verdict" in found.notes


def test_a_picture_counts_once_however_many_rows_have_it():
    rows = draw_rows()
    fives = [dataclasses.replace(one, id=f"{one.id} {i}") for one in rows for i in range(5)]
    once, fivefold = (calibrate(some, CATEGORIES, max_fpr=0.1).policy for some in (rows, fives))
    assert fivefold.fitted["pictures"]["rows_left_out"] == {"a picture that another row has": 4 * 300}
    assert fivefold.unsafe_threshold == once.unsafe_threshold and fivefold.temperature == once.temperature


def test_no_picture_is_on_both_sides_of_the_split():
    rows = [dataclasses.replace(one, id=f"{one.id} {i}") for one in draw_rows() for i in range(2)]
    pictures, _ = _one_a_picture(rows, CATEGORIES, [])
    fit, held = ({picture.probs.tobytes() for picture in part} for part in _split(pictures, 0.3, 0))
    assert not fit & held
    assert (len(fit), len(held)) == (210, 90)


def test_the_split_keeps_the_shares_of_labels_and_clips_and_follows_its_seed():
    clips = [clip(i, i >= 60, [0.1, 0.2]) for i in range(120)]
    pictures, _ = _one_a_picture([*draw_rows(100, 60), *clips], CATEGORIES, [])
    fit, held = _split(pictures, 0.25, 0)
    kinds = Counter((picture.unsafe, picture.num_frames) for picture in held)
    assert kinds == {(False, 1): 25, (True, 1): 15, (False, 2): 15, (True, 2): 15}
    again, other = _split(pictures, 0.25, 0)[1], _split(pictures, 0.25, 1)[1]
    assert [*map(id, again)] == [*map(id, held)] != [*map(id, other)]


def test_a_picture_with_both_labels_is_left_out():
    rows = draw_rows()
    twice = dataclasses.replace(rows[-1], id="again", unsafe=False, category="safe")
    left_out = calibrate([*rows, twice], CATEGORIES).policy.fitted["pictures"]["rows_left_out"]
    assert left_out == {"one picture labelled both safe and unsafe": 2}


def test_a_verdict_or_a_label_of_another_taxonomy_is_refused_with_the_row():
    with pytest.raises(ValueError, match="row '0': its verdict and the model's categories differ in nudity"):
        calibrate(draw_rows(), [*CATEGORIES, "nudity"])
    with pytest.raises(ValueError, match="row 'x': its label 'nudity' is none of safe, weapon, drug"):
        calibrate([*draw_rows(), dataclasses.replace(row("x", True, 0.5), category="nudity")], CATEGORIES)


def test_a_verdict_that_is_not_finite_is_refused():
    rows = draw_rows()
    rows[3].probs["weapon"] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        calibrate(rows, CATEGORIES)


@pytest.mark.parametrize(("num_safe", "num_unsafe"), [(20, 150), (150, 0), (0, 0), (27, 150)])
def test_too_few_pictures_of_a_label_are_refused(num_safe, num_unsafe):
    with pytest.raises(ValueError, match=f"there are {num_safe} safe and {num_unsafe} unsafe .*it takes 20 of each"):
        calibrate(draw_rows(num_safe, num_unsafe), CATEGORIES)


def test_a_guard_that_ranks_backwards_is_refused():
    rows = [dataclasses.replace(one, unsafe=not one.unsafe, category=None) for one in draw_rows()]
    with pytest.raises(ValueError, match="ranks backwards"):
        calibrate(rows, CATEGORIES)


@pytest.mark.parametrize("name", ["max_fpr", "confidence", "held_out"])
@pytest.mark.parametrize("value", [0, 1, -0.5, float("nan")])
def test_shares_outside_of_zero_and_one_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a number between 0 and 1"):
        calibrate(draw_rows(), CATEGORIES, **{name: value})


# ------------------------------------------------------------------------------------------------------ the promise


def test_too_few_safe_rows_for_the_promise_are_refused_with_how_many_it_takes():
    with pytest.raises(ValueError, match="42 safe pictures to fit to are too few .* 5.00% .* it takes 45 or more"):
        calibrate(draw_rows(60), CATEGORIES, max_fpr=0.05)
    rule = calibrate(draw_rows(65), CATEGORIES, max_fpr=0.05).policy.fitted["unsafe_threshold"]
    assert (rule["safe"], rule["may_err"], rule["false_positives"]) == (45, 0, 0)


def test_over_redrawn_rows_the_policy_breaks_its_promise_in_no_more_than_its_share():
    """The whole way, temperature included; a policy's exact rate is that of Beta(1, 6) above its raw threshold."""
    policies = [calibrate(draw_rows(100, 60, seed), CATEGORIES, max_fpr=0.1).policy for seed in range(200)]
    raw = np.array([policy.safety_threshold for policy in policies])
    broken = int((beta(1, 6).sf(raw) > 0.1).sum())
    assert 0 < broken <= binom.ppf(0.99, 200, 0.1)


def test_the_policy_flags_as_many_safe_pictures_as_it_says():
    rows = draw_rows(1_000, 300)
    policy = calibrate(rows, CATEGORIES, max_fpr=0.05, held_out=0.3, seed=3).policy
    rule, figures = policy.fitted["unsafe_threshold"], policy.fitted["held_out"]["policy"]["false_positive_rate"]
    assert rule["false_positives"] == rule["may_err"] == int((binom.cdf(np.arange(700), 700, 0.05) <= 0.1).sum()) - 1
    safe = [[one.probs[name] for name in CATEGORIES] for one in rows if not one.unsafe]
    flagged = sum(policy.decide(probs).flagged for probs in safe)
    assert flagged == rule["false_positives"] + round(figures["value"] * figures["n"])


def test_a_category_flags_nothing_that_unsafe_does_not():
    base = SafetyPolicy(categories=CATEGORIES, category_thresholds={"drug": 0.01}, actions={"drug": "block"})
    found = calibrate(draw_rows(), CATEGORIES, base=base, max_fpr=0.1)
    policy, rule = found.policy, found.policy.fitted["unsafe_threshold"]
    assert policy.category_thresholds["drug"] == policy.unsafe_threshold
    assert rule["false_positives"] == rule["may_err"]
    assert "raised to the threshold of unsafe, below which they would flag more: drug" in found.notes
    assert policy.decide([0.05, 0.15, 0.8]).action == "block" and policy.decide([0.05, 0.8, 0.15]).action == "flag"


def test_an_allowed_category_is_not_unsafe_and_leaves_the_temperature():
    base = SafetyPolicy(categories=CATEGORIES, temperature=2.0, actions={"drug": "allow"})
    unknown = dataclasses.replace(row("x", True, 0.9), category=None)
    found = calibrate([*draw_rows(200, 200), unknown], CATEGORIES, base=base)
    pictures = found.policy.fitted["pictures"]
    assert found.policy.temperature == 2
    assert pictures["fit"] == {"safe": 210, "unsafe": 70, "safe_clips": 0, "unsafe_clips": 0}
    assert pictures["rows_left_out"] == {"unsafe without a category, and the policy allows some": 1}
    assert any("temperature stays 2: the policy allows drug" in note for note in found.notes)


def test_a_policy_that_allows_unsafe_has_nothing_to_fit():
    base = SafetyPolicy(categories=CATEGORIES, actions={"unsafe": "allow"})
    with pytest.raises(ValueError, match="allows 'unsafe'"):
        calibrate(draw_rows(), CATEGORIES, base=base)


def test_mode_actions_groups_and_severity_of_the_policy_to_start_from_are_kept():
    base = SafetyPolicy(
        categories=CATEGORIES,
        model="old weights",
        mode="shadow",
        actions={"unsafe": "block"},
        groups={"both": ["weapon", "drug"]},
        severity={"low": 0.1, "medium": 0.2, "high": 0.3},
        clip={"at_least": 1, "of": 4},
    )
    found = calibrate(draw_rows(), CATEGORIES, fingerprint="new weights", base=base).policy
    for name in ("mode", "actions", "groups", "severity", "clip"):
        assert getattr(found, name) == getattr(base, name)
    assert found.model == "new weights"
    assert sum(found.fitted["held_out"]["actions"].values()) == 90  # what it would do, in shadow mode


# ------------------------------------------------------------------------------------------- categories, clips, views


def test_a_category_with_enough_pictures_gets_a_threshold_and_another_a_reason():
    rows = draw_rows(200, 200)
    few = [one for one in rows if one.category != "drug"] + [one for one in rows if one.category == "drug"][:20]
    found = calibrate(few, CATEGORIES, per_category=True, operating_point="high_precision")
    assert [*found.policy.category_thresholds] == ["weapon"]
    assert found.policy.fitted["category_thresholds"] == {"weapon": "high_precision"}
    assert any("fewer than 20 to fit to: drug (1" in note for note in found.notes)
    assert calibrate(rows, CATEGORIES, per_category=True).policy.category_thresholds.keys() == {"weapon", "drug"}


@pytest.mark.parametrize(("model", "says"), [("a" * 64, False), (None, False), ("b" * 64, True)])
def test_what_is_kept_of_a_policy_of_other_weights_is_named(model, says):
    base = SafetyPolicy(
        categories=CATEGORIES,
        model=model,
        category_thresholds={"weapon": 0.99, "drug": 0.001},  # the second is raised to the new one of "unsafe"
        actions={"unsafe": "flag", "weapon": "block"},
        clip={"at_least": 1, "of": 4},
    )
    notes = calibrate(draw_rows(), CATEGORIES, base=base, fingerprint="a" * 64).notes
    kept = "kept as they were fitted to other weights (bbbbbbbbbbbb...): the threshold of weapon, the rule for clips"
    assert (kept in notes) == says
    assert any("other weights" in note for note in notes) == says


def test_without_clips_one_frame_is_enough_and_a_note_says_what_that_means():
    found = calibrate(draw_rows(), CATEGORIES)
    needed = [found.policy.decide([[0.9, 0.1, 0.0]] * m, range(m)).num_frames_needed for m in (2, 8, 100)]
    assert needed == [1, 1, 1]
    assert any("flags 84% of harmless clips of 30 frames" in note for note in found.notes)


def test_the_rule_for_clips_takes_the_fewest_frames_that_keep_the_rate():
    """Of ten frames, safe clips have one that fires and one in ten of them three; unsafe clips have five."""
    safe = [clip(i, False, [0.9] * (3 if i % 10 == 0 else 1) + [0.0] * (7 if i % 10 == 0 else 9)) for i in range(100)]
    unsafe = [clip(100 + i, True, [0.9] * 5 + [0.0] * 5) for i in range(100)]
    loose = calibrate([*draw_rows(), *safe, *unsafe], CATEGORIES, max_fpr=0.2).policy
    strict = calibrate([*draw_rows(), *safe, *unsafe], CATEGORIES, max_fpr=0.05).policy
    assert (loose.clip, strict.clip) == (
        {"at_least": 11, "of": 100},
        {"at_least": 31, "of": 100},
    )  # 2 frames, 4 frames
    figures = strict.fitted["held_out"]["clips"]
    assert [*figures] == ["9 frames and more"]
    rates = figures["9 frames and more"]
    assert rates["any_frame"]["false_positive_rate"]["value"] == 1
    assert rates["policy"]["false_positive_rate"]["value"] == 0 and rates["policy"]["recall"]["value"] == 1


def test_safe_clips_that_always_fire_leave_the_rule_as_it_is_and_are_said_to_miss_the_rate():
    """The next rule, all frames, would let pass an unsafe clip with one harmless frame, and gain nothing."""
    safe = [clip(i, False, [0.99] * 4) for i in range(40)]
    found = calibrate([*draw_rows(), *safe], CATEGORIES, max_fpr=0.1)
    assert found.policy.clip == {"at_least": 1, "of": 100}
    assert any("even if all frames must fire, 100.00%" in note for note in found.notes)
    views = [[0.01, 0.99, 0.0]] * 3 + [[0.99, 0.01, 0.0]]
    assert found.policy.decide(views, range(4)).flagged


def test_clips_do_not_move_the_threshold_of_stills():
    clips = [clip(i, False, [0.99] * 4) for i in range(10)]  # too few to be a stratum: the split of stills may shift
    rows = draw_rows(300, 300)
    pictures, _ = _one_a_picture([*rows, *clips], CATEGORIES, [])
    assert sum(picture.num_frames > 1 for picture in pictures) == 10
    rule = calibrate([*rows, *clips], CATEGORIES, max_fpr=0.1).policy.fitted
    assert rule["unsafe_threshold"]["safe"] == rule["pictures"]["fit"]["safe"]
    assert rule["pictures"]["fit"]["safe_clips"] + rule["pictures"]["held_out"]["safe_clips"] == 10


def test_two_views_of_one_frame_are_a_still_and_the_worse_counts():
    rows = draw_rows()
    white = {"safe": 1.0, "weapon": 0.0, "drug": 0.0}
    twice = [
        dataclasses.replace(one, views=[{"frame": 0, "probs": white}, {"frame": 0, "probs": one.probs}])
        for one in rows
    ]
    assert calibrate(twice, CATEGORIES).policy == calibrate(rows, CATEGORIES).policy


# ------------------------------------------------------------------------------------------------------------ report


def test_the_figures_of_held_out_pictures_are_scikit_learns():
    rows = draw_rows(400, 300, seed=5)
    policy = calibrate(rows, CATEGORIES, operating_point="high_recall", seed=7).policy
    pictures, _ = _one_a_picture(rows, CATEGORIES, [])
    _, held = _split(pictures, 0.3, 7)
    unsafe = [picture.unsafe for picture in held]
    u = np.array([1 - picture.probs[0, 0] for picture in held])
    raw, argmax = u >= 0.5, [picture.probs[0].argmax() != 0 for picture in held]
    log_odds = np.log(u / (1 - u)) / policy.temperature
    after = 1 / (1 + np.exp(-log_odds))
    found = policy.fitted["held_out"]
    for name, flagged in (("threshold_0.5", raw), ("argmax", argmax), ("policy", after >= policy.unsafe_threshold)):
        assert found[name]["recall"]["value"] == pytest.approx(recall_score(unsafe, flagged))
        assert found[name]["precision"]["value"] == pytest.approx(precision_score(unsafe, flagged))
        specificity = recall_score(unsafe, flagged, pos_label=0)
        assert found[name]["false_positive_rate"]["value"] == pytest.approx(1 - specificity)
    for name, scores in (("before", u), ("after", after)):
        assert found[name]["nll"] == pytest.approx(log_loss(unsafe, scores), rel=1e-4)
        assert found[name]["brier"] == pytest.approx(brier_score_loss(unsafe, scores), rel=1e-4)
    assert found["actions"] == {
        "allow": len(held) - sum(after >= policy.unsafe_threshold),
        "flag": sum(after >= policy.unsafe_threshold),
        "block": 0,
    }


def test_the_expected_calibration_error_is_the_distance_of_confidence_and_frequency():
    """All scores at 0.5 in one bin, 3 of 4 unsafe: 0.25."""
    assert _reliability(np.full(4, 0.5), np.array([True, True, True, False]))["ece"] == pytest.approx(0.25)


def test_a_policy_is_the_same_for_the_same_seed_and_survives_its_file(tmp_path):
    first, again = (calibrate(draw_rows(), CATEGORIES, max_fpr=0.1, seed=4).policy for _ in range(2))
    assert first == again
    first.save(tmp_path)
    assert SafetyPolicy.load(tmp_path) == first
    assert json.loads((tmp_path / "safety_policy.json").read_text())["fitted"]["split"]["seed"] == 4


def test_probabilities_of_exactly_zero_and_one_give_finite_figures():
    rows = draw_rows(200, 200)
    for number, one in enumerate(rows):
        if number % 5 == 0:
            one.probs = (
                {"safe": 0.0, "weapon": 1.0, "drug": 0.0} if one.unsafe else {"safe": 1.0, "weapon": 0.0, "drug": 0.0}
            )
    rows[0].probs, rows[-1].probs = rows[-5].probs, rows[5].probs  # and two as wrong as can be
    held = calibrate(rows, CATEGORIES, max_fpr=0.1).policy.fitted["held_out"]
    assert all(np.isfinite([*held["before"].values(), *held["after"].values()]))
