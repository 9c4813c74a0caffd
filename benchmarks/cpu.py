"""The suite for a CPU: every figure at the mid size, those of the model itself on the demo too, and how cost grows."""

import tempfile
from functools import partial

from benchmarks import package
from benchmarks.curves import measure_growth
from benchmarks.figures import FIGURES, measure_rows
from benchmarks.measure import DRY_RUN
from benchmarks.memory import measure_in_child
from benchmarks.models import Workload, build_models
from benchmarks.report import make_row


NUM_PICTURES = 300
KEYS = (*FIGURES, "growth", "pipeline", "training", "import", "help")


def run(wanted, dry=False):
    """
    Measures what is wanted.

    Args:
        wanted (`Callable`): whether to measure one of `KEYS`; it is asked when its turn has come.
        dry (`bool`): a tiny model on small workloads.

    Yields:
        `tuple`: ("figures", a list of [`make_row`]'s rows) or ("growth", what [`measure_growth`] returns)
    """
    shapes = ["tiny"] if dry else ["mid", "demo"]
    quick = DRY_RUN if dry else {}

    for shape in shapes:
        models = build_models(shape)
        for key, figure in FIGURES.items():
            if not wanted(key):
                continue
            figure = figure.shrunk() if dry else figure
            settings = quick or {"seconds": 8.0}
            measure_peak = partial(measure_in_child, key, shape=shape, shrink=dry)
            yield "figures", measure_rows(figure, models, shape, measure_peak, **settings)
        if shape == shapes[0] and wanted("growth"):
            yield "growth", measure_growth(models, dry)
        del models

    shape = shapes[0]
    if wanted("pipeline"):
        with tempfile.TemporaryDirectory() as folder:
            paths = package.write_pictures(folder, 8 if dry else NUM_PICTURES, longest=200 if dry else 1600)
            measured = package.measure_pipeline(shape, paths, num_chunks=2 if dry else 15)
        labels = ('`pipeline("image-safety")`, pictures/s', "`guard()` on ready tensors", f"{len(paths)} files")
        yield "figures", [make_row(*labels, shape, 0.80, measured, at_least=True)]
    if wanted("training"):
        workload = Workload(prompts=2, words_after=60)
        workload = workload.shrunk() if dry else workload
        measured = package.measure_training(shape, workload, **quick)
        labels = ("training step with both losses", "stock's, LM loss alone, same LoRA", str(workload))
        yield "figures", [make_row(*labels, shape, 1.02, measured)]
    if wanted("import"):
        measured = package.measure_import(**{"seconds": 0.0, "num_warmups": 1, **quick})
        labels = ("`import safeqwen`, CPU time", "importing stock's classes", "a process each")
        yield "figures", [make_row(*labels, shape, 1.05, measured)]
    if wanted("help"):
        measured = package.measure_help(num_runs=2 if dry else 15)
        yield "figures", [make_row("`safeqwen --help`", "", "a process", shape, 0.5, measured, unit=" s")]
