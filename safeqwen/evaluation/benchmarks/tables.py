"""Where a benchmark's rows lie: JSON files beside folders of pictures, Parquet files, and Hugging Face datasets.

Nothing is downloaded: a name of a repository is no path.
"""

import csv
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from safeqwen.data.sources import BadRow, Cell, raw_rows, read_text
from safeqwen.evaluation import INSTALL


IMAGE = "image"  # the column of pictures in a dataset
PARQUET_NAME = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}")  # as the Hub writes them: test-00000-of-00002.parquet


@dataclass
class Table:
    """
    The rows of a benchmark as they come.

    Args:
        rows (`list[tuple[str, dict]]`): ("row 7", the row, or a `BadRow` in its place).
        split (`str`, *optional*): of a dataset.
        root (`Path`, *optional*): the benchmark's folder, if the pictures are files of it.
        pictures (`str`): the folder in `root` that the rows count from.
    """

    rows: list
    split: str | None = None
    root: Path | None = None
    pictures: str = ""

    def place(self, example, picture):
        """
        Sets `image` and `image_name` of an example from what its row has as picture.

        Raises:
            BadRow: if there is no picture, no such file, or one outside of the folder of pictures.
        """
        if isinstance(picture, Cell):
            example.image = picture
            return
        if not isinstance(picture, str) or not picture:
            raise BadRow(f"has no picture, expected the path of a file, got {picture!r}")
        if self.root is None:
            raise BadRow(f"names a file, {picture!r}, where the dataset should hold the picture itself")
        # Not followed through links: in the Hub's cache each file is a link to another folder.
        folder = os.path.abspath(os.path.join(self.root, self.pictures))
        path = os.path.abspath(os.path.join(folder, picture))
        if not path.startswith(os.path.join(folder, "")):
            within = self.pictures or "the benchmark's folder"
            name = os.path.basename(picture) if os.path.isabs(picture) else picture
            raise BadRow(f"has the picture {name!r}, which lies outside of {within}; it is not opened")
        example.image_name = Path(os.path.relpath(path, self.root)).as_posix()
        if not os.path.isfile(path):
            raise BadRow(f"there is no file {example.image_name} in the benchmark's folder")
        example.image = Path(path)


def as_path(data, title):
    """Returns the `Path` of data that can only be files, or raises `ValueError` if they are anything else."""
    if not isinstance(data, (str, os.PathLike)):
        raise ValueError(f"{title}: expected a path, got {type(data).__name__}")
    return Path(data)


def open_table(data, title, *, file, pictures, default, split=None):
    """
    Returns the [`Table`] of a benchmark that is published as a file beside pictures, as a dataset, or as both.

    Args:
        data (`str`, `os.PathLike`, `datasets.Dataset` or `datasets.DatasetDict`): the benchmark's folder, or its file.
        title (`str`): of the benchmark, for messages.
        file (`str`, *optional*): the name of its `.json`, `.jsonl` or `.csv`. `None`: datasets alone.
        pictures (`str`): the name of the folder of pictures beside it.
        default (`str`): the split to read, which `file` holds.
        split (`str`, *optional*): the one that the user asks for.

    Raises:
        ValueError: if `data` has another layout (which file was expected where), or not the split.
        OSError: if a file cannot be read.
    """
    if not isinstance(data, (str, os.PathLike)):
        return dataset_table(data, title, default=default, split=split)
    path = Path(data)
    root = path.parent if path.is_file() else path
    wanted = None if file is None else root / file
    expected = f"Parquet files, or a folder that Dataset.save_to_disk wrote, at {path}"
    if wanted is not None:
        expected = f"{wanted} and the folder {root / pictures}, or {expected}"
    if not path.exists():
        raise ValueError(f"{title}: there is no {path}; expected {expected}")
    if wanted is not None and wanted.is_file() and path in (root, wanted):
        if not (root / pictures).is_dir():
            raise ValueError(f"{title}: {wanted} is there, but the folder of its pictures, {root / pictures}, is not")
        if split not in (None, default):
            raise ValueError(f"{title}: {wanted} does not tell splits, so {split!r} cannot be had of it")
        return file_table(wanted, root=root, pictures=pictures)
    if is_dataset(path):
        return dataset_table(path, title, default=default, split=split)
    raise ValueError(f"{title}: expected {expected}; {_found(path)}")


def _found(path):
    if path.is_file():
        return f"got the file {path.name}"
    names = sorted(entry.name for entry in path.iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"found {', '.join(names[:5])}{more}" if names else "the folder is empty"


def file_table(file, *, root, pictures=""):
    """Returns the [`Table`] of a `.json` file that holds a list, of a `.jsonl` or of a `.csv` file."""
    if file.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(read_text(file)), strict=True)
        rows = []
        try:
            for number, row in enumerate(reader, start=1):
                whole = None not in row and None not in row.values()
                rows.append((f"row {number}", row if whole else BadRow("has not as many fields as the first line")))
        except csv.Error as error:
            raise ValueError(f"{file} is no valid CSV (line {reader.line_num}: {error})") from error
        return Table(rows, root=root, pictures=pictures)
    unit = "line" if file.suffix.lower() == ".jsonl" else "row"
    rows = [(f"{unit} {number}", row) for number, row in raw_rows(str(file))[1]]
    return Table(rows, root=root, pictures=pictures)


def file_object(file):
    """Returns the object (`dict`) in a `.json` file, or raises `ValueError` if it holds anything else."""
    try:
        rows = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no valid JSON ({error})") from error
    if not isinstance(rows, dict):
        raise ValueError(f"{file} must hold an object, got {type(rows).__name__}")
    return rows


def is_dataset(path):
    """Whether a path is a Parquet file, or a folder of some or one that `save_to_disk` wrote."""
    if path.is_file():
        return path.suffix.lower() == ".parquet"
    return _is_saved(path) or any(path.rglob("*.parquet"))


def _is_saved(path):
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def dataset_table(data, title, *, default, split=None):
    """
    Returns the [`Table`] of a dataset: pictures in its column "image" as `Cell`s, class labels by their names.

    Args:
        data (`Path`, `datasets.Dataset` or `datasets.DatasetDict`): see `open_table`, also for the others.

    Raises:
        ImportError: if the library datasets is missing.
        ValueError: if there is no such split or column, or the dataset cannot be read.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{title}: rows of a dataset need the library datasets: {INSTALL}") from error
    wanted, name = split or default, data if isinstance(data, Path) else type(data).__name__
    try:
        if isinstance(data, Path):
            data = datasets.load_from_disk(data) if _is_saved(data) else _parquet(data, wanted)
        if isinstance(data, dict):  # a DatasetDict
            if wanted not in data:
                raise BadRow(f"has no split {wanted!r}, but {', '.join(data)}; name one with --split")
            data = data[wanted]
        if not isinstance(data, datasets.Dataset):
            raise BadRow("is no path and no datasets.Dataset; a stream is read with list(...) first")
        if split and data.split is not None and str(data.split) != split:
            raise BadRow(f"is the split {str(data.split)!r}, not {split!r}")
        if IMAGE not in data.column_names:
            raise BadRow(f"has no column {IMAGE!r}, but {', '.join(data.column_names)}")
        data = data.with_format(None)  # not as tensors
        if not isinstance(data.features[IMAGE], datasets.Value):
            data = data.cast_column(IMAGE, datasets.Image(decode=False))  # `read_image` is the only reader
    except BadRow as error:
        raise ValueError(f"{title}: {name} {error}") from error
    except Exception as error:  # of whatever kind the library raises
        raise ValueError(f"{title}: {name} cannot be read as a dataset: {error}") from error
    has_pictures = isinstance(data.features[IMAGE], datasets.Image)
    others = data.remove_columns([IMAGE]) if has_pictures else data
    classes = {key: one.names for key, one in others.features.items() if isinstance(one, datasets.ClassLabel)}
    rows = []
    for i in range(len(data)):
        row = others[i] if others.column_names else {}
        for key, names in classes.items():
            row[key] = names[row[key]] if row[key] is not None and row[key] >= 0 else None
        if has_pictures:
            row[IMAGE] = Cell(data, i, IMAGE)
        rows.append((f"row {i + 1}", row))
    return Table(rows, split=wanted if data.split is None else str(data.split))


def _parquet(path, wanted):
    """The dataset in a Parquet file, or in those of the wanted split in a folder."""
    import datasets

    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    splits = {file: _split_of(file) for file in files}
    if path.is_dir():
        files = [file for file in files if splits[file] == wanted]
        if not files:
            there = ", ".join(sorted(set(splits.values())))
            raise BadRow(f"has no Parquet file of the split {wanted!r}, but of {there}; name one with --split")
    name = splits[files[0]]
    return datasets.load_dataset("parquet", data_files={name: [str(file) for file in files]}, split=name)


def _split_of(file):
    """The split that a Parquet file is of: test-00000-of-00001.parquet, test.parquet or test/0000.parquet."""
    if match := PARQUET_NAME.fullmatch(file.stem):
        return match["split"]
    return file.stem if not file.stem.isdecimal() else file.parent.name
