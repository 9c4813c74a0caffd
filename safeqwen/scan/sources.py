"""
Where the pictures of a scan are: folders, lists, and files that hold many pictures; one [`Place`] for each picture.

Nothing is read before it is asked for, and nothing that may be a picture is passed over in silence:

- In a folder (and in a tar or zip) a file is a picture if its name says so (`PICTURES`) or its first bytes do. Tar,
  zip and Parquet files in it are opened; lists and JSONL, which name pictures but hold none, are not. What else lies
  there is counted in `num_left_out`.
- What should be a picture and is none, or cannot be had, is a place whose `load` says why: a broken link, a pipe
  (which is never opened), a folder that may not be listed, an archive that ends early.
- A folder that is reached twice, through links, is walked once: loops end.
- The order is that of the names, so that it is the same at every start.
"""

import glob
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes, urlsplit

from safeqwen.pictures.decode import signature
from safeqwen.pictures.errors import UnreadableImage, printable
from safeqwen.pictures.source import read_path, read_text
from safeqwen.scan.storage import check_storage, is_storage, read_storage, storage_files


PICTURES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
    *(".heic", ".heif", ".jxl", ".jp2", ".ico", ".svg", ".psd", ".tga"),  # not read: each is an error that says so
)
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LISTS = (".txt", ".lst")
MEMBER = "::"  # between a file and what is in it, in an id
HEAD = 16  # bytes that tell a picture


@dataclass(frozen=True)
class Place:
    """
    Where one picture is.

    Args:
        id (`str`): unique in a scan; see `safeqwen.scan.rows`.
        load (callable): () -> the `bytes` of the picture's file. Raises an [`UnreadableImage`]. Called at most once,
            by any thread, and of the places of one file in about their order. It can be pickled: another process may
            load the picture.
        stamp (`str`, *optional*): size and times of the file, which change when the picture may have changed; `None`
            if nobody can tell.
    """

    id: str
    load: Callable
    stamp: str | None = None


@dataclass(frozen=True)
class Access:
    """
    How sources are read.

    Args:
        timeout_s (`float`): seconds for one URL.
        private_networks (`bool`): whether URLs, and URIs in lists and rows, may lead inside a private network.
        column (`str`, *optional*): of JSONL, Parquet and datasets. By default "image", else "images".
    """

    timeout_s: float = 10.0
    private_networks: bool = False
    column: str | None = None

    def columns(self):
        return ("image", "images") if self.column is None else (self.column,)

    def bytes_of(self, value, folder, id):
        """The bytes of what a list or a column holds: bytes, a URL, a path that counts from the `folder`."""
        if isinstance(value, dict):  # as datasets' Image has
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value)
        if not isinstance(value, str):
            what = "holds no picture" if value is None else f"holds a {type(value).__name__}"
            raise UnreadableImage(f"{id}: {what}; expected a path, a URL or bytes")
        if not value.strip():
            raise UnreadableImage(f"{id}: is an empty text; expected a path or a URL")
        if is_url(value) or value[:5].lower() == "data:":
            return read_text(value, timeout_s=self.timeout_s, private_networks=self.private_networks)[0]
        if is_storage(value):
            return read_storage(value, self.private_networks)
        return read_path(os.path.join(folder, value))[0]


class Sources:
    """
    The places of several sources, in their order. Can be iterated, also more than once.

    Args:
        sources (`list[str]`): each a folder, a glob, a URL, a picture, a list (`LISTS`: a path or URL a line, paths
            counted from its folder), JSONL, a tar (also a WebDataset shard), a zip, Parquet, a folder that
            `Dataset.save_to_disk` wrote, or the URI of a folder or picture in cloud storage (see `storage`).
        access ([`Access`])
        exclude (`list[str]`): paths of files that are not looked at, such as the scan's own.

    Attributes:
        num_left_out (`int`): files that were no pictures, of the last iteration.

    Raises:
        ValueError: if there is no such source.
    """

    def __init__(self, sources, access=None, exclude=()):
        self.sources, self.access = list(sources), access or Access()
        self.exclude = {os.path.abspath(path) for path in exclude}
        self.num_left_out = 0
        for source in self.sources:
            if is_storage(source):
                check_storage(source)
            elif (
                not is_url(source) and not os.path.lexists(source) and next(glob.iglob(source, recursive=True), 0) == 0
            ):
                raise ValueError(f"there is no {printable(source)}; check the path")

    def __iter__(self):
        self.num_left_out = 0
        walked = set()
        for source in self.sources:
            if is_storage(source):
                yield from self._stored(source)
            elif is_url(source) or os.path.lexists(source):
                yield from self._named(source, walked)
            else:
                for path in sorted(glob.iglob(source, recursive=True)):
                    yield from self._named(path, walked)

    def _named(self, source, walked):
        """Of a source, or of a path that a list names: it is a picture whatever it is called."""
        if is_url(source):
            yield Place(text_of(source), partial(self.access.bytes_of, source, "", text_of(source)))
            return
        lower = source.lower()
        if os.path.isfile(source) and lower.endswith((".jsonl", ".ndjson")):
            from safeqwen.scan.tables import jsonl_places

            yield from jsonl_places(source, self.access)
        elif os.path.isfile(source) and lower.endswith(LISTS):
            yield from self._listed(source, walked)
        else:
            yield from self._entry(source, walked, is_named=True)

    def _listed(self, source, walked):
        folder = os.path.dirname(source)
        try:
            with open(source, encoding="utf-8-sig", errors="surrogateescape") as lines:
                for line in lines:
                    if not (line := line.rstrip("\n").strip()):
                        continue
                    if is_uri(line):
                        yield Place(text_of(line), partial(self.access.bytes_of, line, "", text_of(line)))
                    elif os.path.lexists(path := os.path.join(folder, line)):
                        yield from self._entry(path, walked, is_named=True)
                    else:
                        yield _file(path)
        except OSError as error:
            yield broken(text_of(source), f"the list cannot be read ({error.strerror})")

    def _entry(self, path, walked, is_named=False):
        """Of a file or folder, whatever it is."""
        lower = path.lower()
        if os.path.abspath(path) in self.exclude:
            return
        try:
            status = os.stat(path)
        except OSError:  # reading it says why
            if is_named or lower.endswith((*PICTURES, *TARS, ".zip", ".parquet")) or not os.path.islink(path):
                yield _file(path)
            else:
                self.num_left_out += 1
            return
        if stat.S_ISDIR(status.st_mode):
            yield from self._folder(path, status, walked)
        elif not stat.S_ISREG(status.st_mode):
            yield broken(text_of(path), "is a device or pipe; pass the path of a file")
        elif lower.endswith(TARS):
            from safeqwen.scan.archives import tar_places

            yield from tar_places(path, self._leave_out)
        elif lower.endswith(".zip"):
            from safeqwen.scan.archives import zip_places

            yield from zip_places(path, self._leave_out)
        elif lower.endswith(".parquet"):
            from safeqwen.scan.tables import parquet_places

            yield from parquet_places(path, self.access)
        elif is_named or lower.endswith(PICTURES) or _may_be_picture(path):
            yield _file(path, status)
        else:
            self.num_left_out += 1

    def _folder(self, path, status, walked):
        if (status.st_dev, status.st_ino) in walked:
            return
        walked.add((status.st_dev, status.st_ino))
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            yield broken(text_of(path), f"the folder cannot be listed ({error.strerror}); let this user read it")
            return
        if "dataset_dict.json" in names or {"dataset_info.json", "state.json"} <= {*names}:
            from safeqwen.scan.tables import dataset_places

            yield from dataset_places(path, self.access)
            return
        for name in names:
            yield from self._entry(os.path.join(path, name), walked)

    def _stored(self, uri):
        """Of a folder, or a file, in cloud storage."""
        for id, load, stamp, name in storage_files(uri):
            lower = name.lower()
            if lower.endswith(PICTURES) or id == uri:
                yield Place(id, load, stamp)
            elif lower.endswith((*TARS, ".zip", ".parquet")):
                yield broken(id, "is not opened in cloud storage; copy it to a disk and scan it there", stamp)
            else:
                self.num_left_out += 1

    def _leave_out(self):
        self.num_left_out += 1


def read_place(id, access=None):
    """
    Returns the `bytes` of the picture with an id, as a scan's rows have it. Relative paths count from where one is.

    A member of a file is looked for from its beginning.

    Args:
        id (`str`)
        access ([`Access`], *optional*)

    Raises:
        UnreadableImage: if it cannot be read, or is not there any more.
    """
    access = access or Access()
    if is_uri(id):
        return access.bytes_of(id, "", id)
    file, member, _ = id.partition(MEMBER)
    path = path_of(file)
    if not member:
        return read_path(path)[0]
    try:
        for place in Sources([path], access):
            if place.id == id:
                return place.load()
    except ValueError as error:
        raise UnreadableImage(f"{id}: {error}") from None
    raise UnreadableImage(f"{id}: is not there any more")


def is_url(source):
    """Whether a source (`str`) is an http(s) URL (`bool`)."""
    return source[:7].lower() == "http://" or source[:8].lower() == "https://"


def is_uri(source):
    """Whether a source (`str`) is an http(s) URL or the URI of a file in cloud storage (`bool`): no path."""
    return is_url(source) or is_storage(source)


def text_of(path):
    """Returns a path as the text of an id (`str`): a file:// URI if it is no UTF-8, or could be taken for a member."""
    try:
        path.encode()
    except UnicodeEncodeError:  # Python hands bytes that are no UTF-8 on as lone surrogates
        return quote(os.fsencode(path), safe=":/?&=#%+") if is_uri(path) else Path(path).absolute().as_uri()
    return Path(path).absolute().as_uri() if MEMBER in path and not is_uri(path) else path


def path_of(text):
    """Returns the path (`str`) that `text_of` made a text of."""
    return os.fsdecode(unquote_to_bytes(urlsplit(text).path)) if text.startswith("file:///") else text


def stamp_of(status):
    """Returns the stamp (`str`) of a file by its `os.stat_result`."""
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def broken(id, reason, stamp=None):
    """Returns the [`Place`] of what cannot be read, whose `load` says so."""

    return Place(id, partial(_refuse, f"{id}: {reason}"), stamp)


def _refuse(reason):
    raise UnreadableImage(reason)


def _file(path, status=None):
    return Place(text_of(path), partial(_load, path), status and stamp_of(status))


def _load(path):
    return read_path(path)[0]


def _may_be_picture(path):
    """Whether a file begins as a picture does (`bool`), or cannot be asked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            return signature(os.read(descriptor, HEAD)) is not None
        finally:
            os.close(descriptor)
    except OSError:
        return True
