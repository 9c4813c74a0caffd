"""`report.html`: what an evaluation found, on one page that can be mailed, printed and opened without a network."""

import hashlib
import os
from pathlib import Path

import numpy as np

from safeqwen.data.taxonomy import title_of
from safeqwen.evaluation.bootstrap import picture_of
from safeqwen.evaluation.guard_metrics import take_verdicts
from safeqwen.evaluation.page import render, thumbnail
from safeqwen.evaluation.plots import figure_text, policy_of
from safeqwen.judging.verdict import SAFE
from safeqwen.provenance import without_folders
from safeqwen.showing.html import data_url


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
GROUPS = {
    "SSS": "safe picture, safe question, safe together",
    "SSU": "safe picture, safe question, unsafe together",
    "SUU": "safe picture, unsafe question, unsafe together",
    "USU": "unsafe picture, safe question, unsafe together",
    "UUU": "unsafe picture, unsafe question, unsafe together",
    "refuse": "a refusal is expected",
    "answer": "an answer is expected",
}
CATEGORY_FIGURES = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1", "precision": "Precision", "recall": "Recall"}


def write_report(folder, rows, metrics, plots, data_root, examples=()):
    """
    Writes `folder/report.html` and returns its path.

    The page holds its plots and the pictures of the worst mistakes. A picture that is not where it was is said to be
    missing, and one that has changed since it was judged is not shown.

    Args:
        folder (`str` or `Path`): of the evaluation.
        rows (`list[Row]`): all of its rows, those with an error too.
        metrics (`dict`): its `metrics.json`.
        plots (`list[Plot]`): as `make_plots` returns them.
        data_root (`str` or `Path`, *optional*): the folder that each `image_name` is relative to.
        examples (iterable of [`Example`], *optional*): of the benchmark, for one that keeps its pictures in a table.
    """
    guard, after = metrics["guard"], metrics["guard_after_policy"]
    too_high, too_low = ([], []) if guard is None else worst_mistakes(rows, metrics)
    shown = [mistake["row"] for mistake in too_high[:NUM_MISTAKES_SHOWN] + too_low[:NUM_MISTAKES_SHOWN]]
    images = _images(examples, {row.id for row in shown})
    pictures = {row.id: _picture(row, images.get(row.id), data_root) for row in shown}
    failed = [row for row in rows if row.error is not None or row.answer_error is not None]
    page = render(
        "report.html.jinja",
        benchmark=metrics["benchmark"],
        cautions=_cautions(metrics),
        facts=_facts(metrics),
        counts=_counts(metrics["counts"]),
        tiles=_tiles(metrics),
        guard=guard,
        after=after,
        guard_figures=GUARD_FIGURES,
        category_figures=CATEGORY_FIGURES,
        answers=_answer_tables(metrics["answers"]),
        policy=_policy_facts(metrics["policy"], metrics["policy_was_fitted_to_these_rows"]),
        plots=[_embedded(plot) for plot in plots],
        errors=failed[:NUM_ERRORS_SHOWN],
        num_errors=len(failed),
        mistakes=[
            ("Safe pictures that scored highest", "No picture labelled safe was flagged.", too_high),
            ("Unsafe pictures that scored lowest", "Every picture labelled unsafe was flagged.", too_low),
        ],
        num_mistakes_shown=NUM_MISTAKES_SHOWN,
        pictures=pictures,
        figure_text=figure_text,
        remarks=_remarks,
        title_of=title_of,
    )
    path = Path(folder) / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def worst_mistakes(rows, metrics):
    """
    Returns the pictures that were decided wrongly, by the policy or else by the threshold, each once.

    Returns:
        `tuple[list[dict], list[dict]]`: safe pictures, the highest score first, and unsafe ones, the lowest first.
        Each holds its `row`, the `score` (the policy's, if there is one), `label` and `verdict` in words, and
        `others`: how many more rows have this picture.
    """
    categories, threshold = metrics["model"]["categories"], metrics["guard"]["threshold"]
    verdicts = take_verdicts(rows, categories, policy=policy_of(metrics), threshold=threshold)
    found = {False: {}, True: {}}
    for i in np.flatnonzero(verdicts.flagged != verdicts.unsafe):
        row = verdicts.rows[i]
        kind = found[bool(verdicts.unsafe[i])]  # not row.unsafe: what the policy allows is to be let pass
        same = kind.setdefault(picture_of(row), {"row": row, "score": verdicts.scores[i], "others": -1})
        same["others"] += 1
    for mistake in (*found[False].values(), *found[True].values()):
        row = mistake["row"]
        ranked = sorted(row.probs.items(), key=lambda entry: -entry[1])[:NUM_CATEGORIES_SHOWN]
        harm = row.category or row.their_category
        mistake["label"] = "safe" if not row.unsafe else f"unsafe ({title_of(harm)})" if harm else "unsafe"
        mistake["verdict"] = ", ".join(f"{title_of(category)} {prob:.3f}" for category, prob in ranked)
    too_high = sorted(found[False].values(), key=lambda mistake: -mistake["score"])
    return too_high, sorted(found[True].values(), key=lambda mistake: mistake["score"])


# -------------------------------------------------------------------------------------------------- pictures and plots


def _images(examples, ids):
    """`{id: image}` of the examples with these ids; the benchmark is gone through once, no further than needed."""
    images = {}
    for example in examples if ids else ():
        if example.id in ids:
            images[example.id] = example.image
            if len(images) == len(ids):
                break
    return images


def _picture(row, image, data_root):
    """`(data: URL, None)` of a row's picture, or `(None, why it is not shown)`."""
    try:
        if image is None:
            if data_root is None or row.image_name is None:
                return None, f"picture of row {row.id} not found"
            # A benchmark's rows must not bring other files of this machine into a page that is mailed.
            root = os.path.abspath(data_root)
            path = os.path.abspath(os.path.join(root, row.image_name))
            if os.path.commonpath([root, path]) != root:
                return None, f"picture of row {row.id} not shown: it lies outside of the benchmark's folder"
            image = Path(path)
        if isinstance(image, Path):
            if not image.is_file():
                return None, f"picture not found: {row.image_name or image.name}"
            image = image.read_bytes()
        if isinstance(image, bytes) and row.image_sha256 not in (None, hashlib.sha256(image).hexdigest()):
            return None, f"picture not shown: {row.image_name or row.id} has changed since it was judged"
        views = [view["probs"][SAFE] for view in row.views or ()]
        return thumbnail(image, view=int(np.argmin(views)) if views else 0), None
    except (OSError, ValueError) as error:  # UnreadableImage is a ValueError
        return None, f"picture not shown: {without_folders(str(error))}"


def _embedded(plot):
    pngs = {} if plot.reason else {theme: data_url(png, "image/png") for theme, png in plot.pngs.items()}
    return {"plot": plot, "large": plot.name == "confusion-matrix", **pngs}


# ------------------------------------------------------------------------------------------------ texts and tables


def _facts(metrics):
    benchmark, model = metrics["benchmark"], metrics["model"]
    published = benchmark["num_rows_published"] or {}
    pairs = [
        ("Benchmark", f"{benchmark['title']}, {benchmark['version']}"),
        ("Split", benchmark["split"]),
        ("Rows evaluated", f"{metrics['counts']['rows']:,}"),
        ("Rows published", ", ".join(f"{count:,} {where}" for where, count in published.items())),
        ("Label", benchmark["label_rule"]),
        ("Source", benchmark["source"]),
        ("Licence", benchmark["licence"]),
        ("Model", model["model"]),
        ("Fingerprint", model["model_fingerprint"]),
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
        ("Rows that no figure of the guard counts", sum(map(len, counts["excluded"].values()))),
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


def _remarks(figures):
    """What the figures of a category say of themselves: `"AUROC, F1: only one class"`."""
    remarks = {}
    for name, title in CATEGORY_FIGURES.items():
        if figures[name].get("reason"):
            remarks.setdefault(figures[name]["reason"], []).append(title)
    return "; ".join(f"{', '.join(titles)}: {reason}" for reason, titles in remarks.items())


def _answer_tables(answers):
    """`(judge, rows by group, figures of all, number of answers without its verdict)` of each judge of answers."""
    tables = []
    for key, judge in ANSWER_JUDGES:
        if answers is not None and answers[key] is not None:
            found = answers[key]
            groups = [
                (name, GROUPS[name], count, found["refusal_rate"].get(name), found["attack_success_rate"].get(name))
                for name, count in found["num_rows"].items()
            ]
            figures = [(title, about, found[name]) for name, title, about in ANSWER_FIGURES]
            tables.append((judge, groups, figures, len(found.get("not_judged", ()))))
    return tables


def _cautions(metrics):
    """What must be known before any figure is read (`list[str]`)."""
    cautions, benchmark, num_rows = [], metrics["benchmark"], metrics["counts"]["rows"]
    published = benchmark["num_rows_published"] or {}
    if metrics["model"]["model"] == "demo":
        cautions.append(
            "The model is the demo checkpoint, which knows drawings: these figures say nothing of photographs."
        )
    if published and num_rows not in published.values():
        numbers = ", ".join(f"{number:,} {where}" for where, number in published.items())
        cautions.append(
            f"These {num_rows:,} rows are not the published ones of {benchmark['title']} ({numbers}): they are a part "
            "of them, or other data in the same layout."
        )
    if (metrics["guard_after_policy"] or {}).get("allowed"):
        names = ", ".join(map(title_of, metrics["guard_after_policy"]["allowed"]))
        cautions.append(f"After the policy, pictures of what it allows count as safe: {names}.")
    return cautions


def _policy_facts(policy, was_fitted_to_these_rows):
    """What the policy says, `[(term, value)]`; empty without one."""
    if policy is None:
        return []
    thresholds = policy["category_thresholds"].items()
    pairs = [
        ("Careful", "It was fitted to these very rows: on new ones it does worse." * was_fitted_to_these_rows),
        ("Mode", policy["mode"]),
        ("Temperature", f"{policy['temperature']:.4g}"),
        ("Threshold of unsafe", f"{policy['unsafe_threshold']:.4g} of the calibrated score"),
        ("Thresholds of categories", ", ".join(f"{title_of(name)} {value:.4g}" for name, value in thresholds)),
        ("Actions", ", ".join(f"{title_of(name)}: {action}" for name, action in policy["actions"].items())),
    ]
    return [(term, value) for term, value in pairs if value]
