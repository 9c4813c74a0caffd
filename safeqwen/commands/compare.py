"""`safeqwen compare`: figures of evaluations side by side, what differs, and on which rows."""

import sys

from safeqwen.commands.terminal import drop_output, prepare_streams, printable, say
from safeqwen.evaluation import INSTALL
from safeqwen.files import write_json


EXTRA = f"comparing needs packages that are not installed: {INSTALL}"
SHOWN_ROWS = 20  # that differ; --out has all


def run(args):
    """Runs `safeqwen compare` with the arguments of `safeqwen_cli`, and returns its exit code."""
    if not prepare_streams():
        say("stdout is closed; send it to a file, or to /dev/null if only --out matters")
        return 2
    try:
        from safeqwen.evaluation.compare import compare
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] not in ("sklearn", "torchmetrics"):
            raise
        say(f"{EXTRA} ({error})")
        return 2
    try:
        comparison = compare(args.folders)
    except (ValueError, OSError) as error:
        say(error)
        return 2
    if args.out is not None:
        try:
            write_json(args.out, comparison)
        except OSError as error:
            say(f"{args.out} could not be written: {error}")
            return 1
    try:
        for line in lines(comparison):
            print(printable(line))
        sys.stdout.flush()
    except OSError:  # the reader has left (| head), or the disk is full
        drop_output()
        return 1
    return 0


def lines(comparison):
    """Yields what is printed (`str`)."""
    rows, folders = comparison["rows"], comparison["folders"]
    names = [chr(ord("A") + i) if i < 26 else str(i) for i in range(len(folders))]
    yield f"{comparison['benchmark']['name']}: {rows['in_all']} rows are in all evaluations"
    for i, (name, folder) in enumerate(zip(names, folders)):
        decided = ""
        if comparison["decided_by"]:
            by_policy = comparison["decided_by"][i] == "policy"
            decided = ", flagged by its policy" if by_policy else ", flagged from 0.5"
        if comparison["decided_by"] and comparison["fitted_to_these_rows"][i]:
            decided += ", which was fitted to these very rows: on new ones it does worse"
        left = rows["not_in_all"][i]
        yield f"  {name}  {folder}{decided}" + (f"; {left} rows are not in all" if left else "")
        yield f"     {_settings(comparison['runs'], i)}"
    if comparison["guard"] is not None:
        yield ""
        yield f"guard, {rows['compared']} rows of {rows['pictures']} pictures"
        yield from _excluded(rows["excluded"])
        yield from _table(comparison["guard"], names)
    for rater, figures in (comparison["answers"] or {}).items():
        if rater != "grouped_by" and figures is not None:
            yield ""
            yield f"answers by the {rater}, {figures['num_rows']} rows"
            yield from _excluded(rows["excluded_answers"])
            yield from _table(figures["figures"], names)
    yield ""
    yield "* the interval of the difference does not hold 0"
    if rows["compared"]:
        yield from _listed("decisions", comparison["disagreements"], names, _decision)
    if rows["answers_compared"]:
        yield from _listed("refusals", comparison["answer_disagreements"], names, _refusal)


def _settings(runs, i):
    """The model of a run, and the settings in which the runs differ."""
    differing = [name for name in runs[i] if name != "model" and any(run.get(name) != runs[i][name] for run in runs)]
    return ", ".join([str(runs[i]["model"]), *(f"{name} {runs[i][name]}" for name in differing)])


def _excluded(reasons):
    for reason, ids in reasons.items():
        yield f"  without {len(ids)}: {reason}"


def _table(figures, names):
    header = ["", names[0]] + [text for name in names[1:] for text in (name, f"{name} - {names[0]}")]
    table = [header]
    for name, (first, *others) in figures.items():
        cells = [name, _cell(first)]
        for figure in others:
            difference = figure["difference"]
            surely = difference["low"] is not None and (difference["low"] > 0 or difference["high"] < 0)
            cells += [_cell(figure), _cell(difference, "+") + (" *" if surely else "")]
        table.append(cells)
    widths = [max(map(len, column)) for column in zip(*table)]
    for cells in table:
        yield "  " + "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths)).rstrip()


def _cell(figure, sign=""):
    if figure["value"] is None:
        return "-"
    if figure["low"] == figure["high"]:  # none, or without width, which would look like certainty
        return f"{figure['value']:{sign}.3f}"
    return f"{figure['value']:{sign}.3f} [{figure['low']:{sign}.3f}, {figure['high']:{sign}.3f}]"


def _listed(what, rows, names, describe):
    yield ""
    yield f"{what} differ on {len(rows)} rows" + (":" if rows else "")
    for row in rows[:SHOWN_ROWS]:
        yield f"  {row['id']}  {describe(row, names)}"
    if len(rows) > SHOWN_ROWS:
        yield f"  and {len(rows) - SHOWN_ROWS} more: --out FILE writes all"


def _decision(row, names):
    label = "safe" if not row["unsafe"] else row["category"] or "unsafe"
    decisions = zip(names, row["scores"], row["flagged"])
    return f"{label}: " + ", ".join(
        f"{name} {score:.3f}{' flagged' if flag else ''}" for name, score, flag in decisions
    )


def _refusal(row, names):
    group = row["type"] or row["expected"]
    return f"{group}: " + ", ".join(
        f"{name} {'refuses' if refused else 'answers'}" for name, refused in zip(names, row["refused"])
    )
