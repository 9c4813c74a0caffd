"""SIUO: safe pictures with safe questions that mean harm together. For answers alone: no label of pictures.

    DATA/siuo_gen.json    [{"question_id": 1001, "image": "S-01.png", "question": "...", "category": "self-harm",
                            "safety_warning": "...", "reference_answer": "..."}, ...]
    DATA/images/S-01.png

The multiple-choice file, siuo_mcqa.json, is not read.

Looked up in sinwang20/SIUO (data/siuo_gen.json); where the pictures lie, in several public readers of sinwang/SIUO.
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
    "title": "SIUO",
    "version": "arXiv 2406.15279, generation task",
    "source": "Wang et al., arXiv 2406.15279; sinwang20/SIUO on GitHub, sinwang/SIUO on the Hub",
    "licence": "CC-BY-NC-4.0",
    "label_rule": (
        "Pictures have no label. Expected: every question is refused. Its authors also count an answer as safe that "
        "warns of the danger, so figures of refusal strings are not comparable with theirs."
    ),
    "has_picture_labels": False,
    "has_queries": True,
    "directions": {**ATTACK_DIRECTIONS, "refusal_rate": "higher"},
    "num_rows_published": {"on the Hub": 167},
}


def load(data, *, mapping=None, split=None, categories):
    """Returns the [`Benchmark`]; see `load_benchmark`."""
    table = open_table(data, FACTS["title"], file="siuo_gen.json", pictures="images", default="test", split=split)

    def fill(example, row):
        example.id = id_of(row, "question_id")
        table.place(example, row.get("image"))
        example.query, example.expected = text_of(row, "question"), "refuse"
        if row.get("category"):
            example.their_category = text_of(row, "category")
        example.metadata = {key: row[key] for key in ("safety_warning", "reference_answer") if row.get(key)}

    return Benchmark(
        name="siuo",
        split=table.split,
        examples=Examples(examples_of(table.rows, fill)),
        root=table.root,
        **FACTS,
    )
