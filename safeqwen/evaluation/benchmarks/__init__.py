"""The benchmarks that `safeqwen evaluate` knows: a module each, which states where its rows and rules come from."""

import importlib
import os
from pathlib import Path

from safeqwen.evaluation.benchmarks.benchmark import Benchmark, Examples
from safeqwen.evaluation.benchmarks.mapping import hint


BENCHMARKS = (
    "holisafe-bench",
    "unsafebench",
    "vlguard",
    "llavaguard",
    "safeeditbench",
    "folder",
    "jsonl",
    "mm-safetybench",
    "siuo",
    "vlsbench",
)
"""Their names; the last three measure answers alone."""

__all__ = ["BENCHMARKS", "Benchmark", "Examples", "load_benchmark"]


def load_benchmark(name, data, *, mapping=None, split=None, categories):
    """
    Returns a [`Benchmark`]: its facts and its rows.

    Args:
        name (`str`): one of `BENCHMARKS`; upper case and `_` for `-` are no matter.
        data (`str`, `os.PathLike`, `datasets.Dataset` or `datasets.DatasetDict`): where it lies on this machine. The
            benchmark's module says in which layout; nothing is downloaded.
        mapping (`str` or `os.PathLike`, *optional*): a JSON file, the benchmark's categories -> the model's or null,
            in place of the one that comes with the package; see `read_mapping`.
        split (`str`, *optional*): by default the one that is for testing.
        categories (`list[str]`): the model's, `config.safety_categories`.

    Raises:
        ValueError: if there is no such benchmark; if the data have another layout (which file was expected where), no
            rows, or none that can be used; if the mapping names a category that the model lacks.
        OSError: if a file cannot be read.
        ImportError: if a dataset is to be read and the library datasets is missing.
    """
    known = str(name).strip().lower().replace("_", "-")
    if known not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name!r}; {hint(known, BENCHMARKS)}")
    module = importlib.import_module(f"{__name__}.{known.replace('-', '_')}")
    if mapping is not None and not module.FACTS.get("has_picture_labels", True):
        raise ValueError(f"{module.FACTS['title']} has no labels of pictures: there is nothing to map")
    if isinstance(data, (str, os.PathLike)) and not Path(data).exists():
        raise ValueError(
            f"{module.FACTS['title']}: there is no {data}; nothing is downloaded, so give where it lies on the disk"
        )
    benchmark = module.load(data, mapping=mapping, split=split, categories=list(categories))
    if not len(benchmark.examples):
        raise ValueError(f"{benchmark.title}: there are no rows in {data}")
    errors = [example.error for example in benchmark.examples.unread() if example.error]
    if len(errors) == len(benchmark.examples):
        raise ValueError(
            f"{benchmark.title}: none of the {len(errors)} rows in {data} can be used; the first: {errors[0]}"
        )
    return benchmark
