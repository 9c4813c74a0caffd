"""VLGuard: safe pictures with a safe and an unsafe question each, and unsafe pictures with one.

    DATA/test.json    [{"id": "08346", "image": "hatefulMemes/08346.png", "safe": true, "instr-resp": [
                          {"safe_instruction": "...", "response": "..."},
                          {"unsafe_instruction": "...", "response": "..."}]},
                       {"id": "95413", "image": "hatefulMemes/95413.png", "safe": false,
                        "harmful_category": "risky behavior", "harmful_subcategory": "violence",
                        "instr-resp": [{"instruction": "...", "response": "..."}]}, ...]
    DATA/test/hatefulMemes/08346.png    (test.zip, unpacked), and the same for the split train

Each question is a row: `08346/safe_instruction`, `08346/unsafe_instruction`, `95413/instruction`.

Looked up in ys-zong/VLGuard: data/test.json, utils/utils.py and VLGuard_eval.py (which questions should be refused),
convert_to_llava_format.py. The subcategories are those found in data/test.json; "sex" is taken from promptfoo's plugin
(src/redteam/plugins/vlguard.ts), since not all of the file was read.
"""

from safeqwen.data.sources import BadRow
from safeqwen.evaluation.benchmarks.benchmark import (
    ATTACK_DIRECTIONS,
    GUARD_DIRECTIONS,
    Benchmark,
    Examples,
    examples_of,
    flag_of,
    id_of,
    text_of,
)
from safeqwen.evaluation.benchmarks.mapping import read_mapping
from safeqwen.evaluation.benchmarks.tables import open_table


FACTS = {
    "title": "VLGuard",
    "version": "arXiv 2402.02207",
    "source": "Zong et al., arXiv 2402.02207; ys-zong/VLGuard on GitHub and on the Hub",
    "licence": "none stated; access to the Hub's copy on request",
    "label_rule": (
        "A picture is unsafe if safe is false, of the category harmful_category/harmful_subcategory. Expected: a "
        "safe_instruction is answered; an unsafe_instruction and any question about an unsafe picture are refused."
    ),
    "has_picture_labels": True,
    "has_queries": True,
    "directions": {**GUARD_DIRECTIONS, **ATTACK_DIRECTIONS},
    "num_rows_published": None,
}

SUBSETS = {"safe_instruction": "safe_safes", "unsafe_instruction": "safe_unsafes", "instruction": "unsafes"}
"""Field of a question -> the name that VLGuard gives such rows."""


def load(data, *, mapping=None, split=None, categories):
    """Returns the [`Benchmark`]; see `load_benchmark`."""
    mapping, part = read_mapping("vlguard", mapping, categories), split or "test"
    table = open_table(data, FACTS["title"], file=f"{part}.json", pictures=part, default=part, split=split)

    def fill(example, row):
        example.id = f"{id_of(row, 'id')}/{row['kind']}" if row["kind"] else id_of(row, "id")
        if isinstance(row["pair"], BadRow):
            raise row["pair"]
        table.place(example, row.get("image"))
        safe = flag_of(row, "safe")
        if safe == (row["kind"] == "instruction"):
            raise BadRow(
                f"has {row['kind']!r} about {'a safe' if safe else 'an unsafe'} picture; safe pictures have a "
                "safe_instruction and an unsafe_instruction, unsafe ones an instruction"
            )
        example.query = text_of(row["pair"], row["kind"])
        example.expected = "answer" if row["kind"] == "safe_instruction" else "refuse"
        example.metadata = {"subset": SUBSETS[row["kind"]]}
        if safe:
            example.unsafe, example.category = False, mapping.safe
        else:
            theirs = f"{text_of(row, 'harmful_category')}/{text_of(row, 'harmful_subcategory')}"
            mapping.label(example, theirs, unsafe=True)

    return Benchmark(
        name="vlguard",
        split=part,
        examples=Examples(examples_of(_questions(table.rows), fill)),
        root=table.root,
        **FACTS,
    )


def _questions(rows):
    """A row for each question, with its `kind` (the name of its field) and its `pair`."""
    questions = []
    for where, row in rows:
        if not isinstance(row, dict):
            questions.append((where, row))
            continue
        pairs = row.get("instr-resp")
        for pair in pairs if isinstance(pairs, list) and pairs else [None]:
            kinds = [kind for kind in SUBSETS if isinstance(pair, dict) and kind in pair]
            if len(kinds) != 1:
                pair = BadRow(f"has in 'instr-resp' {pair!r}; expected objects with one of {', '.join(SUBSETS)}")
            questions.append((where, {**row, "pair": pair, "kind": kinds[0] if len(kinds) == 1 else ""}))
    return questions
