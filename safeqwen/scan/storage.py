"""
Pictures in cloud storage, and in whatever else pyarrow's file systems reach by a URI.

`s3://`, `gs://`, `abfss://` and `hdfs://` are pyarrow's own; `hf://datasets/...` and `fsspec+NAME://` are fsspec's.
Keys and regions are looked for where each file system looks for them, such as in the environment.

In a folder the name of a file says whether it is a picture: to look at first bytes would be a request each. Tar, zip,
Parquet and lists are not opened there; each is an error that says so.

What hangs is given up where pyarrow takes a limit: s3:// after three tries of `STALLED_S`; gs:// at the end of the try
within which that much has passed, which by itself takes up to two minutes. Others have the limits of their libraries.
"""

import re
from datetime import timedelta
from functools import partial
from urllib.parse import quote, urlsplit

from safeqwen.pictures.errors import UnreadableImage, check_bytes, one_line, without_secrets
from safeqwen.pictures.source import MAX_BYTES
from safeqwen.scan import INSTALL


# The host of any other URI, or of one with a query, may be whatever who wrote it chose.
PUBLIC = ("s3", "gs", "gcs", "hf")
STALLED_S = 10.0  # seconds without a byte
SECRETS = re.compile(r"[?&](client_secret|sig)=", re.IGNORECASE)  # of Azure


def is_storage(source):
    """Whether a source (`str`) is a URI of such a file system (`bool`)."""
    scheme = re.match(r"([a-z][a-z0-9+.-]*)://", source, re.IGNORECASE)
    return scheme is not None and scheme[1].lower() not in ("http", "https", "file")


def check_storage(uri, is_source=True):
    """
    Raises a `ValueError` if a file system does not answer or is not known, if the URI holds a password, or if there is
    nothing at the URI of a source.
    """
    if not is_storage(uri):
        raise ValueError(f"expected a URI of cloud storage, such as s3://bucket/rows.parquet, got {uri}")
    if urlsplit(uri).password is not None or SECRETS.search(uri):
        raise ValueError(f"{without_secrets(uri)}: give keys by the environment; a URI is written into the rows")
    _, _, info = _opened(uri)
    if is_source and info.type.name == "NotFound":
        raise ValueError(f"there is no {uri}; check the URI")


def storage_files(uri):
    """
    Yields `(id, load, stamp, name)` for each file of a folder, and of the folders in it, or for the file at a URI.

    `load()` returns the file's `bytes`, or raises an [`UnreadableImage`]; it can be sent to another process.
    """
    from pyarrow.fs import FileSelector

    files, path, info = _opened(uri)
    if info.type.name != "Directory":
        yield uri, partial(_read, files, path, uri), _stamp(files, info), info.base_name
        return
    base, _, query = uri.partition("?")
    unchanged = files.type_name.startswith("py::")  # fsspec takes a URI's path as it stands
    for info in sorted(files.get_file_info(FileSelector(path, recursive=True)), key=lambda info: info.path):
        if info.type.name != "File":
            continue
        inside = info.path[len(path.rstrip("/")) :]
        id = base.rstrip("/") + (inside if unchanged else quote(inside)) + (query and f"?{query}")
        yield id, partial(_read, files, info.path, id), _stamp(files, info), info.base_name


def read_storage(uri, private_networks=False):
    """
    Returns the `bytes` of the file at a URI that a list, a row or an id names.

    Args:
        uri (`str`)
        private_networks (`bool`): whether it may lead to a host of its own choice.

    Raises:
        UnreadableImage: if it cannot be read, or may lead inside a private network.
    """
    if not private_networks and (uri.partition("://")[0] not in PUBLIC or "?" in uri or "::" in uri):
        raise UnreadableImage(
            f"{without_secrets(uri)}: may lead inside a private network; name s3://, gs:// or hf:// without a query, "
            "or allow it with private_networks=True (--private-networks)"
        )
    try:
        files, path, _ = _opened(uri)
    except ValueError as error:
        raise UnreadableImage(str(error)) from None
    return _read(files, path, uri)


def upload(path, uri):
    """
    Copies a file (`Path`) to a URI, where it replaces what is there.

    Raises:
        OSError: if it cannot be written.
    """
    from pyarrow.fs import LocalFileSystem, copy_files

    files, target, _ = _opened(uri)
    copy_files(str(path.absolute()), target, source_filesystem=LocalFileSystem(), destination_filesystem=files)


def _opened(uri):
    """The file system of a URI, the path in it, and what is there."""
    try:
        import pyarrow
        from pyarrow.fs import FileSystem
    except ModuleNotFoundError as error:
        raise ImportError(f"{uri} needs {error.name}: {INSTALL}") from error
    try:
        files, path = FileSystem.from_uri(uri)
        files = _limited(files)
        return files, path, files.get_file_info(path)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        shown = without_secrets(uri)
        reason = one_line(str(error).replace(uri, shown))  # pyarrow repeats a URI with its keys
        raise ValueError(f"{shown}: cannot be opened ({reason})") from None


def _limited(files):
    """The file system with limits of time. By itself it tries ten times (s3), or for a quarter of an hour (gs)."""
    limits = {
        "s3": {"connect_timeout": STALLED_S, "request_timeout": STALLED_S},
        "gcs": {"retry_time_limit": timedelta(seconds=STALLED_S)},
    }
    if files.type_name not in limits:
        return files
    opened, (settings,) = files.__reduce__()  # from_uri takes no limits, and only pickle tells what it found
    return opened({**settings, **limits[files.type_name]})


def _read(files, path, id):
    import pyarrow

    try:
        with files.open_input_file(path) as file:
            check_bytes(file.size(), id, MAX_BYTES)
            return file.read()
    except (OSError, pyarrow.ArrowException) as error:
        raise UnreadableImage(f"{id}: cannot be read ({one_line(error)})") from None


def _stamp(files, info):
    if info.mtime is None and hasattr(files, "handler"):  # fsspec's have times, sums or commits under various names
        return files.handler.fs.ukey(info.path)
    return f"{info.size}:{info.mtime_ns}"
