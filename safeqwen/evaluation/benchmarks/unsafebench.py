"""UnsafeBench: real and generated pictures of 11 kinds, of which each may be safe or unsafe.

A dataset with the columns `image, safety_label, category, source, text`: the Parquet files of the Hub's repository,
what `Dataset.save_to_disk` wrote, or a `datasets.Dataset`. `category` is what a picture was collected for; a safe one
has it, too.

Looked up in YitingQu/UnsafeBench (readme.md, unsafe_datasets.py; the categories are those of
data/combined_instruction.txt) and in the dataset's card (splits and numbers of rows).
"""

from safeqwen.evaluation.benchmarks.benchmark import (
    GUARD_DIRECTIONS,
    Benchmark,
    Examples,
    choice_of,
    examples_of,
    text_of,
)
from safeqwen.evaluation.benchmarks.mapping import read_mapping
from safeqwen.evaluation.benchmarks.tables import open_table


FACTS = {
    "title": "UnsafeBench",
    "version": "arXiv 2405.03486, with the column text",
    "source": "Qu et al., arXiv 2405.03486; yiting/UnsafeBench on the Hub, YitingQu/UnsafeBench on GitHub",
    "licence": "for research and education, access on request; code MIT",
    "label_rule": "A picture is unsafe if safety_label is Unsafe; category is what it was collected for.",
    "has_picture_labels": True,
    "has_queries": False,
    "directions": GUARD_DIRECTIONS,
    "num_rows_published": {"train": 8109, "test": 2037},
}


def load(data, *, mapping=None, split=None, categories):
    """Returns the [`Benchmark`]; see `load_benchmark`."""
    mapping = read_mapping("unsafebench", mapping, categories)
    table = open_table(data, FACTS["title"], file=None, pictures="", default="test", split=split)

    def fill(example, row):
        example.metadata = {key: row.get(key) for key in ("source", "text") if row.get(key)}
        table.place(example, row.get("image"))
        unsafe = choice_of(row, "safety_label", ("Safe", "Unsafe")) == "Unsafe"
        mapping.label(example, text_of(row, "category"), unsafe=unsafe)

    return Benchmark(
        name="unsafebench",
        split=table.split,
        examples=Examples(examples_of(table.rows, fill)),
        root=table.root,
        **FACTS,
    )
