"""A decision as OpenAI's moderation object, by groups, and in words: on numbers worked by hand."""

import json

import pytest

from safeqwen import CATEGORIES, SafetyPolicy
from safeqwen.judging.decision import OPENAI


NAMES = [category.name for category in CATEGORIES]
# In the order of OpenAI's API reference for omni-moderation.
OPENAIS_NAMES = {
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
}


def verdict(**scores):
    rest = {name: 0.0 for name in NAMES}
    return [*{**rest, **scores}.values()]


ARMED = verdict(safe=0.25, weapon_related_violence=0.375, terrorism=0.25, suicide=0.125)


def test_a_groups_score_is_the_sum_of_its_categories_and_the_likeliest_harm_flags_it():
    decision = SafetyPolicy(categories=NAMES).decide(ARMED)
    assert decision.groups["violence"] == {"score": 0.625, "flagged": True}
    assert decision.groups["self-harm"] == {"score": 0.125, "flagged": False}
    assert decision.groups["hate"] == {"score": 0, "flagged": False}
    moderation = decision.to_moderation("groups")
    assert moderation["flagged"] and moderation["category_scores"]["violence"] == 0.625
    assert [name for name, is_flagged in moderation["categories"].items() if is_flagged] == ["violence"]
    assert len(moderation["categories"]) == 7


def test_a_categorys_own_rule_flags_its_group_too():
    policy = SafetyPolicy(categories=NAMES, category_thresholds={"suicide": 0.125})
    groups = policy.decide(ARMED).groups
    assert [group for group, found in groups.items() if found["flagged"]] == ["self-harm", "violence"]


def test_openais_object_has_its_names_their_sums_and_the_input_types_of_a_picture():
    moderation = (
        SafetyPolicy(categories=NAMES, category_thresholds={"suicide": 0.125}).decide(ARMED).to_moderation("openai")
    )
    assert moderation["flagged"] is True
    for field in ("categories", "category_scores", "category_applied_input_types"):
        assert set(moderation[field]) == OPENAIS_NAMES
    assert moderation["category_scores"]["violence"] == 0.625
    assert moderation["category_scores"]["self-harm"] == 0.125
    assert {name for name, is_flagged in moderation["categories"].items() if is_flagged} == {"violence", "self-harm"}
    applied = moderation["category_applied_input_types"]
    assert applied["violence"] == ["image"] and applied["sexual/minors"] == [] and applied["illicit/violent"] == []
    assert moderation["category_scores"]["sexual/minors"] == 0.0 and not moderation["categories"]["sexual/minors"]
    assert json.loads(json.dumps(moderation)) == moderation


def test_no_category_is_counted_twice_and_four_have_no_counterpart():
    members = [name for names in OPENAI.values() for name in names]
    assert len(members) == len({*members})
    assert {*NAMES} - {*members} == {
        "safe",
        "facial_data_exposure",
        "identity_data_exposure",
        "financial_advice",
        "medical_advice",
    }


def test_a_harm_without_counterpart_flags_the_whole_alone():
    moderation = SafetyPolicy(categories=NAMES).decide(verdict(medical_advice=1.0)).to_moderation("openai")
    assert moderation["flagged"] and not any(moderation["categories"].values())
    assert set(moderation["category_scores"].values()) == {0.0}


def test_by_its_own_names_the_object_lists_the_harms():
    moderation = SafetyPolicy(categories=NAMES).decide(ARMED).to_moderation()
    assert [*moderation["categories"]] == NAMES[1:]
    assert [name for name, is_flagged in moderation["categories"].items() if is_flagged] == ["weapon_related_violence"]
    assert moderation["category_scores"]["terrorism"] == 0.25
    assert set(map(tuple, moderation["category_applied_input_types"].values())) == {("image",)}


@pytest.mark.parametrize("names", ["categories", "groups", "openai"])
def test_in_shadow_mode_nothing_is_flagged(names):
    moderation = SafetyPolicy(categories=NAMES, mode="shadow").decide(ARMED).to_moderation(names)
    assert moderation["flagged"] is False and not any(moderation["categories"].values())
    assert max(moderation["category_scores"].values()) > 0.3


def test_openais_names_are_refused_for_another_taxonomy():
    decision = SafetyPolicy(categories=["safe", "our_logo", "suicide"]).decide([0.25, 0.5, 0.25])
    with pytest.raises(ValueError, match="our_logo are not among"):
        decision.to_moderation("openai")
    with pytest.raises(ValueError, match="'categories', 'groups' or 'openai', got 'OpenAI'"):
        decision.to_moderation("OpenAI")


@pytest.mark.parametrize(
    ("settings", "probs", "words"),
    [
        (
            {"category_thresholds": {"weapon_related_violence": 0.3}, "actions": {"weapon_related_violence": "block"}},
            ARMED,
            "block: weapon-related violence 37.5 % >= 30 % (severity high)",
        ),
        ({}, ARMED, "flag: unsafe 75.0 % >= 50 %, most likely weapon-related violence (severity high)"),
        ({"mode": "shadow"}, ARMED, "shadow: would flag: unsafe 75.0 % >= 50 %, most likely weapon-related violence"),
        ({}, verdict(safe=0.875, suicide=0.125), "allow: no rule fired, unsafe 12.5 % (severity none)"),
        ({"mode": "shadow"}, verdict(safe=1.0), "allow: no rule fired, unsafe 0.0 % (severity none)"),
    ],
)
def test_a_decision_in_words(settings, probs, words):
    assert SafetyPolicy(categories=NAMES, **settings).decide(probs).in_words().startswith(words)


def test_words_and_score_leave_out_what_is_allowed():
    policy = SafetyPolicy(categories=NAMES, actions={"unsafe": "flag", "weapon_related_violence": "allow"})
    decision = policy.decide(ARMED)  # of 0.75, 0.375 are allowed
    assert (decision.unsafe, decision.score) == (0.75, 0.375)
    assert decision.in_words() == "allow: no rule fired, unsafe 37.5 % of 75.0 %, the rest is allowed (severity low)"


def test_a_clip_in_words_says_how_many_frames():
    policy = SafetyPolicy(categories=NAMES, clip={"at_least": 1, "of": 2})
    words = policy.decide([ARMED, verdict(safe=1.0), verdict(safe=1.0)], frames=[0, 1, 2]).in_words()
    assert words == "allow: no rule fired, unsafe 0.0 % (severity none); a rule fired on 1 of 3 frames, 2 needed"
