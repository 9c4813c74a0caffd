"""An evaluation with pictures on disk, as far as its page and plots depend on it."""

import hashlib
from collections import Counter

from guard_rows import CATEGORIES, random_rows
from PIL import Image

from safeqwen.evaluation.answer_metrics import answer_metrics
from safeqwen.evaluation.bootstrap import picture_of
from safeqwen.evaluation.guard_metrics import guard_metrics, why_not_counted
from safeqwen.evaluation.metrics import by_reason
from safeqwen.evaluation.rows import PAIR_TYPES, Row


def sixty_rows(data_root):
    """Rows with a picture each, a question and an answer, and behind them one row with either kind of error."""
    rows = random_rows(60)
    for i, row in enumerate(rows):
        row.image_name = f"{row.id}.png"
        Image.new("RGB", (400, 300), (4 * i, 100, 255 - 4 * i)).save(data_root / row.image_name)
        row.image_sha256 = hashlib.sha256((data_root / row.image_name).read_bytes()).hexdigest()
        row.query, row.answer, row.refused = "What is it?", "A plain colour.", i % 4 == 3
        row.type = PAIR_TYPES[3 + i % 2 if row.unsafe else i % 3]
    unread = Row("unread", "gone.png", unsafe=True, error="gone.png: is empty (0 bytes); get the file anew")
    silent = Row("silent", unsafe=None, answer="", answer_error="the answer is empty")
    return [*rows, unread, silent]


def metrics_of(rows, policy=None, categories=CATEGORIES, **benchmark):
    """What `metrics.json` holds, with intervals of few resamples."""
    counted = any(why_not_counted(row) is None for row in rows)
    settings = {"num_resamples": 100}
    facts = {"name": "own", "title": "Plain colours", "version": "1.2", "source": "this test", "licence": "none"}
    facts |= {
        "split": "test",
        "label_rule": "none",
        "has_picture_labels": True,
        "num_rows_published": {"in the paper": 4163},
    }
    return {
        "benchmark": facts | benchmark,
        "model": {"model": "some/model", "model_fingerprint": "abc", "categories": categories},
        "counts": {
            "rows": len(rows),
            "judged": sum(row.probs is not None for row in rows),
            "errors": sum(row.error is not None for row in rows),
            "answer_errors": sum(row.answer_error is not None for row in rows),
            "pictures": len({picture_of(row) for row in rows}),
            "without_counterpart": {},
            "by_type": Counter(row.type for row in rows if row.type is not None),
            "excluded": by_reason((row.id, why_not_counted(row)) for row in rows),
        },
        "guard": guard_metrics(rows, categories, **settings) if counted else None,
        "guard_after_policy": guard_metrics(rows, categories, policy=policy, **settings) if policy else None,
        "answers": answer_metrics(rows, **settings) if any(row.answer for row in rows) else None,
        "policy": policy and policy.to_dict(),
        "policy_was_fitted_to_these_rows": False,
        "command": "safeqwen evaluate --benchmark own",
        "versions": {"torch": "2"},
        "date": "2026-11-26",
    }
