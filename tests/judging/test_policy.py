"""A policy's rules on numbers worked by hand: temperature, thresholds, actions, severity, clips, the file."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from safeqwen import CATEGORIES, SafetyPolicy
from safeqwen.data.taxonomy import GROUPS


NAMES = ["safe", "weapon", "drug"]
HOLISAFE = [category.name for category in CATEGORIES]


def policy(**settings):
    return SafetyPolicy(categories=NAMES, **settings)


def action_of(decision):
    return decision.action, decision.reason and (decision.reason.rule, decision.reason.category)


# ------------------------------------------------------------------------------------------------------- temperature


def test_a_temperature_of_two_takes_the_root_of_the_odds_and_leaves_the_harms_their_shares():
    # u = 0.9 has the odds 9; their root 3 is u' = 0.75, of which 2 : 1 go to weapon and drug
    calibrated = policy(temperature=2).calibrated([0.1, 0.6, 0.3])
    np.testing.assert_allclose(calibrated, [0.25, 0.5, 0.25], atol=1e-7)


def test_a_temperature_of_a_half_squares_the_odds():
    # u = 0.75 has the odds 3; 9 is u' = 0.9
    calibrated = policy(temperature=0.5).calibrated([[0.25, 0.25, 0.5], [0.75, 0.25, 0.0]])
    np.testing.assert_allclose(calibrated, [[0.1, 0.3, 0.6], [0.9, 0.1, 0.0]], atol=1e-7)


def test_a_temperature_of_one_changes_nothing():
    probs = torch.rand(50, 3).softmax(-1)
    assert (policy().calibrated(probs) == probs.double().numpy()).all()


@pytest.mark.parametrize("temperature", [0.01, 0.5, 3.0, 50.0])
def test_certain_verdicts_stay_certain(temperature):
    calibrated = policy(temperature=temperature).calibrated([[1.0, 0.0, 0.0], [0.0, 0.25, 0.75]])
    assert calibrated.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.25, 0.75]]


# ------------------------------------------------------------------------------------------------------------- rules


def test_the_rule_unsafe_fires_from_its_threshold_on():
    decision = policy(unsafe_threshold=0.75).decide([0.25, 0.5, 0.25])
    assert action_of(decision) == ("flag", ("unsafe", "weapon"))
    assert (decision.reason.score, decision.reason.threshold, decision.unsafe) == (0.75, 0.75, 0.75)
    decision = policy(unsafe_threshold=0.751).decide([0.25, 0.5, 0.25])
    assert action_of(decision) == ("allow", None) and not decision.flagged and decision.fired == ()


def test_the_rule_of_a_category_fires_from_its_threshold_on_with_its_own_action():
    strict = policy(unsafe_threshold=1.0, category_thresholds={"drug": 0.25}, actions={"drug": "block"})
    assert action_of(strict.decide([0.5, 0.25, 0.25])) == ("block", ("category", "drug"))
    assert action_of(strict.decide([0.5, 0.375, 0.125])) == ("allow", None)


def test_without_an_action_of_its_own_a_category_takes_that_of_unsafe():
    settings = {"unsafe_threshold": 1.0, "category_thresholds": {"drug": 0.25}}
    assert policy(**settings).decide([0.5, 0.25, 0.25]).action == "flag"
    assert policy(**settings, actions={"unsafe": "block"}).decide([0.5, 0.25, 0.25]).action == "block"


def test_the_strictest_action_counts_and_the_likelier_category_comes_first():
    both = policy(
        category_thresholds={"weapon": 0.25, "drug": 0.25},
        actions={"unsafe": "flag", "weapon": "flag", "drug": "block"},
    )
    decision = both.decide([0.25, 0.5, 0.25])
    assert [(reason.rule, reason.category, reason.action) for reason in decision.fired] == [
        ("category", "drug", "block"),
        ("category", "weapon", "flag"),
        ("unsafe", "weapon", "flag"),
    ]
    assert decision.action == "block" and decision.reason is decision.fired[0]


def test_an_allowed_category_never_fires_and_does_not_count_as_unsafe():
    lenient = policy(category_thresholds={"weapon": 0.0}, actions={"weapon": "allow"})
    decision = lenient.decide([0.25, 0.5, 0.25])
    assert action_of(decision) == ("allow", None)
    assert decision.unsafe == 0.75 and decision.severity == "low"  # of the 0.25 that are left
    assert action_of(lenient.decide([0.125, 0.25, 0.625])) == ("flag", ("unsafe", "drug"))
    assert lenient.unsafe_score([[0.25, 0.5, 0.25], [0.125, 0.25, 0.625]]).tolist() == [0.25, 0.625]


def test_with_every_harm_allowed_nothing_fires_even_at_zero():
    lenient = policy(unsafe_threshold=0.0, actions={"weapon": "allow", "drug": "allow"})
    assert lenient.decide([0.0, 0.5, 0.5]).action == "allow"


def test_rules_see_calibrated_probabilities():
    # 0.9 becomes 0.75, weapon's 0.6 becomes 0.5 (see above)
    cooled = policy(temperature=2, unsafe_threshold=0.8, category_thresholds={"weapon": 0.55})
    assert cooled.decide([0.1, 0.6, 0.3]).action == "allow"
    assert replace(cooled, unsafe_threshold=0.74).decide([0.1, 0.6, 0.3]).action == "flag"
    assert replace(cooled, category_thresholds={"weapon": 0.49}).decide([0.1, 0.6, 0.3]).action == "flag"
    assert replace(cooled, temperature=1.0).decide([0.1, 0.6, 0.3]).action == "flag"


@pytest.mark.parametrize(
    ("unsafe", "level"), [(0.125, "none"), (0.25, "low"), (0.375, "low"), (0.5, "medium"), (0.75, "high"), (1, "high")]
)
def test_severity_is_the_highest_level_that_is_reached(unsafe, level):
    assert policy().decide([1 - unsafe, unsafe, 0.0]).severity == level


def test_shadow_says_what_it_would_do_and_allows():
    shadow = policy(mode="shadow", category_thresholds={"weapon": 0.25}, actions={"weapon": "block"})
    decision = shadow.decide([0.25, 0.5, 0.25])
    assert (decision.action, decision.flagged, decision.would_action) == ("allow", False, "block")
    assert decision.reason.category == "weapon" and decision.severity == "high"
    enforced = replace(shadow, mode="enforce").decide([0.25, 0.5, 0.25])
    assert (enforced.action, enforced.flagged, enforced.would_action) == ("block", True, "block")


# ------------------------------------------------------------------------------------------------------------- clips

SAFE, BAD, WORSE = [0.75, 0.25, 0.0], [0.25, 0.75, 0.0], [0.25, 0.0, 0.75]
BLOCKS_DRUGS = {"category_thresholds": {"drug": 0.5}, "actions": {"drug": "block"}}


@pytest.mark.parametrize(
    ("num_bad", "num_frames", "at_least", "of", "action"),
    [
        (1, 8, 1, 1, "allow"),  # all 8 are needed
        (8, 8, 1, 1, "flag"),
        (1, 8, 1, 8, "flag"),
        (2, 8, 1, 3, "allow"),  # ceil(8 / 3) = 3
        (3, 8, 1, 3, "flag"),
        (1, 2, 1, 8, "flag"),  # a quarter of a frame is one
        (2, 3, 2, 3, "flag"),
        (1, 3, 2, 3, "allow"),
        (1, 1, 3, 4, "flag"),  # a still
        (0, 1, 3, 4, "allow"),
    ],
)
def test_a_clip_needs_its_share_of_frames_rounded_up_and_at_least_one(num_bad, num_frames, at_least, of, action):
    frames = [BAD] * num_bad + [SAFE] * (num_frames - num_bad)
    decision = policy(clip={"at_least": at_least, "of": of}).decide(frames, frames=range(num_frames))
    assert decision.action == action
    assert (decision.num_frames, decision.num_frames_fired) == (num_frames, num_bad)


def test_by_default_one_frame_is_enough():
    decision = policy().decide([SAFE] * 7 + [BAD], frames=range(8))
    assert decision.action == "flag" and (decision.num_frames_fired, decision.num_frames_needed) == (1, 1)


def test_frames_that_fire_for_different_harms_count_together():
    pair = policy(clip={"at_least": 2, "of": 2}, **BLOCKS_DRUGS)
    decision = pair.decide([BAD, WORSE], frames=[0, 1])
    assert decision.action == "flag"  # only one frame is to be blocked, both are at least to be flagged
    assert pair.decide([WORSE, WORSE], frames=[0, 1]).action == "block"


def test_a_clip_is_decided_as_its_kth_worst_frame():
    frames = [[0.5, 0.5, 0.0], [0.125, 0.875, 0.0], SAFE, [0.25, 0.75, 0.0]]
    decision = policy(clip={"at_least": 1, "of": 2}).decide(frames, frames=[0, 1, 2, 3])
    assert decision.scores == {"safe": 0.25, "weapon": 0.75, "drug": 0.0}
    assert (decision.num_frames_needed, decision.num_frames_fired) == (2, 3)


@pytest.mark.parametrize("views", [[SAFE, BAD], [BAD, SAFE]])
@pytest.mark.parametrize("clip", [{"at_least": 1, "of": 1}, {"at_least": 2, "of": 2}, {"at_least": 3, "of": 4}])
def test_a_still_never_passes_because_only_one_of_its_two_views_fires(views, clip):
    decision = policy(clip=clip).decide(views, frames=[0, 0])
    assert decision.action == "flag" and decision.num_frames == decision.num_frames_fired == 1
    assert decision.scores["weapon"] == 0.75


def test_of_two_views_of_one_frame_the_worse_counts_for_it():
    views, frames = [SAFE, BAD, SAFE, SAFE, BAD, SAFE], [0, 0, 1, 1, 2, 2]
    assert policy(clip={"at_least": 2, "of": 3}).decide(views, frames).action == "flag"
    assert policy(clip={"at_least": 3, "of": 3}).decide(views, frames).action == "allow"
    tensor = torch.tensor(frames)  # whose elements are no two alike as keys
    assert policy(clip={"at_least": 2, "of": 3}).decide(views, tensor).num_frames == 3


def test_a_policy_that_counts_frames_wants_their_numbers():
    with pytest.raises(ValueError, match="frames is needed"):
        policy(clip={"at_least": 2, "of": 2}).decide([SAFE, BAD])
    assert policy(clip={"at_least": 1, "of": 2}).decide([SAFE, BAD]).action == "flag"  # one is enough
    with pytest.raises(ValueError, match="each of the 2 views, got 3"):
        policy().decide([SAFE, BAD], frames=[0, 1, 2])
    with pytest.raises(TypeError):
        policy().decide([SAFE, BAD], frames=["0", "1"])


# ------------------------------------------------------------------------------------------------- what is no verdict


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        ([0.5, float("nan"), 0.5], "not finite"),
        ([[0.25, 0.5, 0.25], [float("nan")] * 3], "not finite"),
        ([0.5, float("inf"), 0.5], "not finite"),
        ([0.5, 0.5], "3 categories, got the shape"),
        ([[0.25] * 4], "3 categories, got the shape"),
        ([-2.0, 3.0, 0.0], "are they logits"),
        ([0.25, 0.25, 0.25], "are they logits"),
        ([], "got the shape"),
        (np.zeros((0, 3)), "a view or more"),
        (np.full((1, 1, 3), 1 / 3), r"shape \(views, categories\)"),
    ],
)
def test_what_is_no_verdict_raises(probs, message):
    with pytest.raises(ValueError, match=message):
        policy().decide(probs)


def test_tensors_of_any_dtype_are_verdicts():
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        assert policy().decide(torch.tensor([0.25, 0.5, 0.25], dtype=dtype, requires_grad=True)).unsafe == 0.75


# --------------------------------------------------------------------------------------------------- for generate


@pytest.mark.parametrize(("threshold", "temperature", "raw"), [(0.75, 2, 0.9), (0.9, 0.5, 0.75), (0.5, 7, 0.5)])
def test_the_threshold_for_generate_is_the_raw_counterpart(threshold, temperature, raw):
    found = policy(unsafe_threshold=threshold, temperature=temperature).safety_threshold
    assert found == pytest.approx(raw, abs=1e-7)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7, 4.0])
@pytest.mark.parametrize("threshold", [0.0, 1e-5, 0.1, 0.3, 0.9, 0.999, 1.0])
def test_generate_stops_exactly_what_the_rule_fires_for_down_to_the_last_float(threshold, temperature):
    rules = policy(unsafe_threshold=threshold, temperature=temperature)
    raw = rules.safety_threshold
    around = np.float32(raw).view(np.int32) + np.arange(-3, 4, dtype=np.int32)
    safe = [*(1 - around.view(np.float32)), *np.random.default_rng(0).random(300, dtype=np.float32), 0, 1]
    for p in torch.tensor(np.array([p for p in safe if 0 <= p <= 1], dtype=np.float32)):
        stopped = bool((1 - p) >= raw)  # as `generate` compares them
        assert stopped == rules.decide(torch.stack([p, 1 - p, p * 0])).flagged, float(p)


def test_without_an_equal_there_is_no_threshold_for_generate():
    with pytest.raises(ValueError, match="allows weapon"):
        _ = policy(actions={"weapon": "allow"}).safety_threshold
    with pytest.raises(ValueError, match="allows unsafe"):
        _ = policy(actions={"unsafe": "allow"}).safety_threshold
    with pytest.raises(ValueError, match="shadow mode"):
        _ = policy(mode="shadow").safety_threshold


# ------------------------------------------------------------------------------------------------------- what is right


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"category_thresholds": {"wepon": 0.5}}, "did you mean 'weapon'"),
        ({"category_thresholds": {"safe": 0.5}}, "there is no 'safe'"),
        ({"actions": {"drugs": "allow"}}, "did you mean 'drug'"),
        ({"actions": {"unsave": "flag"}}, "did you mean 'unsafe'"),
        ({"actions": {"unsafe": "blok"}}, "did you mean 'block'"),
        ({"actions": {"unsafe": ["block"]}}, "there is no"),
        ({"groups": {"arms": ["weapon", "Drug"]}}, "did you mean 'drug'"),
        ({"groups": {"arms": ["weapon", "weapon"]}}, "twice"),
        ({"groups": {"arms": "weapon"}}, "list of categories"),
        ({"severity": {"low": 0.1, "medium": 0.2, "hihg": 0.3}}, "did you mean 'high'"),
        ({"severity": {"low": 0.1, "medium": 0.2}}, "high is missing"),
        ({"severity": {"low": 0.5, "medium": 0.2, "high": 0.9}}, "must rise"),
        ({"severity": {"low": 0.5, "medium": 0.5, "high": 0.9}}, "must rise"),
        ({"severity": {"low": 0.5, "medium": 0.6, "high": 1.1}}, r"\[0, 1\]"),
        ({"clip": {"at_leest": 1, "of": 2}}, "did you mean 'at_least'"),
        ({"clip": {"at_least": 1}}, "'of' must be a whole number"),
        ({"clip": {"at_least": 0, "of": 2}}, "from 1, got 0"),
        ({"clip": {"at_least": 3, "of": 2}}, "3 of 2 frames can never be"),
        ({"clip": {"at_least": True, "of": 2}}, "whole number from 1, got True"),
        ({"mode": "shadw"}, "did you mean 'shadow'"),
        ({"temperature": 0}, "above 0"),
        ({"temperature": -1.0}, "above 0"),
        ({"temperature": float("inf")}, "finite"),
        ({"temperature": float("nan")}, "finite"),
        ({"temperature": True}, "finite number, got True"),
        ({"unsafe_threshold": 1.01}, r"\[0, 1\]"),
        ({"unsafe_threshold": float("nan")}, "finite"),
        ({"unsafe_threshold": True}, "finite number, got True"),
        ({"unsafe_threshold": "0.5"}, "finite number, got '0.5'"),
        ({"category_thresholds": {"weapon": -0.1}}, r"weapon must be a probability in \[0, 1\]"),
        ({"category_thresholds": {"weapon": None}}, "weapon must be a finite number"),
        ({"category_thresholds": ["weapon"]}, "an object of names"),
        ({"actions": {"weapon": "block"}}, "no rule that could take it"),
        ({"actions": {"unsafe": "allow"}, "category_thresholds": {"weapon": 0.5}}, "give it one"),
        ({"model": ""}, "fingerprint"),
        ({"fitted": [1]}, "an object"),
        ({"version": 2}, "upgrade"),
        ({"version": 0}, "must be 1"),
        ({"version": True}, "must be 1"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_nearest_right_name(settings, message):
    with pytest.raises(ValueError, match=message):
        policy(**settings)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (["weapon", "drug"], "needs a category 'safe'"),
        (["safe", "unsafe"], "rename it"),
        (["safe", "drug", "drug"], "none twice"),
        (["safe", 3], "must be names, got 3"),
        (["safe", ["drug"]], "must be names"),
        ("safe", "must be a list"),
    ],
)
def test_a_taxonomy_that_no_policy_can_be_for_is_refused(categories, message):
    with pytest.raises(ValueError, match=message):
        SafetyPolicy(categories=categories)


def test_groups_are_holisafes_seven_for_its_categories_and_none_for_others():
    groups = SafetyPolicy(categories=HOLISAFE).groups
    assert groups == {group: list(names) for group, names in GROUPS.items() if group != "safe"} and len(groups) == 7
    assert policy().groups == {}
    assert SafetyPolicy(categories=HOLISAFE, groups={}).groups == {}


# -------------------------------------------------------------------------------------------------------------- files


def test_a_saved_policy_is_the_same_policy(tmp_path):
    settings = {
        "model": "0" * 64,
        "mode": "shadow",
        "temperature": 1.7,
        "unsafe_threshold": 0.4,
        "groups": {"arms": ["weapon"]},
        "clip": {"at_least": 1, "of": 4},
        "fitted": {"rows": 200, "note": "für Bilder"},
        **BLOCKS_DRUGS,
    }
    written = policy(**settings)
    file = written.save(tmp_path)
    assert file == tmp_path / "safety_policy.json" and SafetyPolicy.load(tmp_path) == written
    written.save(tmp_path / "other.json")
    assert SafetyPolicy.load(tmp_path / "other.json", NAMES, "0" * 64) == written
    assert [*json.loads(file.read_text())][:2] == ["version", "categories"]


def test_what_a_file_leaves_out_is_as_by_default(tmp_path):
    file = tmp_path / "p.json"
    file.write_text(json.dumps({"version": 1, "categories": NAMES}))
    assert SafetyPolicy.load(file) == policy()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"version": 1, "categories": ["safe", "weapon"], "unsafe_treshold": 0.5}',
            "did you mean 'unsafe_threshold'",
        ),
        ('{"categories": ["safe", "weapon"]}', "lacks version"),
        ('{"version": 1}', "lacks categories"),
        ('{"version": 1, "categories": ["safe", "a"], "actions": {"a": "allow", "a": "allow"}}', "'a' is given twice"),
        ('{"version": 1, "categories": ["safe", "a"], "unsafe_threshold": NaN}', "finite"),
        ("[1]", "an object"),
        ("{", "is no policy"),
        ("", "is no policy"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path, text, message):
    file = tmp_path / "broken.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="broken.json") as refused:
        SafetyPolicy.load(file)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (["safe", "weapon", "alcohol"], "policy has 'drug', the model has not; the model has 'alcohol'"),
        (["safe", "drug", "weapon"], "column 1 is 'weapon' in the policy and 'drug' in the model"),
        (["safe", "weapon"], "policy has 'drug'"),
    ],
)
def test_a_policy_for_another_taxonomy_is_refused_with_the_names_that_differ(tmp_path, categories, message):
    policy().save(tmp_path)
    with pytest.raises(ValueError, match="another taxonomy") as refused:
        SafetyPolicy.load(tmp_path, categories)
    assert message in str(refused.value)


@pytest.mark.parametrize("rows", [[{"sha256": "abc"}], [{"sha256": "xyz"}, {"sha256": "abc"}], ["abc"], "abc"])
def test_rows_are_found_in_a_record_of_any_form(rows):
    assert policy(fitted={"rows": rows}).was_fitted_to("abc")


@pytest.mark.parametrize("fitted", [None, {}, {"rows": None}, {"rows": 200}, {"rows": [{"sha256": "xyz"}]}])
def test_rows_that_a_record_does_not_name_are_others(fitted):
    assert not policy(fitted=fitted).was_fitted_to("abc")


def test_a_policy_fitted_to_other_weights_is_refused(tmp_path):
    policy(model="a" * 64).save(tmp_path)
    with pytest.raises(ValueError, match="fitted to the weights aaaa.*but these are bbbb"):
        SafetyPolicy.load(tmp_path, NAMES, "b" * 64)
    assert SafetyPolicy.load(tmp_path, NAMES, "a" * 64).model == "a" * 64


# --------------------------------------------------------------------------------------------------------- properties


def draws(num, seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet([0.5, 0.3, 0.3], size=num).astype(np.float32)


def random_policy(rng):
    thresholds = {name: float(rng.random()) for name in NAMES[1:] if rng.random() < 0.7}
    actions = {name: str(rng.choice(["flag", "block"])) for name in thresholds}
    actions |= {name: "allow" for name in NAMES[1:] if rng.random() < 0.2}
    return policy(
        temperature=float(rng.uniform(0.3, 3)),
        unsafe_threshold=float(rng.random()),
        category_thresholds=thresholds,
        actions={"unsafe": str(rng.choice(["flag", "block"])), **actions},
        clip={"at_least": int(rng.integers(1, 4)), "of": 4},
    )


def strictness(decision):
    return ("allow", "flag", "block").index(decision.would_action)


@pytest.mark.parametrize("temperature", [0.2, 0.9, 2.5, 20.0])
def test_the_order_of_pictures_never_changes(temperature):
    probs = draws(2000)
    raw, calibrated = policy().unsafe_score(probs), policy(temperature=temperature).unsafe_score(probs)
    order = np.argsort(raw)
    # Where a low temperature makes two of them 1 to the last digit, they may become equal, but never change places.
    assert (np.diff(calibrated[order])[(np.diff(raw[order]) > 0) & (calibrated[order][:-1] < 1 - 1e-9)] > 0).all()
    assert (np.diff(calibrated[order]) >= 0).all()
    expected = torch.sigmoid(torch.logit((1 - torch.from_numpy(probs[:, 0])).double()) / temperature)
    np.testing.assert_allclose(calibrated, expected, atol=1e-6)


def test_calibrated_probabilities_add_up_to_one_and_keep_the_harms_order():
    calibrated = policy(temperature=1.9).calibrated(draws(2000))
    np.testing.assert_allclose(calibrated.sum(axis=-1), 1, atol=1e-6)
    assert ((calibrated[:, 1] > calibrated[:, 2]) == (draws(2000)[:, 1] > draws(2000)[:, 2])).all()


def test_raising_a_threshold_or_allowing_a_category_never_makes_a_decision_stricter():
    rng = np.random.default_rng(1)
    changed = 0
    for number in range(300):
        before = random_policy(rng)
        milder = [replace(before, unsafe_threshold=min(1.0, before.unsafe_threshold + 0.2))]
        for name in before.category_thresholds:
            raised = {**before.category_thresholds, name: min(1.0, before.category_thresholds[name] + 0.2)}
            milder.append(replace(before, category_thresholds=raised))
        milder += [replace(before, actions={**before.actions, name: "allow"}) for name in NAMES[1:]]
        probs, frames = draws(6, seed=number), [0, 0, 1, 2, 2, 3]
        stricter = strictness(before.decide(probs, frames))
        for after in milder:
            assert strictness(after.decide(probs, frames)) <= stricter
            changed += strictness(after.decide(probs, frames)) < stricter
    assert changed > 50


def test_decisions_survive_json():
    rng = np.random.default_rng(2)
    for number in range(50):
        fields = random_policy(rng).decide(draws(4, seed=number), [0, 1, 2, 3]).to_dict()
        assert json.loads(json.dumps(fields, allow_nan=False)) == fields
