"""SafeEditBench: unsafe pictures and their harmless edits, labelled under five invented policies.

A dataset with the columns `image, image_path, safety_label, policy_name, policy`, as the Hub's data/test-*.parquet has
them: `safety_label` is safe or unsafe, `policy_name` is Policy L1 (nearly all is allowed) to L5 (nearly nothing is). A
picture has a row for each policy, and its labels differ. The guard reads no policy: a figure over all rows asks for
one verdict under five rules, so read it by `policy_name`, which is in each row's metadata.

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
        "A picture is unsafe under a policy if safety_label is unsafe. It has a row for each of five policies, which "
        "contradict each other; read the figures by policy_name."
    ),
    "has_picture_labels": True,
    "has_queries": False,
    "directions": GUARD_DIRECTIONS,
    "num_rows_published": {"test": 601},
}

POLICIES = tuple(f"Policy L{level}" for level in range(1, 6))


def load(data, *, mapping=None, split=None, categories):
    """Returns the [`Benchmark`]; see `load_benchmark`."""
    if mapping is not None:
        raise ValueError("SafeEditBench labels pictures safe or unsafe, without categories: there is nothing to map")
    table = open_table(data, FACTS["title"], file=None, pictures="", default="test", split=split)

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
        split=table.split,
        examples=Examples(examples_of(table.rows, fill)),
        root=table.root,
        **FACTS,
    )
