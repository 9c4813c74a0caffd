"""`metrics.json` as a whole: what is counted, what is left out and why."""

import dataclasses
import functools
import hashlib
import json

import pytest
from guard_rows import CATEGORIES, answered, judged, six_rows, write_evaluation

import safeqwen.evaluation.metrics
from safeqwen.judging.policy import SafetyPolicy


evaluation_metrics = functools.partial(safeqwen.evaluation.metrics.evaluation_metrics, num_resamples=100)


def test_every_row_is_counted_or_listed_with_its_reason(tmp_path):
    rows = [
        *six_rows(),
        judged("g", [0.2, 0.7, 0.1], None, unsafe=True, their_category="spam", image_sha256="picture of a"),
        dataclasses.replace(judged("h", [0, 0, 0]), probs=None, error="cut off", image_sha256=None),
        judged("i", [0.2, 0.7, 0.1], None, unsafe=None),
    ]
    metrics = evaluation_metrics(write_evaluation(tmp_path / "a", rows))
    counts = metrics["counts"]
    assert counts["rows"] == 9 and counts["judged"] == 8 and counts["errors"] == 1
    assert counts["pictures"] == 8
    assert counts["without_counterpart"] == {"spam": 1}
    assert counts["excluded"] == {"cut off": ["h"], "no label of the picture": ["i"]}
    assert metrics["guard"]["num_rows"] == 7
    assert metrics["guard_after_policy"] is metrics["answers"] is metrics["policy"] is None
    assert metrics["benchmark"]["name"] == "own" and metrics["model"]["model_fingerprint"] == "abc"
    assert metrics["versions"]["scikit-learn"] and metrics["versions"]["torch"] == "2"


def test_the_policy_is_measured_beside_the_guard(tmp_path):
    folder = write_evaluation(tmp_path / "a", six_rows())
    policy = SafetyPolicy(categories=CATEGORIES, model="abc", temperature=2.0, unsafe_threshold=0.62)
    metrics = evaluation_metrics(folder, policy)
    # 0.9 becomes 0.75 and 0.6 becomes 0.55: a alone is flagged.
    assert metrics["guard"]["recall"]["value"] == pytest.approx(2 / 3)
    assert metrics["guard_after_policy"]["recall"]["value"] == pytest.approx(1 / 3)
    assert metrics["guard_after_policy"]["threshold"] == 0.62
    assert metrics["policy"] == policy.to_dict()
    json.dumps(metrics, allow_nan=False)
    with pytest.raises(ValueError, match="the policy was fitted to the weights"):
        evaluation_metrics(folder, dataclasses.replace(policy, model="def"))


def test_a_benchmark_of_answers_alone_has_no_guard(tmp_path):
    rows = [answered(str(i), None, refused=i == 0, expected="refuse") for i in range(4)]
    rows[3].answer_error, rows[3].refused = "an empty answer", None  # as evaluate writes it
    metrics = evaluation_metrics(write_evaluation(tmp_path / "a", rows))
    assert metrics["guard"] is None
    assert metrics["answers"]["matcher"]["mean_asr_of_rows"]["value"] == pytest.approx(2 / 3)
    assert metrics["counts"]["answer_errors"] == 1
    assert metrics["counts"]["excluded_answers"] == {"an empty answer": ["3"]}


def test_an_evaluation_without_rows_or_with_rows_to_come_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no rows"):
        evaluation_metrics(write_evaluation(tmp_path / "a", []))
    folder = write_evaluation(tmp_path / "b", six_rows())
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match="holds 5 of 6 rows"):
        evaluation_metrics(folder)


def test_a_policy_that_was_fitted_to_the_very_rows_is_said_to_be(tmp_path):
    folder = write_evaluation(tmp_path / "a", six_rows())
    pictures = [f"picture of {id}" for id in "abcdef"]  # whatever else the rows hold
    digest = hashlib.sha256(" ".join(pictures).encode()).hexdigest()
    for sha256, flattered in ((digest, True), ("0" * 64, False)):
        policy = SafetyPolicy(categories=CATEGORIES, fitted={"rows": [{"name": "a", "pictures_sha256": sha256}]})
        assert evaluation_metrics(folder, policy)["policy_was_fitted_to_these_rows"] is flattered
    assert evaluation_metrics(folder)["policy_was_fitted_to_these_rows"] is False


def test_figures_name_their_rows_and_no_folder_of_this_machine(tmp_path):
    folder = write_evaluation(tmp_path / "a", six_rows())
    run = json.loads((folder / "run.json").read_text())
    run |= {"model": "/home/me/guard", "command": "safeqwen evaluate --data=/home/me/holisafe --out /home/me/out"}
    (folder / "run.json").write_text(json.dumps(run))
    fitted = {"command": "safeqwen calibrate /home/me/out", "rows": []}
    metrics = evaluation_metrics(folder, SafetyPolicy(categories=CATEGORIES, model="abc", fitted=fitted))
    assert metrics["rows_sha256"] == hashlib.sha256((folder / "rows.jsonl").read_bytes()).hexdigest()
    assert metrics["model"]["model"] == "guard"
    assert metrics["command"] == "safeqwen evaluate --data=holisafe --out out"
    assert "/home" not in json.dumps(metrics)


@pytest.mark.parametrize(
    "fields", [{"probs": [0.5]}, {"views": ["a"]}, {"views": [{"frame": 0}]}, {"answer_verdict": "unsafe"}]
)
def test_a_line_whose_verdict_has_another_form_is_named(tmp_path, fields):
    folder = write_evaluation(tmp_path / "a", six_rows())
    lines = (folder / "rows.jsonl").read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | fields)
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=f"line 3 is no row: .*{next(iter(fields))}"):
        evaluation_metrics(folder)
