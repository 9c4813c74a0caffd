"""What an evaluation looks like: curves, bars and histograms as PNG files, each for a light and for a dark page.

Curves and bins are scikit-learn's and NumPy's, of the rows that the metrics count; the figures are `metrics.json`'s.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve, roc_curve

from safeqwen.data.taxonomy import title_of
from safeqwen.evaluation.guard_metrics import ECE_BINS, take_verdicts
from safeqwen.judging.policy import SafetyPolicy
from safeqwen.showing.plot import SMALL, THEMES, Plot, count_axis


NUM_HISTOGRAM_BINS = 20


def write_plots(plots, folder):
    """
    Writes the plots of an evaluation that can be drawn to `folder/plots`, and removes what an earlier run left there
    of those that cannot.

    Args:
        plots (`list[Plot]`): as `make_plots` returns them.
        folder (`str` or `Path`): of the evaluation.

    Returns:
        `list[Path]`: the PNG files, two a plot.
    """
    folder = Path(folder) / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in plots:
        for theme in THEMES:
            path = folder / f"{plot.name}-{theme}.png"
            if plot.reason is not None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(plot.pngs[theme])
                written.append(path)
    return written


def make_plots(rows, metrics):
    """Returns the plots (`list[Plot]`) of an evaluation, in the order of a page; those without data have a reason."""
    policy = policy_of(metrics)
    if policy is not None and policy.allowed:  # its figures are of other labels, and lie on no curve of these
        metrics = {**metrics, "policy": None, "guard_after_policy": None}
    guard = metrics["guard"]
    curves = [
        ("histogram", "Scores by label", _histogram),
        ("roc", "ROC curve", _roc),
        ("precision-recall", "Precision and recall", _precision_recall),
        ("reliability", "Reliability", _reliability),
    ]
    if guard is None:
        of_pictures = metrics["benchmark"]["has_picture_labels"]
        reason = "no row has a verdict and a label" if of_pictures else "the benchmark does not label pictures alone"
        plots = [Plot(name, title, reason=reason) for name, title, _ in curves]
    else:
        found = scores_of(rows, metrics)
        num_unsafe, num_rows = int(found.unsafe.sum()), len(found.unsafe)
        plots = []
        for name, title, make in curves:
            if num_unsafe in (0, num_rows) and name != "histogram":
                only = "unsafe" if num_unsafe else "safe"
                reason = f"all {num_rows:,} rows are labelled {only}: it takes both labels"
                plots.append(Plot(name, title, reason=reason))
            else:
                draw, description = make(found, guard, metrics["guard_after_policy"])
                title = f"{title}, N = {num_rows:,} rows ({num_unsafe:,} unsafe)"
                plots.append(Plot(name, title, description, draw))
    return [*plots, _per_category(guard), _confusion_matrix(guard)]


@dataclass(frozen=True)
class Scores:
    """
    What the curves are made of.

    Args:
        unsafe (`np.ndarray` of shape `(num_rows,)`, bool): the labels.
        raw (`np.ndarray` of shape `(num_rows,)`): unsafe probabilities in [0, 1].
        calibrated (`np.ndarray` of shape `(num_rows,)`, *optional*): the policy's.
        policy ([`SafetyPolicy`], *optional*)
    """

    unsafe: np.ndarray
    raw: np.ndarray
    calibrated: np.ndarray | None
    policy: SafetyPolicy | None


def scores_of(rows, metrics):
    """Returns the [`Scores`] of the rows that the guard's metrics count; raises as [`take_verdicts`]."""
    policy = policy_of(metrics)
    verdicts = take_verdicts(rows, metrics["model"]["categories"])
    calibrated = None
    if policy is not None:
        calibrated = policy.unsafe_score(verdicts.probs)
    return Scores(verdicts.unsafe, verdicts.scores, calibrated, policy)


def policy_of(metrics):
    """Returns the [`SafetyPolicy`] that `metrics.json` was computed with, or `None`."""
    return None if metrics["policy"] is None else SafetyPolicy(**metrics["policy"])


def figure_text(figure):
    """A figure of `metrics.json` as `str`: "0.941 (0.920 to 0.957)", or why there is none."""
    if figure["value"] is None:
        return f"none: {figure['reason']}"
    if figure["low"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


# ------------------------------------------------------------------------------------------------------ of the scores


def _histogram(found, guard, _):
    edges = np.linspace(0, 1, NUM_HISTOGRAM_BINS + 1)
    thresholds = [(f"threshold {guard['threshold']:.3g}", guard["threshold"])]
    if found.policy is not None:
        try:
            raw = found.policy.safety_threshold
            thresholds.append((f"the policy's, {raw:.3g}", raw))
        except ValueError:  # its rules cannot be said as one threshold of this score
            pass

    def draw(figure, theme):
        upper, lower = figure.subplots(2, sharex=True, sharey=True)
        for axes, kind, chosen in ((upper, "safe", ~found.unsafe), (lower, "unsafe", found.unsafe)):
            colour = theme["second" if kind == "unsafe" else "first"]
            axes.hist(found.raw[chosen], bins=edges, color=colour)
            axes.set_title(f"labelled {kind}: {chosen.sum():,}", loc="left", fontsize=9)
            axes.set_ylabel("rows")
            for (text, value), dashes in zip(thresholds, ("--", ":")):
                axes.axvline(value, color=theme["ink"], linestyle=dashes, label=text if axes is lower else None)
        count_axis(upper, np.histogram(found.raw, edges)[0].max())
        lower.set(xlabel="unsafe probability, 1 - p(safe)", xlim=(0, 1))
        figure.legend(loc="outside lower center", ncols=2)

    drawn_in = " and ".join(text for text, _ in thresholds)
    return draw, f"Histograms of the unsafe probability of safe and of unsafe pictures. Drawn in: {drawn_in}."


def _roc(found, guard, after):
    false_positives, recalls, _ = roc_curve(found.unsafe, found.raw, drop_intermediate=False)
    auroc = figure_text(guard["auroc"])

    def draw(figure, theme):
        axes = figure.subplots()
        axes.plot(false_positives, recalls, color=theme["first"], label=f"AUROC {auroc}")
        axes.plot([0, 1], [0, 1], color=theme["ink"], linestyle=":", linewidth=1, label="a guess")
        _mark_decisions(axes, theme, guard, after, "false_positive_rate", "recall")
        axes.set(xlabel="false positives (share of the safe rows)", ylabel="recall (share of the unsafe rows)")
        axes.legend(loc="lower right")

    return draw, f"ROC curve. AUROC {auroc}."


def _precision_recall(found, guard, after):
    precisions, recalls, _ = precision_recall_curve(found.unsafe, found.raw)
    auprc, prevalence = figure_text(guard["auprc"]), found.unsafe.mean()

    def draw(figure, theme):
        axes = figure.subplots()
        axes.plot(recalls, precisions, color=theme["first"], drawstyle="steps-post", label=f"AUPRC {auprc}")
        guess = f"a guess ({prevalence:.3f})"
        axes.plot([0, 1], [prevalence] * 2, color=theme["ink"], linestyle=":", linewidth=1, label=guess)
        _mark_decisions(axes, theme, guard, after, "recall", "precision")
        axes.set(xlabel="recall (share of the unsafe rows)", ylabel="precision (share of the flagged rows)")
        axes.legend(loc="lower left")

    return draw, f"Precision against recall. AUPRC {auprc}; a guess has {prevalence:.3f}."


def _mark_decisions(axes, theme, guard, after, x, y):
    """A mark where the decisions lie, those by the threshold and by the policy; the axes from 0 to 1."""
    decisions = [(guard, "D", theme["second"], f"at threshold {guard['threshold']:.3g}")]
    if after is not None:
        decisions.append((after, "s", theme["ink"], "by the policy"))
    for figures, mark, colour, label in decisions:
        if None not in (figures[x]["value"], figures[y]["value"]):
            place = figures[x]["value"], figures[y]["value"]
            axes.plot(*place, mark, color=colour, label=label, clip_on=False, zorder=3)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.03))
    axes.grid(True)


def _reliability(found, guard, after):
    curves = [(found.raw, "o-", "first", f"ECE {figure_text(guard['ece'])}")]
    if after is not None:
        curves.append((found.calibrated, "s--", "second", f"by the policy, {figure_text(after['ece'])}"))

    def draw(figure, theme):
        axes, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        axes.plot([0, 1], [0, 1], color=theme["ink"], linestyle=":", linewidth=1, label="perfect")
        for scores, line, colour, label in curves:
            observed, predicted = calibration_curve(found.unsafe, scores, n_bins=ECE_BINS)
            axes.plot(predicted, observed, line, color=theme[colour], markersize=5, label=label, clip_on=False)
        axes.set(ylabel="share that is unsafe", ylim=(-0.02, 1.02))
        axes.grid(True)
        edges = np.linspace(0, 1, ECE_BINS + 1)
        below.hist(found.raw, bins=edges, color=theme["first"], edgecolor=theme["ground"])
        count_axis(below, np.histogram(found.raw, edges)[0].max())
        below.set(xlabel="unsafe probability, 1 - p(safe)", ylabel="rows", xlim=(-0.01, 1.01))
        figure.legend(loc="outside lower center", ncols=2)

    texts = "; ".join(label for *_, label in curves)
    return draw, f"Reliability: the share of unsafe rows in each of {ECE_BINS} ranges of the score. {texts}."


# --------------------------------------------------------------------------------------------------- of the categories


def _per_category(guard):
    name, title = "per-category", "F1 of each category"
    figures = (guard or {}).get("per_category") or {}
    shown = {category: each["f1"] for category, each in figures.items() if each["f1"]["value"] is not None}
    if not shown:
        return Plot(name, title, reason="no row is labelled with a category of the model")
    without = len(figures) - len(shown)

    def draw(figure, theme):
        axes = figure.subplots()
        values = np.array([each["value"] for each in shown.values()])
        places = np.arange(len(shown))
        bars = axes.barh(places, values, color=theme["first"], edgecolor=theme["first"], height=0.65)
        for place, bar, each in zip(places, bars, shown.values()):
            if each["low"] == each["high"]:  # none, or all resamples agree: it must not look as sure as the others
                bar.set(facecolor=theme["ground"], hatch="///")
            else:
                axes.plot([each["low"], each["high"]], [place] * 2, color=theme["ink"], linewidth=1.5)
        words = [f"{title_of(category)} ({figures[category]['support']:,})" for category in shown]
        axes.set_yticks(places, words)
        axes.set(
            xlim=(0, 1), xlabel="F1 and its 95 % interval\n(hatched: no interval, or none that says how sure it is)"
        )
        axes.invert_yaxis()
        axes.grid(True, axis="x")

    support = sum(figures[category]["support"] for category in shown)
    left_out = f" {without} without a figure are left out; the table says why." if without else ""
    description = f"Bars of F1 for {len(shown)} categories; the table below has the numbers.{left_out}"
    return Plot(name, f"{title}, N = {support:,} rows", description, draw, inches=(SMALL[0], 1.8 + 0.2 * len(shown)))


def _confusion_matrix(guard):
    name, title = "confusion-matrix", "Labels against verdicts"
    matrix = (guard or {}).get("confusion_matrix")
    counts = np.array(matrix["counts"]) if matrix else np.zeros((0, 0), int)
    if not counts.sum():
        return Plot(name, title, reason="no row is labelled with a category of the model")
    words = [title_of(label) for label in matrix["labels"]]
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]

    def draw(figure, theme):
        axes = figure.subplots()
        axes.imshow(np.ma.masked_equal(shares, 0), cmap="cividis", vmin=0, vmax=1)
        for i, j in zip(*counts.nonzero()):
            colour = "black" if shares[i, j] > 0.45 else "white"
            axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", color=colour, fontsize=7.5)
        axes.set_xticks(range(len(words)), words, rotation=90)
        axes.set_yticks(range(len(words)), [f"{word} ({total:,})" for word, total in zip(words, totals)])
        axes.set(xlabel="highest category of the verdict", ylabel="label (rows)")
        axes.set_xticks(np.arange(len(words) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(words) + 1) - 0.5, minor=True)
        axes.grid(True, which="minor")
        axes.tick_params(which="both", length=0)

    right = int(np.trace(counts))
    description = (
        f"Confusion matrix of {len(words)} categories: {right:,} of {counts.sum():,} rows lie on the diagonal."
    )
    side = 4.2 + 0.32 * max(0, len(words) - 5)
    return Plot(name, f"{title}, N = {counts.sum():,} rows", description, draw, inches=(side + 0.6, side))
