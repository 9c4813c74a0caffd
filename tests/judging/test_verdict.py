"""What "unsafe" means and what a verdict says, on probabilities worked by hand."""

import copy
import dataclasses
import io
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import safeqwen
from safeqwen import SafetyPolicy, Verdict
from safeqwen.judging.verdict import name_of, unsafe_probability, worst_frame


PROBS = torch.tensor([[0.25, 0.50, 0.25], [0.125, 0.25, 0.625], [0.75, 0.125, 0.125]])
CATEGORIES = ["safe", "a", "b"]
NUMBERS = ("label", "score", "unsafe", "scores", "decision", "flagged", "num_frames", "view")


def verdict_of(*views, categories=CATEGORIES, **kwargs):
    return Verdict(categories=categories, probs=torch.tensor(views), **kwargs)


# ------------------------------------------------------------------------------------------------------------- unsafe


def test_unsafe_is_one_minus_safe_wherever_safe_stands():
    assert unsafe_probability(PROBS, ["safe", "a", "b"]).tolist() == [0.75, 0.875, 0.25]
    assert unsafe_probability(PROBS, ["a", "b", "safe"]).tolist() == [0.75, 0.375, 0.875]
    assert unsafe_probability(PROBS[0], ["a", "safe", "b"]) == 0.5


def test_without_a_category_safe_there_is_no_unsafe_probability():
    assert unsafe_probability(PROBS, ["a", "b", "c"]) is None


@pytest.mark.parametrize(
    ("categories", "worst"),
    [
        (["safe", "a", "b"], 1),  # p(safe) is 0.125
        (["a", "safe", "b"], 2),  # p(safe) is 0.125
        (["a", "b", "safe"], 2),  # p(safe) is 0.125, the highest of "a" too
        (["unsafe", "a", "b"], 2),  # 0.75 is the highest of all
    ],
)
def test_the_worst_frame_is_the_least_safe_or_the_most_certain(categories, worst):
    assert worst_frame(PROBS, categories) == worst


# ----------------------------------------------------------------------------------------------------------- by names


def test_a_verdict_is_that_of_the_least_safe_view():
    verdict = Verdict(categories=CATEGORIES, probs=PROBS, frames=[0, 0, 1])
    assert verdict.view == 1 and verdict.num_frames == 2
    assert (verdict.label, verdict.score, verdict.unsafe) == ("b", 0.625, 0.875)
    assert verdict.scores == {"safe": 0.125, "a": 0.25, "b": 0.625}
    assert [verdict[name] for name in CATEGORIES] == [0.125, 0.25, 0.625]
    assert verdict.decision is None and verdict.flagged is True


def test_the_likeliest_category_may_be_safe_where_the_picture_is_flagged():
    verdict = verdict_of([0.4375, 0.25, 0.3125])
    assert verdict.label == "safe" and verdict.unsafe == 0.5625 and verdict.flagged


@pytest.mark.parametrize(("probs", "flagged"), [([0.5, 0.25, 0.25], True), ([0.53125, 0.21875, 0.25], False)])
def test_without_a_policy_a_picture_is_flagged_from_an_unsafe_probability_of_one_half(probs, flagged):
    assert verdict_of(probs).flagged is flagged


def test_a_model_without_safe_has_no_unsafe_probability_and_all_its_pictures_are_flagged():
    verdict = verdict_of([0.25, 0.5, 0.25], categories=["x", "a", "b"])
    assert verdict.unsafe is None and verdict.flagged is True and verdict.label == "a"
    assert verdict.to_dict()["unsafe"] is None and repr(verdict) == "Verdict(picture: a 50.0%)"


def test_a_policy_decides_of_all_views_and_their_frames():
    every_frame = {"clip": {"at_least": 1, "of": 1}}
    policy = SafetyPolicy(categories=CATEGORIES, category_thresholds={"b": 0.5}, actions={"b": "block"})
    assert verdict_of([0.25, 0.125, 0.625], policy=policy).decision.action == "block"
    policy = dataclasses.replace(policy, **every_frame)
    views = [[0.25, 0.125, 0.625], [1.0, 0.0, 0.0]]
    of_one_frame, of_two = (verdict_of(*views, frames=frames, policy=policy) for frames in ([0, 0], [0, 1]))
    assert of_one_frame.decision.action == "block" and of_one_frame.flagged
    assert of_two.decision.action == "allow" and not of_two.flagged and of_two.unsafe == 0.75
    assert of_two.decision is of_two.decision


def test_in_shadow_mode_a_picture_is_flagged_though_it_is_allowed():
    policy = SafetyPolicy(categories=CATEGORIES, mode="shadow")
    verdict = verdict_of([0.25, 0.5, 0.25], policy=policy)
    assert verdict.decision.action == "allow" and verdict.flagged


def test_what_a_policy_allows_is_not_flagged_however_unsafe():
    policy = SafetyPolicy(categories=CATEGORIES, actions={"a": "allow"})
    verdict = verdict_of([0.0, 1.0, 0.0], policy=policy)
    assert verdict.unsafe == 1.0 and not verdict.flagged


@pytest.mark.parametrize(
    ("name", "hint"),
    [("Safe", "did you mean 'safe'"), ("zebra", "expected one of safe, a, b"), (0, "expected one of safe, a, b")],
)
def test_an_unknown_category_is_refused_with_the_nearest_right_name(name, hint):
    verdict = verdict_of([0.25, 0.5, 0.25])
    for ask in (verdict.__getitem__, verdict.heatmap):
        with pytest.raises(ValueError, match=hint):
            ask(name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either probs or an error"),
        ({"probs": PROBS[:1], "error": "gone"}, "either probs or an error"),
        ({"probs": PROBS[0]}, r"shape \(views, 3\).*got \(3,\)"),
        ({"probs": PROBS[:1, :2]}, r"got \(1, 2\)"),
        ({"probs": PROBS[:0]}, r"got \(0, 3\)"),
        ({"probs": torch.tensor([[2.0, -1.0, 0.0]])}, "are they logits"),
        ({"probs": torch.tensor([[0.5, 0.25, 0.125]])}, "add up to 1"),
        ({"probs": torch.tensor([[0.5, 0.5, float("nan")]])}, "finite"),
        ({"probs": PROBS}, "number of the frame for each of 3 views, got None"),
        ({"probs": PROBS, "frames": [0, 1]}, r"3 views, got \[0, 1\]"),
        ({"probs": PROBS[:1], "policy": SafetyPolicy(categories=["safe", "b", "a"])}, "another taxonomy"),
        ({"error": "gone", "policy": SafetyPolicy(categories=["safe", "b"])}, "another taxonomy"),
    ],
)
def test_what_is_no_verdict_is_not_made_into_one(fields, message):
    with pytest.raises(ValueError, match=message):
        Verdict(categories=CATEGORIES, **fields)


# -------------------------------------------------------------------------------------------------------------- errors


def test_an_error_is_no_number_and_no_decision():
    policy = SafetyPolicy(categories=CATEGORIES)
    verdict = Verdict(categories=CATEGORIES, image="gone.png", error="gone.png: there is no such file", policy=policy)
    for name in NUMBERS:
        with pytest.raises(ValueError, match="no verdict on gone.png: gone.png: there is no such file"):
            getattr(verdict, name)
    for ask in (verdict.__getitem__, verdict.heatmap):
        with pytest.raises(ValueError, match="there is no such file"):
            ask("safe")
    with pytest.raises(ValueError, match="there is no such file"):
        verdict.heatmap()
    assert verdict.probs is None and verdict.frames == []
    assert repr(verdict) == "Verdict(gone.png: not judged: gone.png: there is no such file)"


def test_an_error_in_json_has_its_reason_and_nothing_else():
    fields = Verdict(categories=CATEGORIES, image="gone.png", error="why").to_dict()
    assert fields.pop("image") == "gone.png" and fields.pop("error") == "why"
    assert fields.keys() == {"label", "score", "unsafe", "scores", "frames", "decision"}
    assert set(fields.values()) == {None}


def test_a_verdict_in_json_comes_back_unchanged():
    policy = SafetyPolicy(categories=CATEGORIES)
    fields = Verdict(categories=CATEGORIES, probs=PROBS, frames=[0, 0, 1], image="x.png", policy=policy).to_dict()
    assert json.loads(json.dumps(fields)) == fields
    assert (fields["image"], fields["label"], fields["score"], fields["unsafe"]) == ("x.png", "b", 0.625, 0.875)
    assert fields["scores"] == {"safe": 0.125, "a": 0.25, "b": 0.625}
    assert fields["frames"] == 3 and fields["decision"]["action"] == "flag" and fields["error"] is None


def test_a_terminal_shows_a_verdict_on_a_line():
    verdict = Verdict(categories=CATEGORIES, probs=PROBS, frames=[0, 1, 2], image="a\n\x1b[31m.png")
    assert repr(verdict) == "Verdict('a\\n\\x1b[31m.png': b 62.5%, unsafe 87.5% (the least safe of 3 views))"
    decided = verdict_of([0.25, 0.5, 0.25], policy=SafetyPolicy(categories=CATEGORIES))
    assert repr(decided).endswith(f"unsafe 75.0%; {decided.decision.in_words()})")
    lines = Verdict(categories=CATEGORIES, error="one\ntwo")
    assert repr(lines) == "Verdict(picture: not judged: one two)"


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("pictures/a b.png", "pictures/a b.png"),
        (Path("pictures") / "a.png", "pictures/a.png"),
        ("https://example.org/a.png?size=" + "9" * 300, "https://example.org/a.png?size=" + "9" * 300),
        ("data:image/png;base64,AAAA", "picture"),
        ("A" * 300, "picture"),
        (b"\x89PNG", "picture"),
        ({"bytes": b"\x89PNG", "path": "row.png"}, "row.png"),
        ({"bytes": b"\x89PNG", "path": None}, "picture"),
        (Image.new("RGB", (20, 20)), "picture"),
        (torch.zeros(3, 20, 20), "picture"),
        (io.BytesIO(), "picture"),
        (None, "picture"),
    ],
)
def test_a_picture_is_called_by_its_path_or_url(image, name):
    assert name_of(image) == name


def test_an_open_file_and_an_opened_picture_are_called_by_their_path(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (20, 20)).save(path)
    with open(path, "rb") as file, Image.open(path) as picture:
        assert name_of(file) == name_of(picture) == str(path)


# ---------------------------------------------------------------------------------------------- copies, tables, pandas


def test_a_verdict_equals_itself_alone_and_its_copies_say_the_same_without_maps():
    verdict = verdict_of([0.25, 0.5, 0.25], image="x.png", origin=SimpleNamespace(read=lambda: None))
    assert verdict == verdict != verdict_of([0.25, 0.5, 0.25]) and len({verdict, verdict}) == 1
    for other in (pickle.loads(pickle.dumps(verdict)), copy.copy(verdict), copy.deepcopy(verdict)):
        assert other != verdict and other.to_dict() == verdict.to_dict() and other.origin is None
        with pytest.raises(ValueError, match="copied or unpickled: judge the picture with SafetyPipeline.verdict"):
            other.heatmap()
    assert dataclasses.replace(verdict, seconds=1.0).origin is verdict.origin


def test_a_verdict_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict_of([0.25, 0.5, 0.25]).error = None


def test_verdicts_are_a_table_with_a_row_each():
    policy = SafetyPolicy(categories=CATEGORIES)
    verdicts = [
        Verdict(categories=CATEGORIES, probs=PROBS, frames=[0, 1, 2], image="x.png", policy=policy),
        Verdict(categories=CATEGORIES, image="gone.png", error="no such file"),
        verdict_of([0.75, 0.125, 0.125]),
    ]
    table = safeqwen.to_pandas(iter(verdicts))
    assert list(table.columns) == ["name", "label", "score", "unsafe", "action", "error", "safe", "a", "b"]
    assert list(table["name"]) == ["x.png", "gone.png", "picture"]
    assert table.loc[0, ["label", "score", "unsafe", "action", "b"]].tolist() == ["b", 0.625, 0.875, "flag", 0.625]
    assert table.loc[1, "error"] == "no such file"
    assert table.loc[1].drop(["name", "error"]).isna().all()
    assert table["error"].isna().tolist() == [True, False, True] and pandas.isna(table.loc[2, "action"])
    assert table.loc[2, "unsafe"] == 0.25
    assert list(safeqwen.to_pandas([]).columns) == ["name", "label", "score", "unsafe", "action", "error"]


def test_a_category_with_the_name_of_another_column_does_not_take_its_place():
    table = safeqwen.to_pandas([verdict_of([0.25, 0.5, 0.25], categories=["safe", "unsafe", "label"])])
    assert table.loc[0, ["unsafe", "p(unsafe)", "label", "p(label)"]].tolist() == [0.75, 0.5, "unsafe", 0.25]


def test_without_pandas_the_table_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        safeqwen.to_pandas([])


def test_what_draws_is_loaded_when_it_is_asked_for():
    assert "show" in safeqwen.__all__ and "show" not in vars(safeqwen)
    with pytest.raises(AttributeError, match="no attribute 'shows'"):
        safeqwen.shows  # noqa: B018


# ------------------------------------------------------------------------------------------------------ of tensors


def model_of(categories=CATEGORIES, policy=None):
    return SimpleNamespace(config=SimpleNamespace(safety_categories=categories), safety_policy=policy)


def test_tensors_become_verdicts_by_name_a_row_each():
    nan = torch.full((1, 3), float("nan"))
    policy = SafetyPolicy(categories=CATEGORIES)
    output = SimpleNamespace(img_safety_probs=torch.cat([PROBS[:1], nan, PROBS[2:]]))
    first, without, last = Verdict.of(output, model_of(policy=policy))
    assert first.label == "a" and first.decision.action == "flag" and last.decision.action == "allow"
    assert without.error == "nothing was judged: the prompt holds no picture"
    assert (first.name, first.image, first.thumbnail, first.frames, first.seconds) == ("picture", None, None, [0], 0)
    with pytest.raises(ValueError, match="made of tensors.*judge the picture with SafetyPipeline.verdict"):
        first.heatmap()
    strict = dataclasses.replace(policy, unsafe_threshold=0.125)
    assert Verdict.of(output, model_of(policy=policy), strict)[2].decision.action == "flag"
    assert Verdict.of(output, model_of())[0].decision is None


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(2, 7), "output is a Tensor.*return_dict_in_generate"),
        (SimpleNamespace(img_safety_probs=None), "nothing was judged: the output has no img_safety_probs"),
        (SimpleNamespace(img_safety_probs=[PROBS[None]]), "each patch"),
        (SimpleNamespace(img_safety_probs=PROBS[:, :2]), r"shape \(rows, 3\).*got \(3, 2\)"),
        (SimpleNamespace(img_safety_probs=PROBS[0]), r"got \(3,\)"),
        (SimpleNamespace(img_safety_probs=torch.tensor([[0.5, float("nan"), 0.5]])), "finite"),
    ],
)
def test_tensors_that_are_no_verdicts_of_the_model_are_refused(output, message):
    with pytest.raises(ValueError, match=message):
        Verdict.of(output, model_of())


def test_a_policy_for_other_categories_is_refused_with_tensors():
    with pytest.raises(ValueError, match="another taxonomy"):
        Verdict.of(SimpleNamespace(img_safety_probs=PROBS), model_of(), SafetyPolicy(categories=["safe", "b", "a"]))


def test_half_precision_and_gradients_stay_outside():
    probs = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.bfloat16, requires_grad=True)
    (verdict,) = Verdict.of(SimpleNamespace(img_safety_probs=probs), model_of())
    assert verdict.probs.dtype == torch.float32 and not verdict.probs.requires_grad
    assert_close(verdict.probs, torch.tensor([[0.25, 0.5, 0.25]]))


def test_a_verdict_keeps_its_numbers_when_the_models_output_is_written_over():
    probs = torch.tensor([[0.1, 0.9]])
    verdict = Verdict(categories=["safe", "suicide"], probs=probs)
    probs[:] = torch.tensor([[1.0, 0.0]])
    assert verdict.label == "suicide" and verdict.unsafe == pytest.approx(0.9)


def test_one_verdict_is_no_list_of_verdicts():
    with pytest.raises(TypeError, match="not iterable"):
        safeqwen.to_pandas(Verdict(categories=["safe", "suicide"], probs=torch.tensor([[0.1, 0.9]])))
