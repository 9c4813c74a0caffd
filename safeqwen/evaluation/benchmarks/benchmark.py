"""What a benchmark is: the facts that its figures need beside them, and its rows as [`Example`]s."""

import json
import os
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from safeqwen.data.sources import BadRow, Cell
from safeqwen.evaluation.benchmarks.mapping import hint
from safeqwen.evaluation.rows import Example


GUARD_DIRECTIONS = {
    **dict.fromkeys(
        "auroc auprc f1 balanced_accuracy recall_at_1_fpr recall_at_5_fpr precision recall top1 f1_micro "
        "f1_macro".split(),
        "higher",
    ),
    **dict.fromkeys(["false_positive_rate", "ece", "brier"], "lower"),
}
"""Which way each figure of a guard is better."""

ATTACK_DIRECTIONS = {"attack_success_rate": "lower"}
"""The same of answers, where every question should be refused."""

EXPECTED = ("refuse", "answer")


@dataclass(frozen=True)
class Benchmark:
    """
    A benchmark that has been read.

    Args:
        name (`str`): as on the command line.
        title (`str`): as its authors write it.
        version, source, licence (`str`): of the data; the source names paper and repository.
        split (`str`, *optional*): of the rows that were read; `None` if the benchmark has no splits.
        label_rule (`str`): in words, what makes a picture unsafe here, and which answer is expected.
        has_picture_labels (`bool`): `False`: the benchmark measures answers alone.
        has_queries (`bool`): whether the rows have questions.
        directions (`dict[str, str]`): figure -> "higher" or "lower", whichever is better.
        num_rows_published (`dict[str, int]`, *optional*): where -> how many rows the authors say there are.
        examples ([`Examples`]): the rows.
        root (`Path`, *optional*): the folder that each `image_name` is relative to; `None` for rows of a dataset.
    """

    name: str
    title: str
    version: str
    source: str
    licence: str
    split: str | None
    label_rule: str
    has_picture_labels: bool
    has_queries: bool
    directions: dict
    num_rows_published: dict | None
    examples: object = field(repr=False)
    root: Path | None = None

    def facts(self):
        """Returns what can be written beside a figure (`dict` for JSON): all but the rows and where they lie."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("examples", "root")}


class Examples:
    """
    The rows of a benchmark, which can be counted, and gone through as often as one likes.

    Pictures in a dataset are read when their row comes, so that no more than one is held. A row with the id of an
    earlier one is an error, under `id#2`.

    Args:
        examples (iterable of [`Example`])
    """

    def __init__(self, examples):
        self._examples = _with_own_ids(list(examples))

    def __len__(self):
        return len(self._examples)

    def __iter__(self):
        return map(_ready, self._examples)

    def unread(self):
        """Returns the rows (`list[Example]`) with `Cell`s for the pictures in a dataset, none of them read."""
        return self._examples


def _with_own_ids(examples):
    counts, ids, own = Counter(), {example.id for example in examples}, []
    for example in examples:
        counts[example.id] += 1
        if counts[example.id] > 1:
            error = example.error or f"has the id {example.id!r} of an earlier row; give each row its own"
            new = f"{example.id}#{counts[example.id]}"
            while new in ids:
                counts[example.id] += 1
                new = f"{example.id}#{counts[example.id]}"
            ids.add(new)
            example = replace(example, id=new, image=None, error=error)
        own.append(example)
    return own


def _ready(example):
    """A copy of an example, with the picture itself if that lies in a dataset."""
    example = replace(example, metadata=dict(example.metadata))
    if isinstance(example.image, Cell):
        cell, picture = example.image, example.image.read()
        if isinstance(picture, dict):  # the Image feature, not decoded
            data, path = picture.get("bytes"), picture.get("path")
            picture = data if data else path and Path(path)
        example.image = picture
        if not picture:
            example.image, example.error = None, f"row {cell.row + 1}: has no picture in {cell.column!r}"
        elif isinstance(picture, Path) and not os.path.isfile(picture):
            # Its name alone: rows are published, and the folders of a machine are not.
            example.image, example.error = None, f"row {cell.row + 1}: there is no file {picture.name!r}"
    return example


def examples_of(rows, fill):
    """
    Returns an example (`list[Example]`) for each row, one with an `error` for a row that cannot be used.

    Args:
        rows (`list[tuple[str, dict]]`): ("row 7", the row). A `BadRow` in the row's place says what is wrong with it.
        fill (callable): called with an example that has an id alone and the row; sets the other fields, or raises
            `BadRow`.
    """
    examples = []
    for where, row in rows:
        example = Example(id=where)
        try:
            if isinstance(row, BadRow):
                raise row
            if not isinstance(row, dict):
                raise BadRow(f"must be an object, got {type(row).__name__}")
            fill(example, row)
        except BadRow as error:
            example.image, example.error = None, f"{where}: {error}"
        # It is for people to read: a NaN in it becomes null, and a date its text, so that it can be written.
        text = json.dumps(example.metadata, default=str)
        example.metadata = json.loads(text, parse_constant=lambda _: None)
        examples.append(example)
    return examples


def id_of(row, key):
    """Returns the id (`str`) in a field that holds a text or a whole number, or raises `BadRow`."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise BadRow(f"has no {key!r}, expected a text or a whole number, got {value!r}")
    return _writable(str(value), key)


def text_of(row, key):
    """Returns the text in a field, or raises `BadRow` if there is none."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"has no {key!r}, expected a text, got {value!r}")
    return _writable(value, key)


def _writable(text, key):
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"has in {key!r} half of a character ({error.reason}), which no file can hold") from error
    return text


def choice_of(row, key, known):
    """Returns the text in a field if it is one of `known`, or raises `BadRow` with the nearest."""
    value = row.get(key)
    if not isinstance(value, str) or value not in known:
        raise BadRow(f"has {value!r} as {key!r}; {hint(value, known)}")
    return value


def flag_of(row, key):
    """Returns the truth in a field, or raises `BadRow` if that is neither true nor false."""
    value = row.get(key)
    if not isinstance(value, bool):
        raise BadRow(f"has {value!r} as {key!r}; expected true or false")
    return value
