"""A folder a class: one's own pictures, sorted.

    DATA/safe/street.jpg
    DATA/suicide/17.png
    DATA/gender/a/b.png       HoliSafe's other names count, and folders in a folder

The folders have the names of the model's categories, or of a mapping file's. Hidden files are left out, and links to
folders are errors.
"""

import os
from pathlib import Path

from safeqwen.data.sources import BadRow
from safeqwen.evaluation.benchmarks.benchmark import GUARD_DIRECTIONS, Benchmark, Examples, examples_of
from safeqwen.evaluation.benchmarks.mapping import identity, read_mapping
from safeqwen.evaluation.benchmarks.tables import Table, as_path


FACTS = {
    "title": "a folder a class",
    "version": "as it lies there",
    "source": "one's own",
    "licence": "one's own",
    "label_rule": "A picture is unsafe if its folder is any but the safe one's.",
    "has_picture_labels": True,
    "has_queries": False,
    "directions": GUARD_DIRECTIONS,
    "num_rows_published": None,
}


def load(data, *, mapping=None, split=None, categories):
    """Returns the [`Benchmark`]; see `load_benchmark`."""
    root = as_path(data, FACTS["title"])
    if not root.is_dir():
        raise ValueError(f"expected a folder with a folder for each class, such as {root / categories[0]}/1.png")
    if split is not None:
        raise ValueError(f"a folder has no splits; give the folder of {split!r} itself")
    mapping = identity(categories) if mapping is None else read_mapping("folder", mapping, categories)
    table = Table(_files(root), root=root)

    def fill(example, row):
        if row["link"]:
            raise BadRow("is a link to a folder, which is not followed; put the folder itself here")
        if example.id != row["image"]:
            raise BadRow("has a name that is not UTF-8; rename it")
        if "/" not in row["image"]:
            raise BadRow("lies in no class's folder; move it into one")
        table.place(example, row["image"])
        mapping.label(example, row["image"].split("/")[0])

    return Benchmark(
        name="folder",
        split=None,
        examples=Examples(examples_of(table.rows, fill)),
        root=root,
        **FACTS,
    )


def _files(root):
    found = []  # (file or link to a folder, whether it is a link)
    for folder, folders, files in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        names = [(name, False) for name in files if not name.startswith(".")] + [(name, True) for name in links]
        found += [(Path(folder, name).relative_to(root).as_posix(), link) for name, link in names]
    return [
        (name.encode("utf-8", "backslashreplace").decode(), {"image": name, "link": link})
        for name, link in sorted(found)
    ]


def _refuse(error):
    raise error
