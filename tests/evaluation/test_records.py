"""guard-eval-harness' record form: its types, its rule for the label, rows without a verdict left out and counted."""

import json

import pytest

from safeqwen.evaluation.records import record, write_records
from safeqwen.evaluation.rows import Row


ROW = Row("17", unsafe=True, category="suicide", type="USU", latency_ms=31.5, answer="No.", refused=False)
ROW.probs = {"safe": 0.25, "harassment": 0.25, "suicide": 0.5}


def test_a_record_has_the_fields_and_types_of_the_harness():
    assert record(ROW) == {
        "sample_id": "17",
        "unsafe_score": 0.75,
        "unsafe_label": True,
        "threshold": 0.5,
        "latency_ms": 31.5,
        "predicted_categories": ["suicide"],
        "category_scores": {"harassment": 0.25, "suicide": 0.5},
        "metadata": {"unsafe": True, "category": "suicide", "type": "USU", "answer": "No.", "refused": False},
    }


def test_the_label_is_whether_the_score_reaches_the_threshold():
    assert record(ROW, threshold=0.75)["unsafe_label"] is True
    above = record(ROW, threshold=0.8)
    assert above["unsafe_label"] is False and above["predicted_categories"] == [] and above["threshold"] == 0.8


def test_rows_without_a_verdict_are_left_out_and_counted(tmp_path):
    assert write_records([ROW, Row("18", error="no picture"), Row("19", probs={"safe": 1.0})], tmp_path) == 1
    lines = (tmp_path / "records.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["sample_id"] for line in lines] == ["17", "19"]
    assert json.loads(lines[1])["latency_ms"] == 0.0


def test_categories_without_safe_have_no_score(tmp_path):
    with pytest.raises(ValueError, match="'safe'.*blood"):
        write_records([Row("1", probs={"blood": 1.0})], tmp_path)
