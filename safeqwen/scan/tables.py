"""The pictures in a column: of JSONL, of Parquet, of a dataset that `Dataset.save_to_disk` wrote."""

import hashlib
import json
import os
import threading
from functools import partial

from safeqwen.pictures.errors import UnreadableImage, one_line
from safeqwen.scan import INSTALL
from safeqwen.scan.sources import MEMBER, Place, broken, is_url, stamp_of, text_of


BATCH_SIZE = 16  # rows of Parquet that are read together
KEPT = 256  # rows of Parquet behind the last one that are still to be had


def jsonl_places(path, access):
    """
    Yields a [`Place`] for each picture that a JSONL file names, and one for each line that names none.

    Args:
        path (`str`)
        access ([`Access`]): paths count from the file's folder.
    """
    file, folder = text_of(path), os.path.dirname(path)
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                id = f"{file}{MEMBER}{number}"
                try:
                    row = json.loads(line)
                    value = _cell(row, access)
                except (ValueError, RecursionError) as error:  # no UTF-8, no JSON or one that is too deep, no column
                    yield broken(id, f"is no row with a picture ({one_line(error)})")
                    continue
                yield from _places(id, value, folder, access)
    except OSError as error:
        yield broken(file, f"cannot be read ({error.strerror})")


def _cell(row, access):
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    for column in access.columns():
        if column in row:
            return row[column]
    raise ValueError(f"there is no {' or '.join(access.columns())!r} among {', '.join(row) or 'nothing'}")


def _places(id, value, folder, access, stamp=None):
    """Of what one row holds: a picture, or a list of them."""
    if not isinstance(value, (list, tuple)):
        yield _place(id, value, folder, access, stamp)
        return
    if not value:
        yield broken(id, "names no picture: its list is empty", stamp)
    for number, one in enumerate(value, start=1):
        yield _place(f"{id}{MEMBER}{number}", one, folder, access, stamp)


def _place(id, value, folder, access, stamp):
    if stamp is None:  # of a line that names a file: what it names, and that file
        stamp = hashlib.sha256(repr(value).encode("utf-8", "backslashreplace")).hexdigest()
        path = value.get("path") if isinstance(value, dict) else value
        if isinstance(path, str) and not is_url(path) and len(path) < 4096:
            try:
                stamp += stamp_of(os.stat(os.path.join(folder, path)))
            except (OSError, ValueError):
                pass  # loading it says why
    return Place(id, partial(access.bytes_of, value, folder, id), stamp)


# ------------------------------------------------------------------------------------------------------------- Parquet


def parquet_places(path, access):
    """
    Yields a [`Place`] for each picture in a Parquet file, or one that says why it has none.

    Pictures are read when they are asked for; of a column of lists with the rows.

    Args:
        path (`str`)
        access ([`Access`]): paths count from the file's folder.
    """
    id, folder = text_of(path), os.path.dirname(path)
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ImportError(f"{id}: Parquet needs {error.name}: {INSTALL}") from error
    try:
        stamp = stamp_of(os.stat(path))
        file = parquet.ParquetFile(path)
        schema = file.schema_arrow
        column = next((name for name in access.columns() if name in schema.names), None)
        if column is None:
            raise ValueError(f"there is no column {' or '.join(access.columns())} among {', '.join(schema.names)}")
        kind, number = schema.field(column).type, 0
        is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
        for group in range(file.num_row_groups):
            rows = _RowGroup(path, column, group)
            for i in range(file.metadata.row_group(group).num_rows):
                number += 1
                here = f"{id}{MEMBER}{number}"
                if is_list:
                    yield from _places(here, rows.get(i), folder, access, stamp)
                else:
                    yield Place(here, _Row(rows, i, folder, access, here), stamp)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        yield broken(id, f"cannot be read as Parquet ({one_line(error)}); get it anew, or give --column")


class _RowGroup:
    """The cells of a row group's column, read as far as they are asked for, in about their order."""

    def __init__(self, path, column, group):
        self.path, self.column, self.group = path, column, group
        self.lock, self.cells, self.num_read, self.batches = threading.Lock(), {}, 0, None

    def __reduce__(self):  # another process reads it anew
        return _RowGroup, (self.path, self.column, self.group)

    def get(self, i):
        """What cell `i` holds. It is given once; one that lies far behind the last is not there any more."""
        with self.lock:
            while self.num_read <= i:
                if self.batches is None:
                    from pyarrow import parquet

                    file = parquet.ParquetFile(self.path)
                    self.batches = file.iter_batches(BATCH_SIZE, row_groups=[self.group], columns=[self.column])
                if (batch := next(self.batches, None)) is None:
                    raise OSError("it has fewer rows than it says")
                for cell in batch.column(0):
                    self.cells[self.num_read] = cell
                    self.num_read += 1
                for old in [number for number in self.cells if number < self.num_read - BATCH_SIZE - KEPT]:
                    del self.cells[old]
            return self.cells.pop(i).as_py()


class _Row:
    """Loads the picture of one row of Parquet."""

    def __init__(self, rows, i, folder, access, id):
        self.rows, self.i, self.folder, self.access, self.id = rows, i, folder, access, id

    def __call__(self):
        import pyarrow

        try:
            value = self.rows.get(self.i)
        except (pyarrow.ArrowException, OSError) as error:
            raise UnreadableImage(f"{self.id}: cannot be read ({one_line(error)}); get the file anew") from None
        return self.access.bytes_of(value, self.folder, self.id)


# ------------------------------------------------------------------------------------------------------------ datasets


def dataset_places(path, access):
    """
    Yields a [`Place`] for each picture of a dataset in a folder, of all its splits.

    Args:
        path (`str`): that `save_to_disk` of a `Dataset` or `DatasetDict` wrote.
        access ([`Access`])
    """
    id = text_of(path)
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ImportError(f"{id}: a dataset needs {error.name}: {INSTALL}") from error
    try:
        loaded = datasets.load_from_disk(path)
    except Exception as error:  # of whatever kind the library raises
        yield broken(id, f"cannot be loaded as a dataset ({one_line(error)}); save it anew")
        return
    splits = loaded.items() if isinstance(loaded, datasets.DatasetDict) else [(None, loaded)]
    for split, dataset in splits:
        here = id if split is None else f"{id}{MEMBER}{split}"
        stamp = stamp_of(os.stat(os.path.join(path, split or "", "state.json")))
        column = next((name for name in access.columns() if name in dataset.column_names), None)
        if column is None:
            columns, found = " or ".join(access.columns()), ", ".join(dataset.column_names)
            yield broken(here, f"there is no column {columns} among {found}: give --column")
            continue
        dataset = _undecoded(dataset.select_columns(column).with_format(None), column, datasets)
        is_list = isinstance(dataset.features[column], (list, datasets.LargeList, datasets.List))
        for i in range(len(dataset)):
            cell = f"{here}{MEMBER}{i + 1}"
            if is_list:
                yield from _places(cell, dataset[i][column], path, access, stamp)
            else:
                yield Place(cell, _Cell(dataset, i, column, path, access, cell), stamp)


def _undecoded(dataset, column, datasets):
    """The dataset with its pictures as bytes: `decode` of safeqwen.pictures is the only reader."""
    feature, raw = dataset.features[column], datasets.Image(decode=False)
    if isinstance(feature, datasets.Image):
        return dataset.cast_column(column, raw)
    if isinstance(getattr(feature, "feature", None), datasets.Image):
        return dataset.cast_column(column, datasets.List(raw))
    return dataset


class _Cell:
    """Loads the picture of one row of a dataset."""

    def __init__(self, dataset, i, column, folder, access, id):
        self.dataset, self.i, self.column = dataset, i, column
        self.folder, self.access, self.id = folder, access, id

    def __call__(self):
        try:
            value = self.dataset[self.i][self.column]
        except Exception as error:  # of whatever kind the library raises
            raise UnreadableImage(f"{self.id}: cannot be read ({one_line(error)}); save the dataset anew") from None
        return self.access.bytes_of(value, self.folder, self.id)
