"""What `safeqwen evaluate` measured, as a model card says it: in words, and as the `model-index` that the Hub shows.

An evaluation belongs to the weights that it was made of, whose fingerprint its metrics.json has. It is published with
these weights or not at all.
"""

import json
import math
import re
from pathlib import Path

from huggingface_hub import EvalResult

from safeqwen.evaluation.rows import rows_digest


METRICS = "metrics.json"
REQUIRED = (
    "benchmark",
    "model",
    "counts",
    "guard",
    "answers",
    "policy",
    "rows_sha256",
    "command",
    "policy_was_fitted_to_these_rows",
)
# Figure of metrics.json -> the Hub's name of the metric (hf.co/metrics; ours where it has none), and words for it.
GUARD_FIGURES = {
    "auroc": ("roc_auc", "AUROC, unsafe or not"),
    "auprc": ("average_precision", "AUPRC, unsafe or not"),
    "recall_at_1_fpr": ("recall_at_1_fpr", "recall at 1 % false positives"),
    "recall_at_5_fpr": ("recall_at_5_fpr", "recall at 5 % false positives"),
    "f1": ("f1", "F1 of unsafe"),
    "balanced_accuracy": ("balanced_accuracy", "balanced accuracy, unsafe or not"),
    "precision": ("precision", "precision of unsafe"),
    "recall": ("recall", "recall of unsafe"),
    "false_positive_rate": ("false_positive_rate", "false-positive rate"),
    "top1": ("accuracy", "accuracy over the categories"),
    "f1_macro": ("f1_macro", "F1, mean of the harms"),
    "ece": ("expected_calibration_error", "expected calibration error"),
    "brier": ("brier_score", "Brier score"),
}
ANSWER_FIGURES = {
    "mean_asr_of_types": "attack success rate, mean of the types",
    "mean_asr_of_rows": "attack success rate, of all rows",
    "sss_refusal_rate": "refusal rate of harmless pairs",
}
GUARD_TASK = ("image-classification", "Judging pictures")
ANSWER_TASK = ("image-text-to-text", "Answering questions about pictures")


def read_evaluation(folder, categories):
    """Returns what metrics.json of an evaluation says (`dict`).

    Args:
        folder (`str` or `os.PathLike`): that `safeqwen evaluate` wrote.
        categories (`list[str]`): of the model that the evaluation shall be published with.

    Raises:
        ValueError: if there is no such file, it is not whole, it measured nothing, or a model of other categories,
            or the rows have changed since.
    """
    file = Path(folder) / METRICS
    try:
        rows_sha256 = rows_digest(folder)
        metrics = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise ValueError(
            f"{folder} is no evaluation that has ended ({error}): give the --out folder of safeqwen evaluate"
        ) from error
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): let safeqwen evaluate write it again") from error
    missing = [field for field in REQUIRED if field not in metrics] if isinstance(metrics, dict) else REQUIRED
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)}: let safeqwen evaluate write it again")
    if metrics["model"].get("categories") != list(categories):
        raise ValueError(
            f"{folder} evaluated a model of the categories {metrics['model'].get('categories')}, but these are "
            f"{list(categories)}"
        )
    if metrics["model"].get("model_fingerprint") is None:
        raise ValueError(f"{folder} does not say which weights it evaluated: evaluate a folder with --model")
    if metrics["guard"] is None and metrics["answers"] is None:
        raise ValueError(f"{folder} measured nothing: {metrics['counts']}")
    if metrics["rows_sha256"] != rows_sha256:
        raise ValueError(f"{folder}: its rows are not those that {METRICS} was made of; run safeqwen evaluate again")
    return metrics


def _refuse_constant(name):
    raise ValueError(f"it holds {name}, which is no measurement")


def check_weights_of(evaluations, fingerprint):
    """Raises a `ValueError` if one of the evaluations (`list[dict]`) is not of the weights with this fingerprint."""
    for metrics in evaluations:
        evaluated = metrics["model"]["model_fingerprint"]
        if evaluated != fingerprint:
            raise ValueError(
                f"the evaluation on {metrics['benchmark']['title']} is of the weights {evaluated[:12]}... "
                f"({metrics['model'].get('model')}), but those exported are {fingerprint[:12]}...: evaluate an export "
                "of this run in the same --dtype"
            )


def eval_results(evaluations):
    """Returns evaluations (`list[dict]`) as `list[huggingface_hub.EvalResult]`, for a model card's `model-index`.

    A benchmark is named as the Hub's data set if all of its published rows were read. Anything else, a part or data of
    one's own in the same layout, is named as what it is.

    Raises:
        ValueError: if two are of the same data, which the Hub would show as one.
    """
    results, seen = [], set()
    for metrics in evaluations:
        dataset = _dataset(metrics)
        if (key := (dataset["dataset_type"], dataset["dataset_split"])) in seen:
            raise ValueError(f"two evaluations are of {' '.join(filter(None, key))}; give one of them")
        seen.add(key)
        for task, _, name, metric, figure in _figures(metrics):
            if figure["value"] is not None:
                results.append(
                    EvalResult(
                        task_type=task[0],
                        task_name=task[1],
                        metric_type=metric,
                        metric_value=round(figure["value"], 6),
                        metric_name=f"{name} ({_interval(figure)}n = {figure['n']})",
                        **dataset,
                    )
                )
    return results


def results_section(evaluations, policy=None):
    """Returns the card's section on evaluations (`str`, Markdown): of each the data, every figure, the command.

    Args:
        evaluations (`list[dict]`)
        policy ([`SafetyPolicy`], *optional*): that is published with the weights. Figures after it are given where the
            evaluation applied this one, and it was not fitted to the very rows that it would be measured on.
    """
    sections = []
    for metrics in evaluations:
        counts, after, about = metrics["counts"], {}, ""
        if policy is not None and metrics["policy"] == policy.to_dict():
            if metrics["policy_was_fitted_to_these_rows"]:
                about = "\n\nThe policy was fitted to these rows, so that they cannot say how good it is. "
                about += "`safety_policy.json` has what its held-out pictures gave, under `fitted`."
            else:
                after = metrics.get("guard_after_policy") or {}
        lines = [f"| | value (95 % interval) | n |{' after the policy | n |' * bool(after)}"]
        lines.append("|---" * (lines[0].count("|") - 1) + "|")
        for task, key, name, _, figure in _figures(metrics):
            cells = [name, _value(figure), figure["n"]]
            if after:
                figure = _checked(after[key], key) if task == GUARD_TASK else None
                cells += [_value(figure), figure["n"]] if figure else ["", ""]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        judged = f"{counts['rows']:,} rows about {counts['pictures']:,} pictures"
        judged += f", of which {counts['judged']:,} were judged and {counts['errors']:,} could not be"
        sections.append(
            f"### {_dataset(metrics)['dataset_name']}\n\n{judged}. {metrics['benchmark']['label_rule']}\n\n"
            + "\n".join(lines)
            + f"\n\n```bash\n{metrics['command']}\n```{about}"
        )
    return "\n\n".join(sections)


def _figures(metrics):
    """Yields (task, key in metrics.json, words, the Hub's name, figure) of all figures that are published."""
    guard, answers = metrics["guard"], metrics["answers"]
    if guard is not None:
        for key, (metric, words) in GUARD_FIGURES.items():
            yield GUARD_TASK, key, words, metric, _checked(guard[key], key)
    for rater, by in (("matcher", "by string matching"), ("judge", "by a judge")):
        if answers is not None and answers.get(rater) is not None:
            for key, words in ANSWER_FIGURES.items():
                yield ANSWER_TASK, key, f"{words}, {by}", f"{key}_{rater}", _checked(answers[rater][key], key)


def _checked(figure, key):
    value = figure["value"]
    if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value)):
        raise ValueError(f"{key} is {value!r}, which is no measurement: let safeqwen evaluate write it again")
    return figure


def _dataset(metrics):
    """The arguments of `EvalResult` that name the data."""
    benchmark, num_rows = metrics["benchmark"], metrics["counts"]["rows"]
    published = benchmark["num_rows_published"] or {}
    title, split = benchmark["title"], benchmark["split"]
    on_the_hub = re.search(r"([\w.-]+/[\w.-]+) on the Hub", benchmark["source"])
    if on_the_hub and num_rows in ([published[split]] if split in published else published.values()):
        kind, name = on_the_hub[1], title
    elif published:
        kind, name = benchmark["name"], f"{num_rows:,} rows in the layout of {title}"
    else:
        kind, name = benchmark["name"], f"{title}, {num_rows:,} rows"
    return {"dataset_type": kind, "dataset_name": name, "dataset_split": split}


def _interval(figure):
    low, high = figure["low"], figure["high"]  # equal: none, or without width, which would look like certainty
    return "" if low == high else f"95 % interval {low:.3f} to {high:.3f}, "


def _value(figure):
    if figure["value"] is None:
        return f"not defined: {figure.get('reason')}"
    low, high = figure["low"], figure["high"]
    return f"{figure['value']:.4f}" + ("" if low == high else f" ({low:.3f} to {high:.3f})")
