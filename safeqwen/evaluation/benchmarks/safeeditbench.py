"""SafeEditBench: unsafe pictures and their harmless edits, labelled under five invented policies.

A dataset with the columns `image, image_path, safety_label, policy_name, policy`, as the Hub's data/test-*.parquet has
them: `safety_label` is safe or unsafe, `policy_name` is Policy L1 (nearly all is allowed) to L5 (nearly nothing is). A
picture has a row for each policy, and its labels differ. The guard reads no policy, so a figure over all rows would
ask for one verdict under five rules: the rows of one policy are read, which `--split "Policy L3"` names.

Looked up in the dataset's card (columns, splits, numbers) and in adorableChowhound/SafeGuard-VL
(eval/safeeditbench.py).
"""

from safeqwen.evaluation.benchmarks.benchmark import (
    GUARD_DIRECTIONS,
    Benchmark,
    Examples,
    choice_of,
    examples_of,
)
from safeqwen.evaluation.benchmarks.tables import open_table
from safeqwen.judging.verdict import SAFE


FACTS = {
    "title": "SafeEditBench",
    "version": "arXiv 2603.01228",
    "source": "Piao et al., arXiv 2603.01228; tyodd/SafeEditBench on the Hub",
    "licence": "CC-BY-4.0, access on request",
    "label_rule": (
        "A picture is unsafe if safety_label is unsafe under the policy that is named as the split; the five policies "
        "contradict each other."
    ),
    "has_picture_labels": True,
    "has_queries": False,
    "directions": GUARD_DIRECTIONS,
    "num_rows_published": {"of all policies": 601},
}

POLICIES = tuple(f"Policy L{level}" for level in range(1, 6))


def load(data, *, mapping=None, split=None, categories):
    """Returns the [`Benchmark`]; see `load_benchmark`."""
    if mapping is not None:
        raise ValueError("SafeEditBench labels pictures safe or unsafe, without categories: there is nothing to map")
    if split not in POLICIES:
        got = "" if split is None else f", got {split!r}"
        raise ValueError(
            "SafeEditBench labels each picture under five policies that contradict each other, and the guard reads "
            f"none: name one of them as the split, {', '.join(map(repr, POLICIES))}{got}"
        )
    table = open_table(data, FACTS["title"], file=None, pictures="", default="test")
    # A row whose policy is unknown stays, and is an error.
    others = [name for name in POLICIES if name != split]
    rows = [(where, row) for where, row in table.rows if row.get("policy_name") not in others]

    def fill(example, row):
        table.place(example, row.get("image"))
        if isinstance(row.get("image_path"), str):
            example.image_name = row["image_path"]
        policy = choice_of(row, "policy_name", POLICIES)
        example.metadata = {"policy_name": policy, "policy": row.get("policy")}
        example.unsafe = choice_of(row, "safety_label", ("safe", "unsafe")) == "unsafe"
        example.category = SAFE if not example.unsafe and SAFE in categories else None

    return Benchmark(
        name="safeeditbench",
        split=split,
        examples=Examples(examples_of(rows, fill)),
        root=table.root,
        **FACTS,
    )
