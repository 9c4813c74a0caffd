"""Files and folders that are whole whenever they are there."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path


def write_json(file, fields):
    """Writes a JSON file that is whole whenever it is there.

    Args:
        file (`Path`)
        fields (`dict`)
    """
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, file)


@contextmanager
def replaced(file):
    """Gives a path to write to, which becomes `file` when all is written and on the disk, and is removed if not.

    Args:
        file (`Path`): may exist, and then stays as it is until it is replaced.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        yield partial
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_or_nothing(out):
    """Gives a folder to write to, which becomes `out` when all is written, and is removed if that fails.

    Args:
        out (`Path`): a folder that does not exist, or is empty.

    Raises:
        ValueError: if another process writes to `out`, or was killed while it did.
    """
    folder = Path(out).with_name(f".{out.name}.partial")
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise ValueError(
            f"{folder} is what a killed process has left of {out}, unless one is still writing it: remove that folder "
            "and try again"
        ) from error
    try:
        yield folder
        if out.exists():
            out.rmdir()  # it is empty, and Windows does not rename onto a folder
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
