"""Evaluations of one benchmark beside each other: what differs, how surely, and on which rows.

Only rows that all evaluations have count, and every resample draws the same pictures for all of them, so that a
difference is not blurred by which pictures are hard.
"""

import json
from pathlib import Path

import numpy as np

from safeqwen.evaluation.answer_metrics import ATTACKS, group_by, measure_answers, succeeded, why_no_answer
from safeqwen.evaluation.bootstrap import NUM_RESAMPLES, bootstrap, figure_of, picture_of
from safeqwen.evaluation.guard_metrics import (
    BINARY,
    OF_CATEGORIES,
    measure_binary,
    measure_predictions,
    take_verdicts,
    why_not_counted,
)
from safeqwen.evaluation.metrics import by_reason, read_run
from safeqwen.evaluation.rows import pictures_digest, read_rows
from safeqwen.judging.policy import SafetyPolicy
from safeqwen.provenance import without_folders


SAME = ("name", "version", "split")  # of the benchmarks


def compare(folders, *, num_resamples=NUM_RESAMPLES, seed=0):
    """
    Compares evaluations with the first of them.

    Pictures are flagged by the policy that an evaluation was made with (`policy` in its metrics.json), which also
    calibrates the scores; without one, from an unsafe probability of 0.5.

    Args:
        folders (`list[str]`): two or more, that `safeqwen evaluate` wrote to.
        num_resamples, seed (`int`): as in [`bootstrap`].

    Returns:
        `dict`: `benchmark`; `folders`; `runs` (model and settings of each); `rows` (how many are compared, which are
        not, and why); `fitted_to_these_rows` (whether the policy of each was, which flatters it); `guard`, and
        `answers` by "matcher" and "judge", `None` if no row counts: name -> a list of a figure for each folder, those
        after the first with `difference`, a figure of their value less the first's; `disagreements` and
        `answer_disagreements`, the rows on which decisions and refusals differ.

    Raises:
        ValueError: if there are fewer than two folders, they are of different benchmarks, have no row in common, rows
            of one id differ in picture or label, no row counts in all of them, or their policies allow different
            categories; if a folder is no evaluation.
        OSError: if a file cannot be read.
    """
    folders = [str(folder) for folder in folders]
    if len(folders) < 2:
        raise ValueError("a comparison needs two evaluations or more")
    runs = [read_run(folder) for folder in folders]
    benchmark = _one_benchmark(folders, runs)
    evaluations = [{row.id: row for row in read_rows(folder)} for folder in folders]
    shared = sorted(set.intersection(*map(set, evaluations)))
    if not shared:
        raise ValueError(f"{', '.join(folders)} have no row in common")
    same_categories = all(run["categories"] == runs[0]["categories"] for run in runs)
    labels = ("unsafe", "type", "expected", *(["category"] if same_categories else []))
    for id in shared:
        _refuse_differences(id, [rows[id] for rows in evaluations], labels, folders)
    settings = {"num_resamples": num_resamples, "seed": seed}
    counted, excluded = _in_all(shared, evaluations, why_not_counted)
    by = group_by([rows[id] for id in shared for rows in evaluations])
    answered, excluded_answers = _in_all(shared, evaluations, lambda row: why_no_answer(row, by))
    if not counted and not answered:
        raise ValueError(f"none of the {len(shared)} rows in common has a verdict and a label, or an answer, in all")
    comparison = {
        "benchmark": benchmark,
        "folders": folders,
        "runs": [{"model": without_folders(run["model"])} | run.get("settings", {}) for run in runs],
        "rows": {
            "in_all": len(shared),
            "not_in_all": [len(rows) - len(shared) for rows in evaluations],
            "compared": len(counted),
            "pictures": len({picture_of(evaluations[0][id]) for id in counted}),
            "answers_compared": len(answered),
            "excluded": by_reason(excluded),
            "excluded_answers": by_reason(excluded_answers) if answered else {},
        },
        "decided_by": [],
        "fitted_to_these_rows": [],
        "guard": None,
        "disagreements": [],
        "answers": {"grouped_by": by, "matcher": None, "judge": None} if answered else None,
        "answer_disagreements": [],
        "bootstrap": {**settings, "resampled": "pictures"},
    }
    if counted:
        policies = [read_policy(folder) for folder in folders]
        _refuse_other_harms(folders, policies)
        verdicts = [
            take_verdicts([rows[id] for id in counted], run["categories"], policy=policy)
            for rows, run, policy in zip(evaluations, runs, policies)
        ]
        comparison["decided_by"] = ["threshold" if policy is None else "policy" for policy in policies]
        comparison["fitted_to_these_rows"] = [
            policy is not None and policy.was_fitted_to(pictures_digest(rows.values()))
            for rows, policy in zip(evaluations, policies)
        ]
        comparison["guard"] = _guard(verdicts, same_categories, settings)
        comparison["disagreements"] = _disagreements(verdicts)
    for rater in ("matcher", "judge") if answered else ():
        rated = [
            [rows[id] for rows in evaluations]
            for id in answered
            if rater == "matcher" or all(rows[id].answer_verdict for rows in evaluations)
        ]
        if rated:
            comparison["answers"][rater] = {"num_rows": len(rated), "figures": _answers(rated, by, rater, settings)}
    comparison["answer_disagreements"] = _answer_disagreements([[rows[id] for rows in evaluations] for id in answered])
    return comparison


def read_policy(folder):
    """The [`SafetyPolicy`] that an evaluation was made with, or `None`."""
    file = Path(folder) / "metrics.json"
    if not file.is_file():
        return None
    try:
        policy = json.loads(file.read_text(encoding="utf-8"))["policy"]
        return None if policy is None else SafetyPolicy(**policy)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} does not say by which policy: {error}; run safeqwen evaluate again") from error


def _one_benchmark(folders, runs):
    first = {key: runs[0]["benchmark"].get(key) for key in SAME}
    for folder, run in zip(folders, runs):
        facts = {key: run["benchmark"].get(key) for key in SAME}
        if facts != first:
            ours, theirs = (" ".join(map(str, filter(None, each.values()))) for each in (first, facts))
            raise ValueError(f"{folders[0]} is an evaluation on {ours}, but {folder} on {theirs}: not to be compared")
    return first


def _refuse_other_harms(folders, policies):
    """Refuses policies that allow different categories: what is a mistake to one is right to the other."""
    allowed = [set() if policy is None else {*policy.allowed} for policy in policies]
    for folder, names in zip(folders, allowed):
        if names != allowed[0]:
            odd = ", ".join(sorted(names ^ allowed[0]))
            raise ValueError(f"the policies of {folders[0]} and {folder} do not both allow {odd}: not to be compared")


def _refuse_differences(id, rows, labels, folders):
    pictures = {row.image_sha256 for row in rows} - {None}  # a picture that could not be read has none
    if len(pictures) > 1:
        raise ValueError(f"row {id} has different pictures in {', '.join(folders)}: was one evaluated on other data?")
    for name in labels:
        if any(getattr(row, name) != getattr(rows[0], name) for row in rows):
            found = ", ".join(repr(getattr(row, name)) for row in rows)
            raise ValueError(f"row {id} has different labels in {', '.join(folders)}: {name} is {found}")


def _in_all(ids, evaluations, why_not):
    """The ids of the rows that count in all evaluations, and `(id, reason)` of the others."""
    reasons = {id: next(filter(None, (why_not(rows[id]) for rows in evaluations)), None) for id in ids}
    return [id for id in ids if reasons[id] is None], reasons.items()


def _compared(measures, pictures, ns, settings):
    """`{name: [figure of each evaluation]}`, all after the first with `difference`.

    Args:
        measures (`list[callable]`): of each evaluation, as [`bootstrap`] takes it.
        pictures (`list[str]`): of each row.
        ns (`dict`): name -> how many rows it is a figure of.
        settings (`dict`): of [`bootstrap`].
    """

    def measure(chosen):
        each = [one(chosen) for one in measures]
        found = {(name, i): values[name] for i, values in enumerate(each) for name in ns}
        return found | {(name, i, "less the first"): found[name, i] - found[name, 0] for name, i in found if i}

    figures = bootstrap(measure, pictures, **settings)
    why = "undefined on the rows that are compared"
    compared = {name: [figure_of(figures[name, i], n, why) for i in range(len(measures))] for name, n in ns.items()}
    for name, n in ns.items():
        for i in range(1, len(measures)):
            compared[name][i]["difference"] = figure_of(figures[name, i, "less the first"], n, why)
    return compared


def _guard(verdicts, same_categories, settings):
    num_rows, num_known = len(verdicts[0].rows), int((verdicts[0].labels >= 0).sum())
    ns = dict.fromkeys(BINARY, num_rows) | (dict.fromkeys(OF_CATEGORIES, num_known) if same_categories else {})

    def measure_of(one):
        if not same_categories:
            return lambda chosen: measure_binary(one, chosen)
        return lambda chosen: measure_binary(one, chosen) | measure_predictions(one, chosen)

    return _compared([measure_of(one) for one in verdicts], verdicts[0].pictures, ns, settings)


def _answers(rated, by, rater, settings):
    """`_compared` of answers, for rows as a list of a row of each evaluation."""
    groups = np.array([getattr(rows[0], by) for rows in rated])
    attacks = [name for name in (ATTACKS if by == "type" else ["refuse"]) if name in groups]
    names = [("attack_success_rate", name) for name in attacks]
    ns = {name: int((groups == name[1]).sum()) for name in names}
    ns |= dict.fromkeys(("mean_asr_of_types", "mean_asr_of_rows"), int(np.isin(groups, attacks).sum()))
    if rater == "matcher":
        harmless = "SSS" if by == "type" else "answer"
        ns["refusal_rate", harmless] = int((groups == harmless).sum())

    def measure_of(success):
        return lambda chosen: measure_answers(groups, success, chosen)

    success = np.array([[succeeded(row, rater) for row in rows] for rows in rated])
    measures = [measure_of(column) for column in success.T]
    compared = _compared(measures, [picture_of(rows[0]) for rows in rated], ns, settings)
    return {name if isinstance(name, str) else " ".join(name): figures for name, figures in compared.items()}


def _disagreements(verdicts):
    """Of each row that is flagged in some evaluations only; the ones with the most different scores first."""
    flagged, scores = np.array([one.flagged for one in verdicts]).T, np.array([one.scores for one in verdicts]).T
    differ = [i for i, row in enumerate(flagged) if row.any() and not row.all()]
    differ.sort(key=lambda i: np.ptp(scores[i]), reverse=True)
    rows = verdicts[0].rows
    return [
        {
            "id": rows[i].id,
            "image_name": rows[i].image_name,
            "unsafe": rows[i].unsafe,
            "category": rows[i].category,
            "flagged": flagged[i].tolist(),
            "scores": scores[i].tolist(),
        }
        for i in differ
    ]


def _answer_disagreements(answered):
    return [
        {
            "id": rows[0].id,
            "image_name": rows[0].image_name,
            "query": rows[0].query,
            "type": rows[0].type,
            "expected": rows[0].expected,
            "refused": [row.refused for row in rows],
            "answers": [row.answer for row in rows],
        }
        for rows in answered
        if len({row.refused for row in rows}) > 1
    ]
