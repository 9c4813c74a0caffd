"""The plots: what is drawn is what scikit-learn and NumPy say of the same rows, and an empty figure is never one."""

import dataclasses
import io

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics
from guard_rows import CATEGORIES, judged, random_rows
from PIL import Image
from reported import metrics_of

from safeqwen.evaluation.plots import THEMES, make_plots, write_plots
from safeqwen.evaluation.rows import Row
from safeqwen.judging.policy import SafetyPolicy


@pytest.fixture(scope="module")
def rows():
    return random_rows(80)


@pytest.fixture(scope="module")
def metrics(rows):
    return metrics_of(rows)


@pytest.fixture(scope="module")
def figures(rows, metrics):
    return {plot.name: plot.figure("light") for plot in make_plots(rows, metrics)}


@pytest.fixture(scope="module")
def labels_and_scores(rows):
    return np.array([row.unsafe for row in rows]), (1 - np.float32([row.probs["safe"] for row in rows])).astype(float)


def test_every_plot_is_a_picture_of_sensible_size_for_light_and_dark(rows, metrics, tmp_path):
    files = write_plots(make_plots(rows, metrics), tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        f"plots/{name}-{theme}.png"
        for name in ("histogram", "roc", "precision-recall", "reliability", "per-category", "confusion-matrix")
        for theme in ("light", "dark")
    ]
    for file in files:
        with Image.open(file) as picture:
            assert picture.format == "PNG" and 450 <= picture.height and 900 <= picture.width <= 2400, file
            colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        ground = np.array([int(THEMES[file.stem.rpartition("-")[2]]["ground"][i : i + 2], 16) for i in (1, 3, 5)])
        drawn = (np.abs(colours - ground).max(axis=1) > 40).mean()
        assert 0.01 < drawn < 0.9, file


def test_a_title_says_how_many_rows_it_is_about(rows, metrics):
    num_unsafe = sum(row.unsafe for row in rows)
    for plot in make_plots(rows, metrics):
        assert "N = 80 rows" in plot.title
    assert f"({num_unsafe} unsafe)" in make_plots(rows, metrics)[0].title


def test_histograms_count_the_rows_of_each_label(figures, labels_and_scores):
    labels, scores = labels_and_scores
    for axes, label in zip(figures["histogram"].axes, (False, True)):
        expected, _ = np.histogram(scores[labels == label], bins=np.arange(21) / 20)
        assert [bar.get_height() for bar in axes.patches] == expected.tolist()
        assert 0.5 in [line.get_xdata()[0] for line in axes.lines]  # the threshold


def test_curves_are_those_of_scikit_learn(figures, labels_and_scores):
    labels, scores = labels_and_scores
    false_positives, recalls, _ = sklearn.metrics.roc_curve(labels, scores, drop_intermediate=False)
    x, y = figures["roc"].axes[0].lines[0].get_data()
    assert np.array_equal(x, false_positives) and np.array_equal(y, recalls)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert sklearn.metrics.auc(x, y) == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores))

    x, y = figures["precision-recall"].axes[0].lines[0].get_data()
    assert (x[0], y[0], x[-1], y[-1]) == (1, labels.mean(), 0, 1)
    assert -np.sum(np.diff(x) * y[:-1]) == pytest.approx(sklearn.metrics.average_precision_score(labels, scores))


def test_the_threshold_is_marked_where_its_decisions_lie(figures, labels_and_scores):
    labels, flagged = labels_and_scores[0], labels_and_scores[1] >= 0.5
    mark = figures["roc"].axes[0].lines[2]
    assert mark.get_label() == "at threshold 0.5"
    assert mark.get_xydata()[0] == pytest.approx([flagged[~labels].mean(), flagged[labels].mean()])
    mark = figures["precision-recall"].axes[0].lines[2]
    assert mark.get_xydata()[0] == pytest.approx([flagged[labels].mean(), labels[flagged].mean()])


def test_reliability_has_the_bins_of_the_calibration_error(figures, labels_and_scores):
    observed, predicted = sklearn.calibration.calibration_curve(*labels_and_scores, n_bins=15)
    axes, below = figures["reliability"].axes
    assert np.array_equal(axes.lines[1].get_xydata(), np.stack([predicted, observed], axis=1))
    assert sum(bar.get_height() for bar in below.patches) == 80


def test_bars_and_cells_are_those_of_the_metrics(figures, metrics):
    axes = figures["per-category"].axes[0]
    each = metrics["guard"]["per_category"]
    assert [bar.get_width() for bar in axes.patches] == [each[name]["f1"]["value"] for name in CATEGORIES]
    assert [[*line.get_xdata()] for line in axes.lines] == [
        [each[name]["f1"]["low"], each[name]["f1"]["high"]] for name in CATEGORIES
    ]
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        f"{name} ({each[name]['support']})" for name in CATEGORIES
    ]
    counts = metrics["guard"]["confusion_matrix"]["counts"]
    cells = {text.get_position(): int(text.get_text()) for text in figures["confusion-matrix"].axes[0].texts}
    assert cells == {(j, i): counts[i][j] for i in range(3) for j in range(3) if counts[i][j]}


def test_a_policy_adds_its_threshold_its_decisions_and_its_calibrated_curve(rows, labels_and_scores):
    policy = SafetyPolicy(categories=CATEGORIES, temperature=2.0, unsafe_threshold=0.4)
    figures = {plot.name: plot.figure("dark") for plot in make_plots(rows, metrics_of(rows, policy))}
    labels, scores = labels_and_scores
    # 0.4 is the calibrated score at the log-odds 2 ln(0.4 / 0.6): odds of 4/9, so 4/13.
    drawn = [line.get_xdata()[0] for line in figures["histogram"].axes[0].lines]
    assert drawn == pytest.approx([0.5, 4 / 13])
    mark = figures["roc"].axes[0].lines[3]
    flagged = scores >= 4 / 13
    assert mark.get_label() == "by the policy"
    assert mark.get_xydata()[0] == pytest.approx([flagged[~labels].mean(), flagged[labels].mean()])
    calibrated = 1 / (1 + np.sqrt((1 - scores) / scores))
    observed, predicted = sklearn.calibration.calibration_curve(labels, calibrated, n_bins=15)
    assert figures["reliability"].axes[0].lines[2].get_xydata() == pytest.approx(
        np.stack([predicted, observed], axis=1), abs=1e-6
    )


def test_a_policy_that_no_one_threshold_says_draws_none(rows):
    policy = SafetyPolicy(categories=CATEGORIES, actions={"unsafe": "flag", "drugs": "allow"})
    figure = make_plots(rows, metrics_of(rows, policy))[0].figure("light")
    assert len(figure.axes[0].lines) == 1


@pytest.mark.parametrize("category, label", [("safe", "safe"), ("drugs", "unsafe")])
def test_one_label_alone_has_no_curves_but_reasons(category, label, tmp_path):
    rows = [judged(str(i), [0.7, 0.2, 0.1], category) for i in range(3)]
    plots = {plot.name: plot for plot in make_plots(rows, metrics_of(rows))}
    for name in ("roc", "precision-recall", "reliability"):
        assert plots[name].reason == f"all 3 rows are labelled {label}: it takes both labels"
    assert plots["histogram"].reason is None
    stale = tmp_path / "plots" / "roc-dark.png"
    stale.parent.mkdir()
    stale.write_bytes(b"of an earlier run")
    written = write_plots(make_plots(rows, metrics_of(rows)), tmp_path)
    assert not stale.exists() and stale not in written


def test_without_labels_nothing_is_drawn_and_the_reason_is_said(tmp_path):
    rows = [Row("a", probs=dict(zip(CATEGORIES, (0.5, 0.3, 0.2))))]
    metrics = metrics_of(rows, has_picture_labels=False)
    assert write_plots(make_plots(rows, metrics), tmp_path) == []
    reasons = [plot.reason for plot in make_plots(rows, metrics)]
    assert reasons[:4] == ["the benchmark does not label pictures alone"] * 4
    assert reasons[4:] == ["no row is labelled with a category of the model"] * 2


def test_a_verdict_that_is_not_finite_is_not_drawn(rows, metrics):
    broken = [dataclasses.replace(rows[0], probs=dict.fromkeys(CATEGORIES, float("nan"))), *rows[1:]]
    with pytest.raises(ValueError, match="row 0000: probabilities must be finite"):
        make_plots(broken, metrics)


def test_a_bar_without_an_interval_does_not_look_sure(metrics):
    drugs = metrics["guard"]["per_category"]["drugs"]
    unsure = {**drugs, "f1": {**drugs["f1"], "low": None, "high": None}}
    agreed = {**drugs, "f1": {**drugs["f1"], "value": 1.0, "low": 1.0, "high": 1.0}}
    guard = {**metrics["guard"], "per_category": {"drugs": drugs, "weapons": unsure, "safe": agreed}}
    plot = next(plot for plot in make_plots([], {**metrics, "guard": guard}) if plot.name == "per-category")
    axes = plot.figure("light").axes[0]
    assert [bar.get_hatch() for bar in axes.patches] == [None, "///", "///"] and len(axes.lines) == 1


def test_a_category_with_signs_of_mathematics_is_drawn_as_it_is_written(rows, metrics):
    guard = dict(metrics["guard"], per_category={"$x^{$": metrics["guard"]["per_category"]["drugs"]})
    plot = next(plot for plot in make_plots(rows, {**metrics, "guard": guard}) if plot.name == "per-category")
    assert Image.open(io.BytesIO(plot.pngs["light"])).size[0] > 900


def test_a_policy_that_allows_a_harm_is_left_out_of_curves_of_other_labels(rows, metrics):
    allowing = SafetyPolicy(categories=CATEGORIES, temperature=2.0, actions={"unsafe": "flag", CATEGORIES[1]: "allow"})
    for plain, allowed in zip(make_plots(rows, metrics), make_plots(rows, metrics_of(rows, allowing))):
        lines = [[len(axes.lines) for axes in plot.figure("light").axes] for plot in (plain, allowed)]
        assert lines[0] == lines[1]
