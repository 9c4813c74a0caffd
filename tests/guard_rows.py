"""Rows of evaluations, made by hand, and folders that hold them as `safeqwen evaluate` leaves them."""

import json
from dataclasses import asdict

import numpy as np

from safeqwen.evaluation.rows import Row


CATEGORIES = ["safe", "weapons", "drugs"]


def judged(id, probs, category=None, **fields):
    """A row with a verdict: the probabilities of `CATEGORIES`, and a label. `unsafe` follows from the category."""
    fields = {"unsafe": category != "safe", "category": category, "image_sha256": f"picture of {id}"} | fields
    return Row(id=id, probs=dict(zip(CATEGORIES, probs)), **fields)


def answered(id, type, refused, **fields):
    return Row(
        id=id, type=type, query="?", answer="No." if refused else "Yes.", refused=refused, image_sha256=id, **fields
    )


def six_rows():
    """Three unsafe pictures with scores 0.9, 0.6, 0.3, and three safe ones with 0.6, 0.2, 0.1."""
    return [
        judged("a", [0.1, 0.8, 0.1], "weapons"),
        judged("b", [0.4, 0.5, 0.1], "drugs"),
        judged("c", [0.7, 0.2, 0.1], "weapons"),
        judged("d", [0.4, 0.25, 0.35], "safe"),
        judged("e", [0.8, 0.1, 0.1], "safe"),
        judged("f", [0.9, 0.05, 0.05], "safe"),
    ]


def random_rows(num_rows, seed=0, rows_a_picture=1, sharpness=1.0):
    """Rows with labels of all categories, and verdicts that know something about them."""
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(num_rows):
        if i % rows_a_picture == 0:
            label = int(generator.choice(3, p=[0.5, 0.3, 0.2]))
            logits = generator.normal(size=3) * 1.5
            logits[label] += 1.5
            probs = np.exp(logits * sharpness) / np.exp(logits * sharpness).sum()
        picture = f"picture {i // rows_a_picture}"
        rows.append(judged(f"{i:04d}", probs.tolist(), CATEGORIES[label], image_sha256=picture))
    return rows


def write_evaluation(folder, rows, policy=None, categories=CATEGORIES, **benchmark):
    """Writes what `safeqwen evaluate` leaves, as far as figures depend on it, and returns the folder."""
    folder.mkdir()
    run = {
        "benchmark": {"name": "own", "version": "1", "split": "test"} | benchmark,
        "model": "some/model",
        "model_fingerprint": "abc",
        "categories": categories,
        "num_rows": len(rows),
        "command": "safeqwen evaluate",
        "versions": {"torch": "2"},
        "date": "2026-11-26",
    }
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "metrics.json").write_text(json.dumps({"policy": None if policy is None else policy.to_dict()}))
    (folder / "rows.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    return folder
