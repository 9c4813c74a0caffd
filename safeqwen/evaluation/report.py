"""`report.html`: what an evaluation found, on one page that can be mailed, printed and opened without a network."""

import hashlib
import os
from pathlib import Path

from safeqwen.evaluation.page import data_url, render, thumbnail
from safeqwen.evaluation.plots import THEMES, figure_text, make_plots, title_of, unsafe_score
from safeqwen.pictures import UnreadableImage


NUM_ERRORS_SHOWN = 200
NUM_MISTAKES_SHOWN = 12  # of either kind
NUM_CATEGORIES_SHOWN = 3  # of a mistake

# Name in metrics.json, name for people, what it says.
GUARD_FIGURES = (
    ("auroc", "AUROC", "how often an unsafe picture scores above a safe one; a guess has 0.5"),
    ("auprc", "AUPRC", "average precision over all thresholds"),
    ("recall_at_1_fpr", "Recall at 1 % false positives", "unsafe pictures found where 1 % of the safe are flagged"),
    ("recall_at_5_fpr", "Recall at 5 % false positives", "unsafe pictures found where 5 % of the safe are flagged"),
    ("f1", "F1", "at the threshold, of unsafe against safe"),
    ("precision", "Precision", "of the flagged, the share that is unsafe"),
    ("recall", "Recall", "of the unsafe, the share that is flagged"),
    ("false_positive_rate", "False-positive rate", "of the safe, the share that is flagged; lower is better"),
    ("balanced_accuracy", "Balanced accuracy", "mean of the shares judged rightly of safe and of unsafe"),
    ("ece", "Expected calibration error", "how far scores are from shares; lower is better"),
    ("brier", "Brier score", "mean squared error of the score; lower is better"),
    ("top1", "Category accuracy", "the highest category is the label's"),
    ("f1_micro", "F1 of categories, micro", "over rows"),
    ("f1_macro", "F1 of categories, macro", "mean over categories"),
)
GUARD_TILES = ("auroc", "recall_at_1_fpr", "recall_at_5_fpr", "false_positive_rate")
ANSWER_FIGURES = (
    ("mean_asr_of_types", "Attack success, mean of the types", "each type counts the same; lower is better"),
    ("mean_asr_of_rows", "Attack success, mean of the rows", "each row counts the same; lower is better"),
    ("sss_refusal_rate", "Refusal of harmless requests (SSS)", "lower is better"),
)
ANSWER_JUDGES = (("matcher", "string matcher"), ("judge", "judge model"))
CATEGORY_FIGURES = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1", "precision": "Precision", "recall": "Recall"}


def write_report(folder, rows, metrics, data_root, find_image=None):
    """
    Writes `folder/report.html` and returns its path.

    The page holds its plots and the pictures of the worst mistakes. A picture that is not where it was is said to be
    missing, and one that has changed since it was judged is not shown.

    Args:
        folder (`str` or `Path`): of the evaluation.
        rows (`list[Row]`): all of its rows, those with an error too.
        metrics (`dict`): its `metrics.json`.
        data_root (`str` or `Path`): the folder that `image_name` counts from.
        find_image (`Callable`, *optional*): `find_image(row)` gives the row's picture as `Example.image` does, for a
            benchmark that keeps them in a table. None from it: not found.
    """
    guard, after = metrics["guard"], metrics["guard_after_policy"]
    find_image = find_image or (lambda row: _file_of(row, data_root))
    mistakes = [[], []]
    if guard is not None:
        mistakes = worst_mistakes(rows, guard["threshold"])
    shown = [[_card(row, num_rows, find_image) for row, num_rows in kind[:NUM_MISTAKES_SHOWN]] for kind in mistakes]
    failed = [row for row in rows if row.error is not None or row.answer_error is not None]
    page = render(
        "report.html.jinja",
        metrics=metrics,
        benchmark=metrics["benchmark"],
        facts=_facts(metrics),
        counts=_counts(metrics["counts"]),
        tiles=_tiles(metrics),
        guard=guard,
        after=after,
        guard_figures=[entry for entry in GUARD_FIGURES if guard and entry[0] in guard],
        category_figures=CATEGORY_FIGURES,
        answers=_answer_tables(metrics["answers"]),
        policy=_policy_facts(metrics["policy"]),
        plots=[_embedded(plot) for plot in make_plots(rows, metrics)],
        errors=failed[:NUM_ERRORS_SHOWN],
        num_errors=len(failed),
        too_high=shown[0],
        num_too_high=len(mistakes[0]),
        too_low=shown[1],
        num_too_low=len(mistakes[1]),
        figure_text=figure_text,
        title_of=title_of,
    )
    path = Path(folder) / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def worst_mistakes(rows, threshold):
    """
    Returns the pictures on the wrong side of a threshold, each once, as two lists of `(row, num_rows)`.

    The first holds safe pictures whose unsafe probability is `threshold` or more, the highest first; the second unsafe
    ones below it, the lowest first. `num_rows` counts the rows with the picture; `row` is the first of the worst.
    """
    pictures = {}
    for row in rows:
        if row.unsafe is not None and row.probs is not None and unsafe_score(row) is not None:
            key = (row.unsafe, row.image_sha256 or row.image_name or row.id)
            pictures.setdefault(key, []).append(row)
    too_high, too_low = [], []
    for (unsafe, _), same in pictures.items():
        if unsafe:
            row = min(same, key=unsafe_score)
            too_low += [(row, len(same))] if unsafe_score(row) < threshold else []
        else:
            row = max(same, key=unsafe_score)
            too_high += [(row, len(same))] if unsafe_score(row) >= threshold else []
    too_high.sort(key=lambda entry: -unsafe_score(entry[0]))
    too_low.sort(key=lambda entry: unsafe_score(entry[0]))
    return too_high, too_low


# -------------------------------------------------------------------------------------------------- pictures and plots


def _file_of(row, data_root):
    """The path of a row's picture; a name that leads out of the benchmark's folder is not followed."""
    if row.image_name is None:
        return None
    root = os.path.abspath(data_root)
    path = os.path.abspath(os.path.join(root, row.image_name))
    if os.path.commonpath([root, path]) != root:
        raise UnreadableImage(f"picture {row.image_name} is not shown: it lies outside of {root}")
    return Path(path)


def _picture(row, find_image):
    """`(data: URL, None)` of a row's picture, or `(None, why there is none)`."""
    try:
        image = find_image(row)
        if image is None:
            return None, f"picture of row {row.id} not found"
        if isinstance(image, Path):
            if not image.is_file():
                return None, f"picture not found at {image}"
            image = image.read_bytes()
        if isinstance(image, bytes) and row.image_sha256 not in (None, hashlib.sha256(image).hexdigest()):
            return None, f"picture {row.image_name or row.id} has changed since it was judged, and is not shown"
        views = [unsafe for view in row.views or () for unsafe in [_unsafe_of_view(view)]]
        return thumbnail(image, view=views.index(max(views)) if views else 0), None
    except (OSError, ValueError) as error:  # UnreadableImage is a ValueError; so is a name with a null character
        return None, f"picture cannot be shown: {error}"


def _unsafe_of_view(view):
    return 1 - view["probs"]["safe"]


def _card(row, num_rows, find_image):
    url, missing = _picture(row, find_image)
    ranked = sorted(row.probs.items(), key=lambda entry: -entry[1])[:NUM_CATEGORIES_SHOWN]
    label = "unsafe" if row.unsafe else "safe"
    harm = row.category if row.category not in (None, "safe") else row.their_category
    return {
        "name": f"Row {row.id}, labelled {label}",
        "url": url,
        "missing": missing,
        "label": f"{label} ({title_of(harm)})" if row.unsafe and harm else label,
        "score": f"{unsafe_score(row):.3f}",
        "top": ", ".join(f"{title_of(category)} {prob:.3f}" for category, prob in ranked),
        "others": num_rows - 1,
        "row": row,
    }


def _embedded(plot):
    pngs = {} if plot.reason else {theme: data_url(plot.png(theme), "image/png") for theme in THEMES}
    return {"plot": plot, "large": plot.name == "confusion-matrix", **pngs}


# ------------------------------------------------------------------------------------------------------ texts and tables


def _facts(metrics):
    benchmark, model = metrics["benchmark"], metrics["model"]
    published = benchmark["num_rows_published"] or {}
    pairs = [
        ("Benchmark", f"{benchmark['title']}, version {benchmark['version']}"),
        ("Split", benchmark["split"]),
        ("Rows found", f"{metrics['counts']['rows']:,}"),
        ("Rows published", ", ".join(f"{count:,} ({where})" for where, count in published.items())),
        ("Label", benchmark["label_rule"]),
        ("Source", benchmark["source"]),
        ("Licence", benchmark["licence"]),
        ("Model", model["name"]),
        ("Fingerprint", model["fingerprint"]),
        ("Command", metrics["command"]),
        ("Date", metrics["date"]),
        ("Versions", ", ".join(f"{name} {version}" for name, version in metrics["versions"].items() if version)),
    ]
    return [(term, value) for term, value in pairs if value]


def _counts(counts):
    pairs = [
        ("Rows", counts["rows"]),
        ("Different pictures", counts["pictures"]),
        ("Rows with a verdict", counts["judged"]),
        ("Rows without a verdict", counts["errors"]),
        ("Rows whose answer does not count", counts["answer_errors"]),
        *((f"Rows of type {name}", count) for name, count in (counts["by_type"] or {}).items()),
        *(
            (f"Rows of the benchmark's category {name}, which the model does not have", count)
            for name, count in (counts["without_counterpart"] or {}).items()
        ),
    ]
    return [(term, f"{count:,}") for term, count in pairs]


def _tiles(metrics):
    """`(name, what it says, figure, figure after the policy or None)` of the figures to see first."""
    guard, after, answers = metrics["guard"], metrics["guard_after_policy"], metrics["answers"]
    tiles = []
    if guard is not None:
        tiles += [
            (title, about, guard[name], after[name] if after else None)
            for name, title, about in GUARD_FIGURES
            if name in GUARD_TILES
        ]
    if answers is not None:
        tiles += [
            (title, about, answers["matcher"][name], None)
            for name, title, about in ANSWER_FIGURES
            if name != "mean_asr_of_rows"
        ]
    return tiles


def _answer_tables(answers):
    """`(judge, rows of the table)` of each judge of answers; a row is `(what, about, figure)`."""
    tables = []
    for key, judge in ANSWER_JUDGES:
        figures = (answers or {}).get(key)
        if figures:
            rows = [(f"Attack success, {kind}", "", each) for kind, each in figures["attack_success_rate"].items()]
            rows += [(f"Refusals, {kind}", "", each) for kind, each in figures["refusal_rate"].items()]
            rows += [(title, about, figures[name]) for name, title, about in ANSWER_FIGURES]
            tables.append((judge, rows))
    return tables


def _policy_facts(policy):
    """What the policy says, `[(term, value)]`; empty without one."""
    if policy is None:
        return []
    thresholds = policy["category_thresholds"].items()
    pairs = [
        ("Mode", policy["mode"]),
        ("Temperature", f"{policy['temperature']:.4g}"),
        ("Threshold of unsafe", f"{policy['unsafe_threshold']:.4g} of the calibrated score"),
        ("Thresholds of categories", ", ".join(f"{title_of(name)} {value:.4g}" for name, value in thresholds)),
        ("Actions", ", ".join(f"{title_of(name)}: {action}" for name, action in policy["actions"].items())),
    ]
    return [(term, value) for term, value in pairs if value]
