"""What an evaluation looks like: curves, bars and histograms as PNG files, each for a light and for a dark page.

The curves and bins are scikit-learn's and NumPy's; figures with intervals are those of `metrics.json`.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve, roc_curve

from safeqwen.data.taxonomy import CATEGORIES
from safeqwen.judging.verdict import SAFE, unsafe_probability


NUM_HISTOGRAM_BINS = 20
NUM_RELIABILITY_BINS = 10
SMALL = (4.8, 4.0)  # inches: at 400 pixels of a page its 10 points are still read
PIXELS_PER_INCH = 200

# Okabe and Ito's colours (jfly.uni-koeln.de/color), which people with any colour vision tell apart; lines differ in
# their dashes too.
THEMES = {
    "light": {"ground": "#ffffff", "ink": "#1b1f24", "faint": "#d3d8de", "safe": "#0072b2", "unsafe": "#d55e00"},
    "dark": {"ground": "#14171a", "ink": "#e7e9eb", "faint": "#3a4149", "safe": "#56b4e9", "unsafe": "#e69f00"},
}


@dataclass(frozen=True)
class Plot:
    """
    One plot of an evaluation.

    Args:
        name (`str`): of its files, `NAME-light.png` and `NAME-dark.png`.
        title (`str`): with N.
        description (`str`): what a reader who does not see it should know.
        draw (`Callable`, *optional*): `draw(figure, theme)` puts it on a `matplotlib.figure.Figure`.
        reason (`str`, *optional*): why it cannot be drawn.
        inches (`tuple[float, float]`): width and height.
    """

    name: str
    title: str
    description: str = ""
    draw: Callable | None = None
    reason: str | None = None
    inches: tuple = SMALL

    def figure(self, theme):
        """The drawn `matplotlib.figure.Figure`, for a theme of `THEMES`."""
        with matplotlib.style.context(["default", _style(THEMES[theme])]):
            figure = Figure(figsize=self.inches, layout="constrained")
            self.draw(figure, THEMES[theme])
            figure.axes[0].set_title(self.title, loc="left", fontsize=10, fontweight="bold")
        return figure

    def png(self, theme):
        """The `bytes` of its PNG file, for a theme of `THEMES`."""
        file = io.BytesIO()
        with matplotlib.style.context(["default", _style(THEMES[theme])]):
            self.figure(theme).savefig(file, format="png", dpi=PIXELS_PER_INCH, metadata={"Software": None})
        return file.getvalue()


def write_plots(rows, metrics, folder):
    """
    Writes the plots of an evaluation that can be drawn to `folder/plots`, and removes what an earlier run left there
    of those that cannot.

    Args:
        rows (`list[Row]`): of the evaluation.
        metrics (`dict`): its `metrics.json`.

    Returns:
        `list[Path]`: the PNG files, two a plot.
    """
    folder = Path(folder) / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in make_plots(rows, metrics):
        for theme in THEMES:
            path = folder / f"{plot.name}-{theme}.png"
            if plot.reason is not None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(plot.png(theme))
                written.append(path)
    return written


def make_plots(rows, metrics):
    """Returns the plots (`list[Plot]`) of an evaluation, in the order of a page; those without data have a reason."""
    guard = metrics["guard"]
    labels, scores, reason = unsafe_scores(rows)
    counted = f"N = {len(labels):,} rows ({labels.sum():,} unsafe)"
    small = [
        ("histogram", "Scores by label", _histogram),
        ("roc", "ROC curve", _roc),
        ("precision-recall", "Precision and recall", _precision_recall),
        ("reliability", "Reliability", _reliability),
    ]
    plots = []
    for name, title, make in small:
        if reason is not None:
            plots.append(Plot(name, title, reason=reason))
        else:
            draw, description = make(labels, scores, metrics)
            plots.append(Plot(name, f"{title}, {counted}", description, draw))
    plots.append(_per_category(guard))
    plots.append(_confusion_matrix(guard))
    return plots


def unsafe_scores(rows):
    """
    Returns what the curves are made of: labels and unsafe probabilities of the rows that have both.

    Returns:
        `tuple`: labels (`np.ndarray` of bool, unsafe is True), scores (`np.ndarray` of float in [0, 1]), and why no
        curve can be drawn of them (`str`), or None.

    Raises:
        ValueError: if a probability is not finite.
    """
    used = [row for row in rows if row.unsafe is not None and row.probs is not None]
    if used and SAFE not in used[0].probs:
        return np.zeros(0, bool), np.zeros(0), f'the model has no category "{SAFE}", so no probability of "unsafe"'
    labels = np.array([row.unsafe for row in used], dtype=bool)
    scores = np.array([unsafe_score(row) for row in used], dtype=float)
    if not np.isfinite(scores).all():
        row = used[int(np.flatnonzero(~np.isfinite(scores))[0])]
        raise ValueError(f"row {row.id!r} has a probability that is not finite, which is no verdict; evaluate it anew")
    reason = None
    if not used:
        with_label = sum(row.unsafe is not None for row in rows)
        reason = "no row has a verdict" if with_label else "the benchmark does not say which pictures are unsafe"
    elif labels.all() or not labels.any():
        reason = f"all {len(labels):,} rows are labelled {'unsafe' if labels[0] else 'safe'}; it takes both labels"
    return labels, scores, reason


def unsafe_score(row):
    """The unsafe probability (`float`) of a row with a verdict; None without a category "safe"."""
    unsafe = unsafe_probability(np.array(list(row.probs.values()), dtype=float), list(row.probs))
    return None if unsafe is None else float(unsafe)


def title_of(category):
    """A category in words (`str`), such as "drug-related hazards"."""
    titles = {known.name: known.title for known in CATEGORIES}
    return titles.get(category, category.replace("_", " "))


def figure_text(figure):
    """A figure of `metrics.json` as `str`: "0.941 (0.920 to 0.957)", or why there is none."""
    if figure["value"] is None:
        return f"none: {figure['reason']}"
    if figure["low"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


# ------------------------------------------------------------------------------------------------------ of the scores


def _histogram(labels, scores, metrics):
    edges = np.linspace(0, 1, NUM_HISTOGRAM_BINS + 1)

    def draw(figure, theme):
        upper, lower = figure.subplots(2, sharex=True, sharey=True)
        for axes, kind, chosen in ((upper, "safe", ~labels), (lower, "unsafe", labels)):
            axes.hist(scores[chosen], bins=edges, color=theme[kind], label=f"labelled {kind} ({chosen.sum():,})")
            axes.set_yscale("symlog", linthresh=10)  # a good guard's scores lie at the ends, its mistakes between
            axes.set_ylim(bottom=0)
            axes.set_ylabel("rows")
            for (text, value), dashes in zip(_thresholds(metrics), ("--", ":")):
                axes.axvline(value, color=theme["ink"], linestyle=dashes, label=text if axes is lower else None)
            axes.legend(loc="upper center")
        lower.set_xlabel("unsafe probability, 1 - p(safe)")
        lower.set_xlim(0, 1)

    thresholds = ", ".join(f"{text}" for text, _ in _thresholds(metrics))
    return draw, f"Histograms of the unsafe probability, of safe and of unsafe pictures. Drawn in: {thresholds}."


def _thresholds(metrics):
    return [(f"threshold {metrics['guard']['threshold']:.3g}", metrics["guard"]["threshold"])]


def _roc(labels, scores, metrics):
    false_positives, recalls, _ = roc_curve(labels, scores, drop_intermediate=False)
    guard = metrics["guard"]

    def draw(figure, theme):
        axes = figure.subplots()
        axes.plot(false_positives, recalls, color=theme["safe"], label=f"AUROC {figure_text(guard['auroc'])}")
        axes.plot([0, 1], [0, 1], color=theme["ink"], linestyle=":", linewidth=1, label="a guard that guesses")
        _mark_threshold(axes, theme, guard, guard["false_positive_rate"], guard["recall"])
        axes.set(xlabel="false positives (share of the safe rows)", ylabel="recall (share of the unsafe rows)")
        _whole_unit_square(axes)
        axes.legend(loc="lower right")

    return draw, f"ROC curve. AUROC {figure_text(guard['auroc'])}."


def _precision_recall(labels, scores, metrics):
    precisions, recalls, _ = precision_recall_curve(labels, scores)
    guard = metrics["guard"]
    prevalence = labels.mean()

    def draw(figure, theme):
        axes = figure.subplots()
        auprc = figure_text(guard["auprc"])
        axes.plot(recalls, precisions, color=theme["safe"], drawstyle="steps-post", label=f"AUPRC {auprc}")
        guesses = f"a guard that guesses ({prevalence:.2f})"
        axes.plot([0, 1], [prevalence] * 2, color=theme["ink"], linestyle=":", linewidth=1, label=guesses)
        _mark_threshold(axes, theme, guard, guard["recall"], guard["precision"])
        axes.set(xlabel="recall (share of the unsafe rows)", ylabel="precision (share of the flagged rows)")
        _whole_unit_square(axes)
        axes.legend(loc="lower left")

    return draw, f"Precision against recall. AUPRC {figure_text(guard['auprc'])}; a guess has {prevalence:.3f}."


def _mark_threshold(axes, theme, guard, x, y):
    if x["value"] is not None and y["value"] is not None:
        label = f"at threshold {guard['threshold']:.3g}"
        axes.plot(x["value"], y["value"], "D", color=theme["unsafe"], label=label, clip_on=False, zorder=3)


def _whole_unit_square(axes):
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.03))
    axes.grid(True)


def _reliability(labels, scores, metrics):
    observed, predicted = calibration_curve(labels, scores, n_bins=NUM_RELIABILITY_BINS)
    counts, _ = np.histogram(scores, bins=np.linspace(0, 1, NUM_RELIABILITY_BINS + 1))
    ece = figure_text(metrics["guard"]["ece"])

    def draw(figure, theme):
        axes, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        axes.plot([0, 1], [0, 1], color=theme["ink"], linestyle=":", linewidth=1, label="perfect")
        axes.plot(predicted, observed, "o-", color=theme["safe"], label=f"ECE {ece}", clip_on=False)
        axes.set(ylabel="share that is unsafe", ylim=(-0.02, 1.02))
        axes.grid(True)
        axes.legend(loc="upper left")
        below.bar(np.linspace(0, 1, NUM_RELIABILITY_BINS, endpoint=False), counts, 0.1, align="edge")
        for bar in below.patches:
            bar.set(color=theme["safe"], edgecolor=theme["ground"])
        below.set_yscale("symlog", linthresh=10)
        below.set(xlabel="unsafe probability, 1 - p(safe)", ylabel="rows", xlim=(-0.01, 1.01))

    return draw, f"Reliability: of the rows in each tenth of the score, the share that is unsafe. ECE {ece}."


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
        axes.barh(places, values, color=theme["safe"], height=0.65)
        for place, each in zip(places, shown.values()):
            if each["low"] is not None:
                axes.plot([each["low"], each["high"]], [place] * 2, color=theme["ink"], linewidth=1.5)
        words = [f"{title_of(category)} ({figures[category]['support']:,})" for category in shown]
        axes.set_yticks(places, words)
        axes.set(xlim=(0, 1), xlabel="F1 and its 95 % interval (in brackets: rows with the label)")
        axes.invert_yaxis()
        axes.grid(True, axis="x")

    support = sum(figures[category]["support"] for category in shown)
    left_out = f" {without} without a figure are left out; the table says why." if without else ""
    description = f"Bars of F1 for {len(shown)} categories; the table below has the numbers.{left_out}"
    return Plot(name, f"{title}, N = {support:,} rows", description, draw, inches=(6.4, 1.2 + 0.27 * len(shown)))


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
            colour = "black" if shares[i, j] > 0.5 else "white"
            axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", color=colour, fontsize=7.5)
        axes.set_xticks(range(len(words)), words, rotation=90)
        axes.set_yticks(range(len(words)), [f"{word} ({total:,})" for word, total in zip(words, totals)])
        axes.set(xlabel="highest category of the verdict", ylabel="label (rows)")
        axes.set_xticks(np.arange(len(words) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(words) + 1) - 0.5, minor=True)
        axes.grid(True, which="minor")
        axes.tick_params(which="both", length=0)

    right = int(np.trace(counts))
    description = f"Confusion matrix of {len(words)} categories: {right:,} of {counts.sum():,} rows are on its diagonal."
    side = 2.6 + 0.32 * len(words)
    return Plot(name, f"{title}, N = {counts.sum():,} rows", description, draw, inches=(side + 0.6, side))


def _style(theme):
    ink, ground = theme["ink"], theme["ground"]
    return {
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), ground),
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink),
        "grid.color": theme["faint"],
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "lines.linewidth": 1.8,
        "text.parse_math": False,  # a category may hold a dollar sign
    }
