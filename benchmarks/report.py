"""What was measured, in Markdown."""

import re


MARKS = ("<!-- benchmarks: start -->", "<!-- benchmarks: end -->")


def make_row(figure, against, on, model, bar, measured, *, at_least=False, unit="", judged=True):
    """
    A figure's row.

    Args:
        figure, against, on, model (`str`): what was measured, compared with what, at which work, by which model.
        bar (`float`, *optional*): what the value must not exceed, or must reach if `at_least`.
        measured (`dict`): "ratio", the value, in `unit`, and what else is worth keeping: "quartiles", seconds.
        judged (`bool`): whether the bar is one for this model.
    """
    value, judged = measured["ratio"], judged and bar is not None
    met = (value >= bar if at_least else value <= bar) if judged else None
    labels = {"figure": figure, "against": against, "on": on, "model": model}
    bars = {"bar": bar, "at_least": at_least, "judged": judged, "met": met}
    return {**labels, "value": value, "unit": unit, **bars, **measured}


def number(value):
    return f"{value:.3f}"


def figures_table(rows):
    """
    The Markdown table of figures: a line a figure, a column a model.

    Args:
        rows (`list[dict]`): as [`make_row`] returns them.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = [
        f"| figure | against | on | must reach | {' | '.join(models)} |",
        f"|---|---|---|---|{'---|' * len(models)}",
    ]
    grouped = {}
    for row in rows:
        grouped.setdefault((row["figure"], row["against"], row["on"]), {})[row["model"]] = row
    for (figure, against, on), by_model in grouped.items():
        first = next(iter(by_model.values()))
        sign = ">=" if first["at_least"] else "<="
        bar = "" if first["bar"] is None else f"{sign} {first['bar']:.2f}{first['unit']}"
        cells = [cell(by_model[model]) if model in by_model else "" for model in models]
        lines.append(f"| {figure} | {against} | {on} | {bar} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(row):
    """`0.743 (0.739-0.750)`, with "missed" where the bar was not reached, "no bar" where it is not for this model."""
    text = number(row["value"]) + row["unit"]
    if "quartiles" in row:
        low, high = row["quartiles"]
        text += f" ({number(low)}-{number(high)})"
    if row["met"] is False:
        return f"{text} missed"
    return text if row["judged"] or row["bar"] is None else f"{text}, no bar"


def parts_text(rows):
    """Of what the times of figures that missed their bar are made up, `""` if none did."""
    lines = []
    for row in rows:
        if "parts" in row:
            ways = []
            for side, parts in row["parts"].items():
                named = {name: ms for name, ms in parts.items() if name != "all"}
                named["all else"] = parts["all"] - sum(named.values())
                shares = ", ".join(f"{name} {ms:.1f}" for name, ms in named.items())
                ways.append(f"{row['figure'] if side == 'ours' else row['against']} {parts['all']:.1f} ms ({shares})")
            lines.append(f"- on {row['model']}: {'; '.join(ways)}")
    title = "Where the time of what missed its bar goes, medians of five calls:"
    return "\n".join([title, "", *lines]) if lines else ""


def throughput_table(rows):
    lines = [
        "| setting | way | pictures/s | tokens/s | weights, GiB | peak, GiB | TFLOP/s | of the roof |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['setting']} | {row['way'] or ''} | {row['error'].replace('|', '/')} | | | | | |")
            continue
        roof = "" if row["roof_share"] is None else f"{row['roof_share']:.0%}"
        speed = "" if row["tflops_per_s"] is None else f"{row['tflops_per_s']:.1f}"
        lines.append(
            f"| {row['setting']} | {row['way']} | {row['pictures_per_s']:.1f} | {row['tokens_per_s']:,.0f} "
            f"| {row['weights_gib']:.2f} | {row['peak_gib']:.2f} | {speed} | {roof} |"
        )
    return "\n".join(lines)


def growth_text(growth):
    names = {"prompts": "batch", "picture_tokens": "picture tokens", "pictures": "pictures a prompt"}
    parts = []
    for sweep, curves in growth.items():
        sizes = curves["sizes"]
        ways = [
            f"{way} {curve['exponent']:.2f} ({curve['last_exponent']:.2f})"
            for way, curve in curves.items()
            if way != "sizes"
        ]
        parts.append(f"{names[sweep]} {sizes[0]:,}-{sizes[-1]:,} ({sizes[-2]:,}-{sizes[-1]:,}): {', '.join(ways)}")
    return f"Exponents of the time, and in brackets those of the last step alone: {'; '.join(parts)}."


def machine_text(results):
    machine = results["machine"]
    on_gpu = results["suite"] == "gpu" and not results["dry"]
    where = machine["gpu"] if on_gpu else f"{machine['processor']}, {machine['cores']} cores"
    commit, *dirty = (machine["commit"] or "unknown").split("-")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{where}, {machine['memory_gib']:.0f} GiB, load {machine['load_average']:.1f}; Python {machine['python']}, "
        f"{versions}; commit {'-'.join([commit[:12], *dirty])}; {results['date']}; {results['minutes']:.0f} minutes."
    )


def markdown(results):
    """All of a suite's results."""
    parts = [f"`{results['command']}`", machine_text(results), figures_table(results["figures"])]
    if results["dry"]:
        parts.insert(0, "A dry run: these numbers mean nothing.")
    if reasons := parts_text(results["figures"]):
        parts.append(reasons)
    if results.get("throughput"):
        parts.append(throughput_table(results["throughput"]))
    if results.get("growth"):
        parts.append(growth_text(results["growth"]))
    return "\n\n".join(parts) + "\n"


def put_into_readme(text, path):
    """Replaces what stands between the two marks of a README."""
    readme = path.read_text(encoding="utf-8")
    start, end = (re.escape(mark) for mark in MARKS)
    if not re.search(f"{start}.*{end}", readme, re.DOTALL):
        raise ValueError(f"{path} has no place for the results: put {MARKS[0]} and {MARKS[1]} where they belong")
    block = f"{MARKS[0]}\n{text}{MARKS[1]}"
    path.write_text(re.sub(f"{start}.*?{end}", lambda _: block, readme, flags=re.DOTALL), encoding="utf-8")
