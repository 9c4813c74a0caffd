"""
`report.html`: what a scan found, on one page that opens from disk without a network.

Counts and plots are of all rows. The gallery holds a bounded number of them, those first that are most worth a look.
Its script is `report.js`, written for this page: a table that a library would sort, too, but cards with pictures that
are blurred, corrected and exported are most of it. Plots are matplotlib's, as in an evaluation's page.
"""

import heapq
import json
from pathlib import Path

import numpy as np
from jinja2.utils import htmlsafe_json_dumps

from safeqwen.data.taxonomy import title_of
from safeqwen.evaluation.page import data_url, render
from safeqwen.files import replaced
from safeqwen.judging.decision import ACTIONS, UNSAFE
from safeqwen.judging.policy import SafetyPolicy
from safeqwen.judging.verdict import SAFE
from safeqwen.provenance import without_folders
from safeqwen.scan.gallery import Local, add_heatmaps, add_thumbnails, entry, priority
from safeqwen.scan.ledger import read_record
from safeqwen.scan.rows import is_flagged, policy_fingerprint, read_rows
from safeqwen.scan.sources import Access
from safeqwen.scan.tally import NUM_BINS, SEVERITIES, Tally
from safeqwen.showing.html import visible
from safeqwen.showing.plot import Plot, count_axis
from safeqwen.showing.words import counted


FOLDER = Path(__file__).parent
SHOWN_REASONS = 50
SHOWN_ERRORS = 200
NUM_PANELS = 20  # categories whose scores are drawn
ACTION_TITLES = {"allow": "allow", "flag": "flag", "block": "block"}
ACTION_TITLES_WITHOUT_POLICY = {"allow": "not flagged", "flag": "flagged"}


def write_report(
    paths,
    out,
    *,
    policy=None,
    num_pictures=10_000,
    num_thumbnails=2_000,
    num_heatmaps=0,
    judge=None,
    root=".",
    fetch=False,
    column=None,
    progress=lambda things, what, total: things,
):
    """
    Writes the page of a scan, or of several by one model and policy, and returns what is on it (`dict`): "rows",
    "flagged", "errors", "shown", "thumbnails", "missing" (thumbnails), "heatmaps".

    Args:
        paths (`list[str | Path]`): of rows, as `read_rows` takes them.
        out (`Path`): of the page, which is replaced when it is whole.
        policy ([`SafetyPolicy`], *optional*): of the scan, for its thresholds. By default the ledger's, or else those
            of its rules that fired.
        num_pictures, num_thumbnails, num_heatmaps (`int`): how many rows are in the gallery, how many of these have a
            small picture, and how many of the flagged ones a heat map.
        judge ([`SafetyPipeline`], *optional*): makes the heat maps; the caller has seen that it is the scan's model.
        root (`str` or `Path`): the folder that relative paths of the rows count from.
        fetch (`bool`): whether to fetch pictures that lie behind URLs.
        column (`str`, *optional*): of the scan.
        progress (callable): (iterable, what it is, how many) -> the same, told of.

    Raises:
        ValueError: if there are no such rows, they are of several models, policies or taxonomies, one picture is there
            twice, or the policy is not theirs.
        OSError: if the page cannot be written.
    """
    tally = Tally()
    rows = heapq.nsmallest(num_pictures, _counted(paths, tally), key=priority)
    record = _record(paths)
    policy = _checked_policy(policy, record, tally)
    thresholds = {**tally.thresholds, **_thresholds(policy)}
    # What was allowed has no rule that could fire.
    entries = {row["id"]: entry(row) for row in rows}
    judged = [row for row in rows if row["error"] is None]
    access = (Access if fetch else Local)(column=column)
    chosen = judged[:num_thumbnails]
    add_thumbnails(entries, chosen, root, access, lambda found: progress(found, "thumbnails", len(chosen)))
    mapped = sorted(filter(is_flagged, chosen), key=lambda row: priority(row)[1])[:num_heatmaps] if judge else []
    bound = (record or {}).get("max_pixels")
    add_heatmaps(entries, mapped, root, access, judge, bound, lambda found: progress(found, "heat maps", len(mapped)))
    shown = list(entries.values())
    page = render(
        "scan.html.jinja",
        folder=FOLDER,
        more_style=_read("../showing/verdict.css") + _read("report.css"),
        script=_read("report.js"),
        tally=tally,
        cautions=_cautions(tally, record, len(shown)),
        facts=_facts(paths, tally, record),
        throughput=_throughput(tally),
        actions=[name for name in ACTIONS if tally.has_policy or name != "block"],
        action_titles=ACTION_TITLES if tally.has_policy else ACTION_TITLES_WITHOUT_POLICY,
        labels=sorted(
            {label for label, _ in tally.by_label},
            key=lambda name: (name == SAFE, -_total(tally.by_label, name), name),
        ),
        severities=SEVERITIES,
        title_of=title_of,
        counted=counted,
        without_folders=without_folders,
        plots=[
            {"plot": plot, **{theme: data_url(png, "image/png") for theme, png in plot.pngs.items()}}
            for plot in make_plots(tally, thresholds)
        ],
        reasons=tally.by_reason.most_common(SHOWN_REASONS),
        errors=[found for found in shown if "error" in found][:SHOWN_ERRORS],
        num_shown=len(shown),
        num_files=len(paths),
        num_thumbnails=sum("thumbnail" in found for found in shown),
        num_missing=sum("missing" in found for found in shown),
        data=htmlsafe_json_dumps(
            {
                "categories": tally.categories,
                "titles": [visible(title_of(name)) for name in tally.categories],
                "thresholds": {name: thresholds[name] for name in thresholds if name == UNSAFE},
                "bounds": [thresholds.get(name) for name in tally.categories],
                "allowed": [name in (policy.allowed if policy else ()) for name in tally.categories],
                "hasScore": tally.has_safe,
                "hasPolicy": tally.has_policy,
                "groups": {
                    row["group"]: [tally.groups[row["group"]], row["group_disagrees"]] for row in rows if row["group"]
                },
                "pictures": shown,
            },
            dumps=lambda value, **_: json.dumps(value, separators=(",", ":"), allow_nan=False),
        ),
    )
    with replaced(out) as partial:
        partial.write_text(page, encoding="utf-8")
    return {
        "rows": tally.num_rows,
        "flagged": tally.num_flagged,
        "errors": tally.num_errors,
        "shown": len(shown),
        "thumbnails": sum("thumbnail" in found for found in shown),
        "missing": sum("missing" in found for found in shown),
        "heatmaps": sum("map" in found for found in shown),
    }


def _read(name):
    return (FOLDER / name).read_text(encoding="utf-8")


def _counted(paths, tally):
    """All rows, each counted; the groups of several files are numbered on."""
    before = 0
    for path in paths:
        highest = before
        for number, row in enumerate(read_rows(path), start=1):
            if row["group"] is not None:
                row["group"] += before
                highest = max(highest, row["group"])
            tally.add(row, f"{path}, row {number}")
            yield row
        before = highest


def _record(paths):
    """What the first of the scans was of, if its ledger is still beside it."""
    try:
        return read_record(paths[0])
    except ValueError:
        return None


def _checked_policy(policy, record, tally):
    if policy is not None:
        if tally.num_rows and policy_fingerprint(policy) != tally.fingerprints[1]:
            raise ValueError("the rows were decided by another policy, or by none: give --policy the scan's, or none")
        return policy
    if not tally.has_policy or record is None or record.get("policy") is None:
        return None
    policy = SafetyPolicy(**record["policy"])
    return policy if policy_fingerprint(policy) == tally.fingerprints[1] else None


def _thresholds(policy):
    if policy is None:
        return {}
    thresholds = {UNSAFE: policy.unsafe_threshold, **policy.category_thresholds}
    return {name: value for name, value in thresholds.items() if policy.actions.get(name) != "allow"}


def _total(counts, name):
    return sum(counts[name, action] for action in ACTIONS)


# --------------------------------------------------------------------------------------------------------------- texts


def _cautions(tally, record, num_shown):
    """What must be known before anything else is read (`list[str]`)."""
    cautions = []
    if not tally.num_rows:
        cautions.append("The scan found no pictures: there are no rows.")
    elif tally.num_errors == tally.num_rows:
        cautions.append("No picture was judged: every row is an error. Nothing here says that any of them is safe.")
    elif tally.num_errors:
        cautions.append(
            f"Rows without a verdict: {tally.num_errors:,} of {tally.num_rows:,}. They are in no figure but those of "
            "errors, and nothing says that they are safe."
        )
    if record is not None and record["made"].get("model") == "demo":
        cautions.append("The model is the demo checkpoint, which knows drawings: nothing here holds for photographs.")
    if tally.is_shadow:
        cautions.append("The policy ran in shadow mode: decisions are what it would do, and nothing was enforced.")
    if tally.num_rows and not tally.has_policy:
        cautions.append(
            "There is no policy: a picture is flagged from an unsafe probability of 0.5."
            if tally.has_safe or not tally.categories
            else "There is neither a policy nor a category \u201csafe\u201d: every picture is flagged."
        )
    if num_shown < tally.num_rows:
        cautions.append(
            f"The gallery holds {num_shown:,} of {tally.num_rows:,} rows: flagged ones and groups whose verdicts "
            "disagree first, then errors, then the highest scores. Counts and plots are of all rows."
        )
    return cautions


def _facts(paths, tally, record):
    made = without_folders((record or {}).get("made") or {})
    model, policy = tally.fingerprints or (None, None)
    versions = ", ".join(f"{name} {version}" for name, version in (made.get("versions") or {}).items() if version)
    pairs = [
        ("Rows", f"{tally.num_rows:,}, in {', '.join(Path(path).name for path in paths)}"),
        ("Flagged", f"{tally.num_flagged:,} of {tally.num_rows - tally.num_errors:,} that were judged"),
        ("Not judged", f"{tally.num_errors:,}"),
        (
            "Near-identical",
            f"{counted(len(tally.groups), 'group')}; the verdicts of {tally.num_disagreeing:,} disagree",
        ),
        ("Model", made.get("model")),
        ("Model's fingerprint", model),
        ("Policy's fingerprint", policy),
        ("Command", made.get("command")),
        ("Versions", versions),
    ]
    return [(term, value) for term, value in pairs if value]


def _throughput(tally):
    pairs = [("Different pictures judged", f"{tally.num_judged:,}"), ("Model's time", f"{tally.seconds:,.1f} s")]
    if tally.seconds > 0:
        pairs.append(("Pictures a second of the model's time", f"{tally.num_judged / tally.seconds:,.1f}"))
    if tally.first is not None:
        span = (tally.last - tally.first).total_seconds()
        pairs += [("First verdict", tally.first.isoformat(" ")), ("Last verdict", tally.last.isoformat(" "))]
        if span >= 1:
            rate = tally.num_judged / span
            pairs.append(("Pictures a second between these, pauses included", f"{rate:,.2f}"))
    return pairs


# --------------------------------------------------------------------------------------------------------------- plots


def make_plots(tally, thresholds):
    """Returns the histograms (`list[Plot]`) of a scan's scores, with the thresholds drawn in."""
    if tally.histograms is None:
        return []
    plots = []
    num = tally.num_rows - tally.num_errors
    if tally.has_safe:
        plots.append(_score_plot(tally, thresholds.get(UNSAFE), num))
    names = [name for name in tally.categories if name != SAFE]
    by_use = {name: (name not in thresholds, -_total(tally.by_label, name)) for name in names}
    drawn = sorted(names, key=by_use.get)[:NUM_PANELS]
    if drawn:
        plots.append(_category_plot(tally, thresholds, sorted(drawn, key=names.index), len(names), num))
    return plots


EDGES = np.linspace(0, 1, NUM_BINS + 1)


def _score_plot(tally, threshold, num):
    what = "score of the policy's rule \u201cunsafe\u201d" if tally.has_policy else "unsafe probability, 1 - p(safe)"
    titles = ACTION_TITLES if tally.has_policy else ACTION_TITLES_WITHOUT_POLICY
    by_action = tally.histograms[0]

    def draw(figure, theme):
        panels = [action for action in titles if by_action[ACTIONS.index(action)].any()]
        for axes, action in zip(np.atleast_1d(figure.subplots(len(panels), sharex=True, sharey=True)), panels):
            counts = by_action[ACTIONS.index(action)]
            colour = theme["first" if action == "allow" else "second"]
            axes.stairs(counts, EDGES, fill=True, color=colour)
            axes.set_title(f"{titles[action]}: {counts.sum():,}", loc="left", fontsize=9)
            axes.set_ylabel("pictures")
            count_axis(axes, by_action.max())
            if threshold is not None:
                label = f"threshold {threshold:.4g}" if action == panels[0] else None
                axes.axvline(threshold, color=theme["ink"], linestyle="--", label=label)
            axes.set(xlim=(0, 1))
        axes.set_xlabel(what)
        if threshold is not None:
            figure.legend(loc="outside lower center")

    drawn_in = f"The threshold, {threshold:.4g}, is drawn in" if threshold is not None else "No threshold is known"
    above = {titles[action]: int(by_action[ACTIONS.index(action)].sum()) for action in titles}
    counts = ", ".join(f"{title} {count:,}" for title, count in above.items())
    return Plot("scores", f"Scores, N = {num:,}", f"Histogram of the {what}, by decision: {counts}. {drawn_in}.", draw)


def _category_plot(tally, thresholds, names, num_harms, num):
    columns = min(4, len(names))
    rows = -(-len(names) // columns)

    def draw(figure, theme):
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        panels = {name: tally.histograms[1 + tally.categories.index(name)].sum(axis=0) for name in names}
        for axes, name in zip(grid.flat, names):
            axes.stairs(panels[name], EDGES, fill=True, color=theme["first"])
            axes.set_title(title_of(name), loc="left", fontsize=8)
            if name in thresholds:
                axes.axvline(thresholds[name], color=theme["second"], linestyle="--")
            axes.set(xlim=(0, 1))
            count_axis(axes, max(counts.max() for counts in panels.values()))
        for axes in grid.flat[len(names) :]:
            axes.set_visible(False)
        figure.supxlabel("probability" + (", calibrated by the policy" if tally.has_policy else ""), fontsize=9)
        figure.supylabel("pictures", fontsize=9)

    drawn_in = [f"{title_of(name)} {thresholds[name]:.4g}" for name in names if name in thresholds]
    description = f"Histograms of the probability of {len(names)} of {num_harms} harms. "
    description += f"Thresholds drawn in: {', '.join(drawn_in)}." if drawn_in else "None has a threshold of its own."
    inches = (2.4 * columns, 0.7 + 1.3 * rows)
    return Plot("categories", f"Scores by category, N = {num:,}", description, draw, inches=inches)
