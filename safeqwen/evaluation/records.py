"""Rows in the record form of guard-eval-harness, for tools that read its runs."""

import json
from pathlib import Path

from safeqwen.judging.verdict import SAFE


FILE = "records.jsonl"
THRESHOLD = 0.5


def record(row, threshold=THRESHOLD):
    """
    A row as guard-eval-harness writes a prediction (`dict`).

    The fields are those of its `NormalizedPrediction` (github.com/Virtue-Research/guard-eval-harness,
    docs/user-guide/run-artifacts.md at commit 8d24cc5), which requires that `unsafe_label` is
    `unsafe_score >= threshold`.

    Args:
        row ([`Row`]): with `probs` that have a category "safe".
        threshold (`float`): probability in [0, 1].

    Returns:
        `dict`: for instance

            {"sample_id": "17", "unsafe_score": 0.98, "unsafe_label": True, "threshold": 0.5, "latency_ms": 31.5,
             "predicted_categories": ["suicide"], "category_scores": {"suicide": 0.97, ...}, "metadata": {...}}

        `predicted_categories` holds the likeliest harm of a picture that is unsafe. `category_scores` leaves "safe"
        out. The labels, the answer and what was made of it are in `metadata`.
    """
    harms = {name: prob for name, prob in row.probs.items() if name != SAFE}
    score = 1 - row.probs[SAFE]
    unsafe = score >= threshold
    labels = ("image_name", "unsafe", "category", "type", "answer", "refused", "answer_verdict")
    return {
        "sample_id": row.id,
        "unsafe_score": score,
        "unsafe_label": unsafe,
        "threshold": threshold,
        "latency_ms": row.latency_ms or 0.0,  # a number in their form
        "predicted_categories": [max(harms, key=harms.get)] if unsafe and harms else [],
        "category_scores": harms,
        "metadata": {name: getattr(row, name) for name in labels if getattr(row, name) is not None},
    }


def write_records(rows, folder, threshold=THRESHOLD):
    """
    Writes `records.jsonl` and returns how many of the rows (`list[Row]`) have no verdict, and so no record (`int`).

    Raises:
        ValueError: if the categories have no "safe", so that there is no score.
    """
    judged = [row for row in rows if row.probs is not None]
    if judged and SAFE not in judged[0].probs:
        raise ValueError(f"a record needs the probability of 'safe', but the rows have {', '.join(judged[0].probs)}")
    lines = [json.dumps(record(row, threshold), ensure_ascii=False) + "\n" for row in judged]
    (Path(folder) / FILE).write_bytes("".join(lines).encode("utf-8", "backslashreplace"))
    return len(rows) - len(judged)
