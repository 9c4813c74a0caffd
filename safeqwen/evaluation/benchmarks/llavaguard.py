"""LlavaGuard: pictures rated by people under a policy of nine categories.

    DATA/test.csv                 id,url,rating,category,rationale,policy    rating Safe or Unsafe
    DATA/images/37.jpg            named as the last part of the row's url, or as the row's `image`, if it has one

or the same rows as a dataset with the pictures in `image`. The dataset publishes addresses, not pictures; download
them first. A row whose id ends in _v1 to _v5 is rated under a policy that was rewritten to allow or forbid a category.
The guard reads no policy, so such a row has no label here (its rating stays in the metadata).

Looked up in ml-research/LlavaGuard: README.md (ratings and categories), llavaguard/data/build_dataset.py and
llavaguard/taxonomy/augmentation.py (ids of rewritten policies; no row is unsafe without a category). The columns are
those that public readers of AIML-TUDA/LlavaGuard's test.csv use; where pictures lie is no one's convention, images/ is
ours.
"""

import re
from urllib.parse import unquote, urlsplit

from safeqwen.data.sources import BadRow
from safeqwen.evaluation.benchmarks.benchmark import (
    GUARD_DIRECTIONS,
    Benchmark,
    Examples,
    choice_of,
    examples_of,
    id_of,
    text_of,
)
from safeqwen.evaluation.benchmarks.mapping import read_mapping
from safeqwen.evaluation.benchmarks.tables import open_table


FACTS = {
    "title": "LlavaGuard",
    "version": "arXiv 2406.05113v3",
    "source": "Helff et al., arXiv 2406.05113; AIML-TUDA/LlavaGuard on the Hub, ml-research/LlavaGuard on GitHub",
    "licence": "annotations Apache-2.0; the pictures (SMID and the web) under their own terms",
    "label_rule": (
        "A picture is unsafe if rating is Unsafe under the default policy; rows under a rewritten policy (id ends in "
        "_v1 to _v5) have no label."
    ),
    "has_picture_labels": True,
    "has_queries": False,
    "directions": GUARD_DIRECTIONS,
    "num_rows_published": None,
}

REWRITTEN = re.compile(r"_v[1-5](_[a-z])?$")


def load(data, *, mapping=None, split=None, categories):
    """Returns the [`Benchmark`]; see `load_benchmark`."""
    mapping, part = read_mapping("llavaguard", mapping, categories), split or "test"
    table = open_table(data, FACTS["title"], file=f"{part}.csv", pictures="images", default=part, split=split)
    urls = {}  # file name -> the addresses that end in it
    for _, row in table.rows:
        if isinstance(row, dict) and isinstance(row.get("url"), str) and not row.get("image"):
            urls.setdefault(_file_name(row["url"]), set()).add(row["url"])

    def fill(example, row):
        example.id = id_of(row, "id")
        example.metadata = {key: row.get(key) for key in ("rating", "rationale") if row.get(key)}
        picture = row.get("image")
        if not picture:
            picture = _file_name(text_of(row, "url"))
            if len(urls[picture]) > 1:
                raise BadRow(f"has a url that ends in {picture}, as another one does: which of them is the file?")
        table.place(example, picture)
        unsafe, theirs = choice_of(row, "rating", ("Safe", "Unsafe")) == "Unsafe", text_of(row, "category")
        if REWRITTEN.search(example.id):
            example.metadata |= {"category": theirs, "policy": "rewritten"}
        else:
            mapping.label(example, theirs, unsafe=unsafe)

    return Benchmark(
        name="llavaguard",
        split=part,
        examples=Examples(examples_of(table.rows, fill)),
        root=table.root,
        **FACTS,
    )


def _file_name(url):
    return unquote(urlsplit(url).path).rsplit("/", 1)[-1]
