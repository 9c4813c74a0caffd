"""The peak memory of one call over the weights, in a process of its own: `measure_in_child`."""

import json
import subprocess
import sys

from benchmarks.measure import ROOT


def measure_in_child(figure, side, shape, shrink=False):
    """
    Bytes (`int`) that a way needs over the weights on a CPU, at their highest.

    Args:
        figure (`str`): of `figures.FIGURES`.
        side (`str`): "ours" or "theirs".
        shape (`str`): as [`build_models`] takes it.
        shrink (`bool`): a small workload, to try out that it runs.
    """
    command = [sys.executable, "-m", "benchmarks.memory", figure, side, shape, *(["shrink"] if shrink else [])]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {process.stderr[-2000:]}")
    return json.loads(process.stdout.splitlines()[-1])


def main(key, side, shape, *shrink):
    from benchmarks.figures import FIGURES, measure_memory
    from benchmarks.models import build_models

    figure = FIGURES[key].shrunk() if shrink else FIGURES[key]
    print(measure_memory(figure, build_models(shape), side))


if __name__ == "__main__":
    main(*sys.argv[1:])
