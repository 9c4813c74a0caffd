"""Comparisons: differences worked by hand, paired draws, rows that differ, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from guard_rows import CATEGORIES, answered, judged, random_rows, six_rows, write_evaluation

from safeqwen.commands.compare import lines
from safeqwen.evaluation.bootstrap import bootstrap
from safeqwen.evaluation.compare import compare
from safeqwen.evaluation.rows import pictures_digest
from safeqwen.judging.policy import SafetyPolicy


def better_rows():
    """As `six_rows`, but c, which is unsafe, is flagged with 0.7, and d, which is safe, is not, with 0.3."""
    rows = {row.id: row for row in six_rows()}
    rows["c"] = judged("c", [0.3, 0.6, 0.1], "weapons")
    rows["d"] = judged("d", [0.7, 0.2, 0.1], "safe")
    return list(rows.values())


def test_differences_are_worked_by_hand(tmp_path):
    folders = [write_evaluation(tmp_path / "a", six_rows()), write_evaluation(tmp_path / "b", better_rows())]
    comparison = compare(folders, num_resamples=100)
    guard = comparison["guard"]
    first, second = guard["recall"]
    assert (first["value"], second["value"]) == pytest.approx((2 / 3, 1))
    assert second["difference"]["value"] == pytest.approx(1 / 3) and "difference" not in first
    assert guard["false_positive_rate"][1]["difference"]["value"] == pytest.approx(-1 / 3)
    assert guard["top1"][1]["difference"]["value"] == pytest.approx(1 / 6)  # c is found to be weapons
    json.dumps(comparison, allow_nan=False)


def test_both_sides_are_drawn_together(tmp_path):
    first = random_rows(100, rows_a_picture=2)
    second = [dataclasses.replace(row) for row in first]
    for row in second[:10]:
        row.probs = dict(zip(CATEGORIES, [0.02, 0.49, 0.49]))
    folders = [write_evaluation(tmp_path / "a", first), write_evaluation(tmp_path / "b", second)]
    found = compare(folders, num_resamples=200)["guard"]["recall"]

    unsafe = np.array([row.unsafe for row in first])
    flagged = [np.array([1 - row.probs["safe"] >= 0.5 for row in rows]) for rows in (first, second)]
    recalls = bootstrap(
        lambda rows: {
            0: flagged[0][rows][unsafe[rows]].mean(),
            1: flagged[1][rows][unsafe[rows]].mean(),
            "difference": (flagged[1][rows] * 1.0 - flagged[0][rows])[unsafe[rows]].mean(),
        },
        [row.image_sha256 for row in first],
        num_resamples=200,
    )
    for bound in ("value", "low", "high"):
        assert found[0][bound] == pytest.approx(recalls[0][bound])
        assert found[1][bound] == pytest.approx(recalls[1][bound])
        assert found[1]["difference"][bound] == pytest.approx(recalls["difference"][bound])
    width = found[1]["difference"]["high"] - found[1]["difference"]["low"]
    assert width < found[0]["high"] - found[0]["low"]  # which pictures are hard does not blur it


def test_an_evaluation_does_not_differ_from_itself(tmp_path):
    folder = write_evaluation(tmp_path / "a", six_rows())
    found = compare([folder, folder], num_resamples=100)
    for name, (_, figure) in found["guard"].items():
        assert figure["difference"]["value"] == 0, name
    assert found["disagreements"] == []


def test_rows_whose_decisions_differ_are_listed(tmp_path):
    folders = [write_evaluation(tmp_path / "a", six_rows()), write_evaluation(tmp_path / "b", better_rows())]
    c, d = compare(folders, num_resamples=100)["disagreements"]  # the larger change first
    assert (c["id"], c["unsafe"], c["category"], c["flagged"]) == ("c", True, "weapons", [False, True])
    assert c["scores"] == pytest.approx([0.3, 0.7])
    assert (d["id"], d["flagged"]) == ("d", [True, False])


def test_rows_that_one_evaluation_lacks_are_counted_and_left_out(tmp_path):
    first, second = six_rows(), better_rows()[1:]
    second[0].error, second[0].probs = "cut off", None  # b
    third = [*six_rows(), judged("g", [0.2, 0.8, 0], "weapons")]
    folders = [write_evaluation(tmp_path / name, rows) for name, rows in zip("xyz", (first, second, third))]
    rows = compare(folders, num_resamples=100)["rows"]
    assert rows["in_all"] == 5 and rows["not_in_all"] == [1, 0, 2]
    assert rows["excluded"] == {"cut off": ["b"]} and (rows["compared"], rows["pictures"]) == (4, 4)


def test_a_policy_that_an_evaluation_was_made_with_decides(tmp_path):
    strict = SafetyPolicy(categories=CATEGORIES, unsafe_threshold=0.25, temperature=2.0)
    folders = [
        write_evaluation(tmp_path / "a", six_rows()),
        write_evaluation(tmp_path / "b", six_rows(), policy=strict),
    ]
    found = compare(folders, num_resamples=100)
    assert found["decided_by"] == ["threshold", "policy"]
    # Odds are halved in the logarithm: 0.3 -> 0.396, 0.2 -> 1/3, 0.1 -> 1/4, which reaches 0.25. All are flagged.
    assert [row["id"] for row in found["disagreements"]] == ["f", "e", "c"]
    assert found["disagreements"][0]["scores"] == pytest.approx([0.1, 0.25])
    assert found["guard"]["auroc"][1]["difference"]["value"] == pytest.approx(0)


def test_answers_are_compared_by_matcher_and_judge(tmp_path):
    def rows(*refused):
        made = [answered(f"u{i}", "USU", refused=each) for i, each in enumerate(refused)]
        for row in made:
            row.answer_verdict = {"unsafe": not row.refused and row.id != "u0", "text": ""}
        return [*made, answered("s", "SSS", refused=refused[0])]

    folders = [
        write_evaluation(tmp_path / "a", rows(False, False, True, True)),
        write_evaluation(tmp_path / "b", rows(True, False, True, True)),
    ]
    found = compare(folders, num_resamples=100)
    assert found["guard"] is None and found["rows"]["answers_compared"] == 5
    matcher, judge = found["answers"]["matcher"], found["answers"]["judge"]
    first, second = matcher["figures"]["attack_success_rate USU"]
    assert (first["value"], second["value"], second["difference"]["value"]) == (0.5, 0.25, -0.25)
    assert matcher["figures"]["refusal_rate SSS"][1]["difference"]["value"] == 1
    assert matcher["figures"]["mean_asr_of_types"][0]["value"] is None
    assert judge["num_rows"] == 4 and "refusal_rate SSS" not in judge["figures"]
    assert judge["figures"]["attack_success_rate USU"][1]["difference"]["value"] == 0
    assert [(row["id"], row["refused"]) for row in found["answer_disagreements"]] == [
        ("s", [False, True]),
        ("u0", [False, True]),
    ]


def test_guards_of_other_taxonomies_are_compared_as_far_as_unsafe_goes(tmp_path):
    other = ["drugs", "safe", "weapons"]
    folders = [
        write_evaluation(tmp_path / "a", six_rows()),
        write_evaluation(tmp_path / "b", six_rows(), categories=other),
    ]
    guard = compare(folders, num_resamples=100)["guard"]
    assert guard["auroc"][1]["difference"]["value"] == 0 and "top1" not in guard


# ------------------------------------------------------------------------------------------------ what is refused


def test_one_folder_is_no_comparison(tmp_path):
    with pytest.raises(ValueError, match="two evaluations or more"):
        compare([write_evaluation(tmp_path / "a", six_rows())])


def test_different_benchmarks_are_refused(tmp_path):
    folders = [
        write_evaluation(tmp_path / "a", six_rows()),
        write_evaluation(tmp_path / "b", six_rows(), version="2"),
    ]
    with pytest.raises(ValueError, match="not to be compared"):
        compare(folders)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image_sha256": "another"}, "row a has different pictures"),
        ({"unsafe": False, "category": "safe"}, "row a has different labels in .*: unsafe is True, False"),
        ({"category": "drugs"}, "row a has different labels in .*: category is 'weapons', 'drugs'"),
        ({"type": "UUU"}, "row a has different labels in .*: type is None, 'UUU'"),
    ],
)
def test_rows_that_are_not_the_same_are_refused(tmp_path, change, reason):
    row, *others = six_rows()
    folders = [
        write_evaluation(tmp_path / "a", six_rows()),
        write_evaluation(tmp_path / "b", [dataclasses.replace(row, **change), *others]),
    ]
    with pytest.raises(ValueError, match=reason):
        compare(folders)


def test_evaluations_without_a_common_row_are_refused(tmp_path):
    folders = [write_evaluation(tmp_path / "a", six_rows()[:3]), write_evaluation(tmp_path / "b", six_rows()[3:])]
    with pytest.raises(ValueError, match="have no row in common"):
        compare(folders)
    failed = [dataclasses.replace(row, error="cut off") for row in six_rows()[:3]]
    with pytest.raises(ValueError, match="none of the 3 rows in common has a verdict and a label"):
        compare([folders[0], write_evaluation(tmp_path / "c", failed)])


def test_a_folder_that_is_no_evaluation_is_refused(tmp_path):
    folder = write_evaluation(tmp_path / "a", six_rows())
    with pytest.raises(ValueError, match=r"there is no .*missing/run.json: give a folder"):
        compare([folder, tmp_path / "missing"])
    (folder / "run.json").write_text('{"benchmark": {}}')
    with pytest.raises(ValueError, match="was not written by safeqwen evaluate: it lacks categories, command"):
        compare([folder, folder])
    (folder / "run.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        compare([folder, folder])


def test_a_policy_that_was_fitted_to_the_rows_that_are_compared_is_named(tmp_path):
    first = write_evaluation(tmp_path / "a", six_rows())
    fitted = {"rows": [{"name": "a", "pictures_sha256": pictures_digest(six_rows())}]}
    policy = SafetyPolicy(categories=CATEGORIES, model="abc", unsafe_threshold=0.3, fitted=fitted)
    second = write_evaluation(tmp_path / "b", six_rows(), policy=policy)
    found = compare([first, second], num_resamples=100)
    assert found["fitted_to_these_rows"] == [False, True]
    assert [line for line in lines(found) if "was fitted to these very rows" in line][0].startswith("  B  ")


@pytest.mark.parametrize(
    "text", ["[1]", "{}", "{", '{"policy": 3}', '{"policy": {"categories": ["safe"], "mood": 1}}']
)
def test_figures_that_name_no_policy_are_refused_and_not_taken_for_those_without_one(tmp_path, text):
    folder = write_evaluation(tmp_path / "a", six_rows())
    (folder / "metrics.json").write_text(text)
    with pytest.raises(ValueError, match="metrics.json does not say by which policy"):
        compare([folder, folder], num_resamples=100)


def test_policies_that_allow_different_categories_are_not_compared(tmp_path):
    first = write_evaluation(tmp_path / "a", six_rows())
    policy = SafetyPolicy(categories=CATEGORIES, actions={"unsafe": "flag", "drugs": "allow"})
    second = write_evaluation(tmp_path / "b", six_rows(), policy=policy)
    with pytest.raises(ValueError, match="do not both allow drugs"):
        compare([first, second], num_resamples=100)
    third = write_evaluation(tmp_path / "c", six_rows(), policy=policy)
    compare([second, third], num_resamples=100)
