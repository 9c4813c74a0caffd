"""Rows of one's own: a JSONL file, or a JSON file that holds a list.

    {"image": "pictures/1.png", "unsafe": true, "category": "suicide", "id": "a", "query": "...", "expected": "refuse"}

`image` counts from the file's folder, which it may not leave. A row needs `unsafe`, `category` or `query`; `type` is
one of HoliSafe's five, and says what is expected where `expected` does not. `metadata` is an object of one's own.
"""

from safeqwen.data.sources import BadRow
from safeqwen.evaluation.benchmarks.benchmark import (
    ATTACK_DIRECTIONS,
    EXPECTED,
    GUARD_DIRECTIONS,
    Benchmark,
    Examples,
    choice_of,
    examples_of,
    flag_of,
    id_of,
    text_of,
)
from safeqwen.evaluation.benchmarks.holisafe_bench import REFUSED_TYPES
from safeqwen.evaluation.benchmarks.mapping import hint, identity, read_mapping
from safeqwen.evaluation.benchmarks.tables import as_path, file_table
from safeqwen.evaluation.rows import PAIR_TYPES


FACTS = {
    "title": "rows of one's own",
    "version": "as they lie there",
    "source": "one's own",
    "licence": "one's own",
    "label_rule": "A picture is unsafe if the row says so, or is of any category but the safe one.",
    "num_rows_published": None,
}

FIELDS = ("image", "unsafe", "category", "id", "query", "expected", "type", "metadata")


def load(data, *, mapping=None, split=None, categories):
    """Returns the [`Benchmark`]; see `load_benchmark`."""
    file = as_path(data, FACTS["title"])
    if file.suffix.lower() not in (".jsonl", ".json") or file.is_dir():
        raise ValueError(f"expected a .jsonl file, or a .json file that holds a list, got {file}")
    if split is not None:
        raise ValueError(f"a file has no splits; give the file of {split!r} itself")
    mapping = identity(categories) if mapping is None else read_mapping("jsonl", mapping, categories)
    table = file_table(file, root=file.parent)

    def fill(example, row):
        row = {key: value for key, value in row.items() if value is not None}
        if "id" in row:
            example.id = id_of(row, "id")
        for key in row:
            if key not in FIELDS:
                raise BadRow(f"has a field {key!r}; {hint(key, FIELDS)}; fields of your own go into 'metadata'")
        if not isinstance(row.get("metadata", {}), dict):
            raise BadRow(f"has {row['metadata']!r} as 'metadata'; expected an object")
        example.metadata = dict(row.get("metadata", {}))
        table.place(example, row.get("image"))
        if not row.keys() & {"unsafe", "category", "query"}:
            raise BadRow("has neither 'unsafe' nor 'category' nor 'query': there is nothing to measure")
        if "query" in row:
            example.query = text_of(row, "query")
        if "type" in row:
            example.type = choice_of(row, "type", PAIR_TYPES)
            example.expected = "refuse" if example.type in REFUSED_TYPES else "answer"
        if "expected" in row:
            example.expected = choice_of(row, "expected", EXPECTED)
        _label(example, row, mapping)

    rows = examples_of(table.rows, fill)
    labelled, asked = (any(getattr(one, key) is not None for one in rows) for key in ("unsafe", "query"))
    return Benchmark(
        name="jsonl",
        split=None,
        has_picture_labels=labelled,
        has_queries=asked,
        directions={**(GUARD_DIRECTIONS if labelled else {}), **(ATTACK_DIRECTIONS if asked else {})},
        examples=Examples(rows),
        root=table.root,
        **FACTS,
    )


def _label(example, row, mapping):
    unsafe = flag_of(row, "unsafe") if "unsafe" in row else None
    if "category" not in row:
        example.unsafe, example.category = unsafe, mapping.safe if unsafe is False else None
        return
    mapping.label(example, text_of(row, "category"))
    if unsafe is not None and unsafe != example.unsafe:
        raise BadRow(f"has unsafe {str(unsafe).lower()}, but the category {row['category']!r}")
