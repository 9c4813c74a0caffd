"""`metrics.json`: everything that is computed from an evaluation's rows.

Every figure is `{"value", "low", "high", "n"}`: a number or `None`, its 95 % interval, and how many rows it is about.
`reason` is there if something is missing or needs a remark, `undefined_resamples` if some do not define the figure.
"""

import json
from collections import Counter
from pathlib import Path

from safeqwen.evaluation.answer_metrics import answer_metrics, group_by, why_no_answer
from safeqwen.evaluation.bootstrap import NUM_RESAMPLES, picture_of
from safeqwen.evaluation.guard_metrics import guard_metrics, why_not_counted
from safeqwen.evaluation.rows import pictures_digest, read_rows, rows_digest
from safeqwen.provenance import package_versions, without_folders


OF_RUN = ("benchmark", "model", "model_fingerprint", "categories", "command", "versions", "date")

__all__ = ["answer_metrics", "evaluation_metrics", "guard_metrics"]


def evaluation_metrics(folder, policy=None, command=None, num_resamples=NUM_RESAMPLES):
    """
    Everything that `metrics.json` holds, from `rows.jsonl` and `run.json` of an evaluation's folder.

    Args:
        folder (`str` or `Path`): that `safeqwen evaluate` wrote to.
        policy ([`SafetyPolicy`], *optional*): gives `guard_after_policy` beside `guard`.
        command (`str`, *optional*): the command line, where it is not that of run.json.
        num_resamples (`int`): as in [`bootstrap`].

    Returns:
        `dict`: see docs/evaluation.md. The same files give the same `dict`.

    Raises:
        ValueError: as [`guard_metrics`], [`answer_metrics`] and [`read_rows`]; if there is no row, or the policy
            is for another model.
        OSError: if a file is missing.
    """
    rows, run, rows_sha256 = read_rows(folder), read_run(folder), rows_digest(folder)
    if not rows:
        raise ValueError(f"{folder} holds no rows: there is nothing to measure")
    categories = run["categories"]
    if policy is not None:
        policy.check(categories, run["model_fingerprint"])
    by, settings = group_by(rows), {"num_resamples": num_resamples}
    counted = any(why_not_counted(row) is None for row in rows)
    asked = any(row.answer is not None or row.answer_error is not None for row in rows)
    answered = any(why_no_answer(row, by) is None for row in rows)
    return {
        "benchmark": run["benchmark"],
        "model": {
            "model": without_folders(run["model"]),
            **{key: run[key] for key in ("model_fingerprint", "categories")},
        },
        "counts": {
            "rows": len(rows),
            "judged": sum(row.error is None and row.probs is not None for row in rows),
            "errors": sum(row.error is not None for row in rows),
            "answer_errors": sum(row.answer_error is not None for row in rows),
            "pictures": len({picture_of(row) for row in rows}),
            "without_counterpart": Counter(
                row.their_category for row in rows if row.unsafe and row.category is None and row.their_category
            ),
            "by_type": Counter(sorted(row.type for row in rows if row.type is not None)),
            "excluded": by_reason((row.id, why_not_counted(row)) for row in rows),
            "excluded_answers": by_reason((row.id, why_no_answer(row, by)) for row in rows) if asked else {},
        },
        "guard": guard_metrics(rows, categories, **settings) if counted else None,
        "guard_after_policy": guard_metrics(rows, categories, policy=policy, **settings)
        if counted and policy
        else None,
        "answers": answer_metrics(rows, **settings) if answered else None,
        "policy": None if policy is None else policy.to_dict() | {"fitted": without_folders(policy.fitted)},
        "rows_sha256": rows_sha256,
        "policy_was_fitted_to_these_rows": policy is not None and policy.was_fitted_to(pictures_digest(rows)),
        "command": without_folders(command or run["command"], "command"),
        "versions": run["versions"] | package_versions(["numpy", "scikit-learn", "torchmetrics"]),
        "date": run["date"],
    }


def by_reason(pairs):
    """`(id, reason or None)` of each row -> `{reason: [ids]}` of those that have a reason."""
    found = {}
    for id, reason in pairs:
        if reason is not None:
            found.setdefault(reason, []).append(id)
    return found


def read_run(folder):
    """The `run.json` of an evaluation's folder (`dict`).

    Raises:
        ValueError: if there is none, or it is no JSON object with what is read of it here.
        OSError: if it cannot be read.
    """
    file = Path(folder) / "run.json"
    if not file.is_file():
        raise ValueError(f"there is no {file}: give a folder that safeqwen evaluate wrote")
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if missing := set(OF_RUN) - set(run):
        raise ValueError(f"{file} was not written by safeqwen evaluate: it lacks {', '.join(sorted(missing))}")
    return run
