"""Where rows come from: JSON and JSONL files, Hugging Face datasets, and the pictures that rows name."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from safeqwen.pictures import UnreadableImage, read_image


class BadRow(ValueError):
    """What is wrong with one row and what to do."""


@dataclass
class Cell:
    """A picture in a Hugging Face dataset, which stays there until it is needed."""

    dataset: object
    row: int
    column: str
    index: int | None = None  # in a column of lists

    def __str__(self):
        return f"{self.column!r} of row {self.row + 1}"

    def read(self):
        value = self.dataset[self.row][self.column]
        return value if self.index is None else value[self.index]


def load_picture(source):
    """
    Returns a still picture, an RGB `PIL.Image`.

    Raises:
        UnreadableImage: as `read_image`, and if the source is an animation.
    """
    frames = read_image(source.read() if isinstance(source, Cell) else source, one_paper=True)
    if len(frames) > 1:
        name = source if isinstance(source, (str, os.PathLike, Cell)) else f"<{type(source).__name__}>"
        raise UnreadableImage(f"{name}: is an animation; train on it as a video, or on its frames as pictures")
    return frames[0]


def read_text(path):
    """
    Returns the text of a UTF-8 file (`str`).

    Raises:
        OSError, ValueError: if the file is missing, cannot be read, or is not UTF-8; with a sentence, not a number.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise OSError(f"{path} cannot be read: {reason}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error


def raw_rows(source, split="train"):
    """
    Returns the rows of a source, unchecked: `(name, [(number, row or BadRow), ...])`.

    Args:
        source (`str`): a `.jsonl` file, a `.json` file that holds a list, a folder that `Dataset.save_to_disk` wrote,
            or what `datasets.load_dataset` takes.
        split (`str`): of a dataset with several.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a file is not UTF-8, a `.json` file is no list, or a dataset cannot be loaded.
    """
    suffix = Path(source).suffix.lower()
    if suffix == ".jsonl":
        lines = read_text(source).split("\n")
        return str(source), [(i, _parsed(line)) for i, line in enumerate(lines, start=1) if line.strip()]
    if suffix == ".json":
        rows = _parsed(read_text(source))
        if isinstance(rows, BadRow):
            raise ValueError(f"{source} {rows}; a file of one object a line is named .jsonl")
        if not isinstance(rows, list):
            raise ValueError(f"{source} must hold a list of rows, got {type(rows).__name__}")
        return str(source), list(enumerate(rows, start=1))
    return f"{source} ({split})", list(enumerate(_dataset_rows(source, split), start=1))


def _parsed(text):
    try:
        return json.loads(text)
    except ValueError as error:
        return BadRow(f"is no valid JSON ({error})")


def _dataset_rows(source, split):
    """The rows of a Hugging Face dataset (`dict`): its pictures as `Cell`s, its class labels by their names."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{source} is neither .json nor .jsonl, and other data need the library datasets: pip install datasets"
        ) from error
    if Path(source).is_file():
        raise ValueError(
            f"{source} is neither .json nor .jsonl; load it with the library datasets and name what save_to_disk wrote"
        )
    try:
        if Path(source, "state.json").exists() or Path(source, "dataset_dict.json").exists():
            dataset = datasets.load_from_disk(source)
        else:
            dataset = datasets.load_dataset(source, split=split)
    except Exception as error:  # of whatever kind the library raises
        raise ValueError(f"{source} is no file, and as a dataset it cannot be loaded: {error}") from error
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise ValueError(f"{source} has no split {split!r}, but {', '.join(dataset)}; name one of them")
        dataset = dataset[split]

    dataset = dataset.with_format(None)  # not as tensors
    pictures, classes = [], {}
    for column, feature in dataset.features.items():
        inner = getattr(feature, "feature", None)
        if isinstance(feature, datasets.ClassLabel):
            classes[column] = feature.names
        elif isinstance(feature, datasets.Image) or isinstance(inner, datasets.Image):
            raw = datasets.Image(decode=False)  # `read_image` is the only reader
            dataset = dataset.cast_column(column, datasets.List(raw) if inner else raw)
            pictures.append(column)
        elif isinstance(feature, datasets.Video) or isinstance(inner, datasets.Video):
            raise ValueError(f"{source} has videos in its column {column!r}; make it a column of paths to files")
    rows = []
    for i, row in enumerate(dataset):
        for column in pictures:
            if isinstance(row[column], list):
                row[column] = [Cell(dataset, i, column, k) for k in range(len(row[column]))]
            elif row[column] is not None:
                row[column] = Cell(dataset, i, column)
        for column, names in classes.items():  # a number in such a column is that of its own names, not of ours
            if row[column] is not None and row[column] >= 0:
                row[column] = names[row[column]]
        rows.append(row)
    return rows
