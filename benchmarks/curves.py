"""How the cost of `guard()` and of stock's forward grows with the batch, the size of a picture and their number."""

import statistics

import torch

from benchmarks.figures import guard, stock_forward
from benchmarks.measure import fit_exponent, timed
from benchmarks.models import Workload, build_inputs


SWEEPS = {
    "prompts": [Workload(prompts=n) for n in (1, 2, 4, 8, 16)],
    "picture_tokens": [Workload(picture_tokens=n) for n in (64, 128, 256, 512, 1024, 2048, 4096)],
    "pictures": [Workload(pictures=n) for n in (1, 2, 4, 8)],
}
TITLES = {"prompts": "prompts a batch", "picture_tokens": "tokens of a picture", "pictures": "pictures a prompt"}
WAYS = {"guard()": guard, "stock forward": stock_forward}


@torch.no_grad()
def measure_growth(models, dry=False):
    """
    Median seconds over each sweep, and the exponent k of seconds = c * size**k; of two small sizes, once, if `dry`.

    Returns:
        `dict`: the sweep -> `{"sizes": [...], way: {"seconds": [...], "exponent": k, "last_exponent": k}}`; the second
        is that of the last two sizes: where work is small its fixed part hides how it grows.
    """
    num_warmups, num_runs = (0, 1) if dry else (1, 4)
    growth = {}
    for sweep, workloads in SWEEPS.items():
        if dry:
            workloads = [Workload(**{"picture_tokens": 16, sweep: n}) for n in (4, 8)]
        sizes = [getattr(workload, sweep) for workload in workloads]
        runs = {(way, size): [] for way in WAYS for size in sizes}
        for i in range(num_warmups + num_runs):
            for workload, size in zip(workloads, sizes):
                inputs = build_inputs(workload, models.device, models.guarded.dtype)
                for way, function in sorted(WAYS.items(), reverse=i % 2 == 1):
                    seconds = timed(lambda _: function(models, inputs, workload))  # noqa: B023
                    if i >= num_warmups:
                        runs[way, size].append(seconds)
        growth[sweep] = {"sizes": sizes}
        for way in WAYS:
            seconds = [statistics.median(runs[way, size]) for size in sizes]
            growth[sweep][way] = {
                "seconds": seconds,
                "exponent": fit_exponent(sizes, seconds),
                "last_exponent": fit_exponent(sizes[-2:], seconds[-2:]),
            }
    return growth


def plot_growth(growth, path):
    """Draws what [`measure_growth`] returned into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(growth), figsize=(4 * len(growth), 3.4), sharey=True, layout="constrained")
    for axis, (sweep, curves) in zip(axes, growth.items()):
        sizes = curves["sizes"]
        for way, marker in zip(WAYS, ("o-", "s--")):
            curve = curves[way]
            axis.plot(sizes, curve["seconds"], marker, label=f"{way}: size^{curve['exponent']:.2f}")
        axis.set(xscale="log", yscale="log", xlabel=TITLES[sweep])
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    axes[0].set_ylabel("seconds")
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
