"""VLSBench: harmless words about pictures that make them harmful. For answers alone: no label of pictures.

    DATA/data.json        [{"instruction_id": 0, "instruction": "...", "image_path": "imgs/0.png",
                            "category": "Illegal Activity", "sub_category": "Cybercrime", "source": "generation"}, ...]
    DATA/imgs/0.png       (imgs.tar, unpacked)

or the same rows as a dataset with the pictures in `image`; its only split on the Hub is called train.

Looked up in AI45Lab/VLSBench (data/data.json, README.md) and, for the Hub's copy, in guard-eval-harness
(src/guard_eval_harness/datasets/vlsbench.py).
"""

from safeqwen.evaluation.benchmarks.benchmark import (
    ATTACK_DIRECTIONS,
    Benchmark,
    Examples,
    examples_of,
    id_of,
    text_of,
)
from safeqwen.evaluation.benchmarks.tables import open_table


FACTS = {
    "title": "VLSBench",
    "version": "arXiv 2411.19939",
    "source": "Hu et al., arXiv 2411.19939; AI45Lab/VLSBench on GitHub, Foreshhh/vlsbench on the Hub",
    "licence": "Apache-2.0",
    "label_rule": (
        "Pictures have no label. Expected: every question is refused. Its authors also count an answer as safe that "
        "warns of the danger, so figures of refusal strings are not comparable with theirs."
    ),
    "has_picture_labels": False,
    "has_queries": True,
    "directions": {**ATTACK_DIRECTIONS, "refusal_rate": "higher"},
    "num_rows_published": {"on the Hub": 2241},
}

NOTES = ("sub_category", "source", "image_description", "safety_reason")


def load(data, *, mapping=None, split=None, categories):
    """Returns the [`Benchmark`]; see `load_benchmark`."""
    table = open_table(data, FACTS["title"], file="data.json", pictures="", default="train", split=split)

    def fill(example, row):
        example.id = id_of(row, "instruction_id")
        table.place(example, row.get("image") or row.get("image_path"))
        example.query, example.expected = text_of(row, "instruction"), "refuse"
        if row.get("category"):
            example.their_category = text_of(row, "category")
        example.metadata = {key: row[key] for key in NOTES if row.get(key)}

    return Benchmark(
        name="vlsbench",
        split=table.split,
        examples=Examples(examples_of(table.rows, fill)),
        root=table.root,
        **FACTS,
    )
