"""The pictures in a tar, such as a WebDataset shard, or in a zip. An archive that is cut is one error more."""

import lzma
import os
import tarfile
import threading
import zipfile
import zlib

from safeqwen.pictures.decode import signature
from safeqwen.pictures.errors import UnreadableImage, check_bytes, one_line
from safeqwen.pictures.source import MAX_BYTES
from safeqwen.scan.sources import HEAD, MEMBER, PICTURES, Place, broken, stamp_of, text_of


# What the decompressors raise for damaged data beside what tarfile and zipfile do; of a zip's compression or
# encryption that Python does not know, zipfile raises NotImplementedError.
DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, ValueError, NotImplementedError),
)


class Names:
    """Gives each member of an archive an id of its own, though two may have one name."""

    def __init__(self, archive):
        self.archive, self.given = text_of(archive), set()

    def id_of(self, name):
        name = name.encode(errors="backslashreplace").decode()
        unique, number = name, 1
        while unique in self.given:
            number += 1
            unique = f"{name}{MEMBER}{number}"
        self.given.add(unique)
        return f"{self.archive}{MEMBER}{unique}"


def tar_places(path, leave_out):
    """
    Yields a [`Place`] for each picture in a tar, and one that says so if the tar ends early or is damaged.

    Of a tar that is not compressed only the headers are read; the pictures when they are asked for.

    Args:
        path (`str`)
        leave_out (callable): called for each member that is no picture.
    """
    names, num_members = Names(path), 0
    try:
        stamp = stamp_of(os.stat(path))
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:*") as tar:
            is_plain = tar.fileobj is file
            while (member := tar.next()) is not None:
                tar.members.clear()  # else all headers stay in memory
                num_members += 1
                if not member.isreg():
                    leave_out()
                    continue
                is_named = member.name.lower().endswith(PICTURES)
                if not is_named and signature(tar.extractfile(member).read(HEAD)) is None:
                    leave_out()
                    continue
                id = names.id_of(member.name)
                if is_plain and not member.sparse:
                    yield Place(id, _Slice(path, id, member.offset_data, member.size), stamp)
                elif member.size > MAX_BYTES:
                    yield Place(id, _TooLarge(id, member.size), stamp)
                else:
                    yield Place(id, _Held(tar.extractfile(member).read()), stamp)
            if not _ends_whole(tar):
                raise tarfile.ReadError("no end mark, or more behind it")
    except DAMAGED as error:
        what = "cannot be read" if not num_members else f"ends early or is damaged after {num_members} members"
        yield broken(f"{names.archive}", f"the tar {what} ({one_line(error)}); get it anew")


def _ends_whole(tar):
    """
    Whether a tar that was read to its end has its end mark there, and nothing behind it. tarfile takes damage for an
    end, too, and does not see what `cat a.tar b.tar` has put behind it.
    """
    tar.fileobj.seek(tar.offset)
    mark = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        return False
    while mark:
        if mark.strip(b"\0"):
            return False
        mark = tar.fileobj.read(2**20)
    return True


class _Slice:
    """Loads a piece of a file."""

    def __init__(self, path, id, start, size):
        self.path, self.id, self.start, self.size = path, id, start, size

    def __call__(self):
        check_bytes(self.size, self.id, MAX_BYTES)
        try:
            with open(self.path, "rb") as file:
                file.seek(self.start)
                data = file.read(self.size)
        except OSError as error:
            raise UnreadableImage(f"{self.id}: cannot be read ({error.strerror})") from None
        if len(data) < self.size:
            raise UnreadableImage(f"{self.id}: the tar ends within this member; get it anew")
        return data


class _Held:
    """Loads what is in memory already."""

    def __init__(self, data):
        self.data = data

    def __call__(self):
        return self.data


class _TooLarge:
    """Refuses what is not even read."""

    def __init__(self, id, size):
        self.id, self.size = id, size

    def __call__(self):
        check_bytes(self.size, self.id, MAX_BYTES)


def zip_places(path, leave_out):
    """
    Yields a [`Place`] for each picture in a zip, or one that says why it cannot be opened.

    Args:
        path (`str`)
        leave_out (callable): called for each member that is no picture.
    """
    names = Names(path)
    try:
        stamp = stamp_of(os.stat(path))
        archive = _Zip(path)
        members = archive.members()
    except DAMAGED as error:
        yield broken(names.archive, f"the zip cannot be read ({one_line(error)}); get it anew")
        return
    for member in members:
        if member.filename.endswith("/"):  # a folder; is_dir cannot take a name that is empty
            continue
        if not member.filename.lower().endswith(PICTURES):
            try:
                head = archive.read(member, HEAD)
            except (*DAMAGED, RuntimeError):
                head = None  # loading it says why
            if head is not None and signature(head) is None:
                leave_out()
                continue
        id = names.id_of(member.filename)
        yield Place(id, _ZipMember(archive, member, id), stamp)


class _Zip:
    """A zip that is opened when it is read, by one thread at a time, and is closed when no place needs it any more."""

    def __init__(self, path):
        self.path, self.lock, self.file = path, threading.Lock(), None

    def __reduce__(self):  # another process opens it anew
        return _Zip, (self.path,)

    def members(self):
        with self.lock:
            return self._opened().infolist()

    def read(self, member, size=-1):
        with self.lock, self._opened().open(member) as file:
            return file.read(size)

    def _opened(self):
        if self.file is None:
            self.file = zipfile.ZipFile(self.path)
        return self.file


class _ZipMember:
    """Loads a member of a zip."""

    def __init__(self, archive, member, id):
        self.archive, self.member, self.id = archive, member, id

    def __call__(self):
        check_bytes(self.member.file_size, self.id, MAX_BYTES)
        try:
            return self.archive.read(self.member)
        except (*DAMAGED, RuntimeError) as error:  # a RuntimeError: it is encrypted
            raise UnreadableImage(f"{self.id}: cannot be unpacked ({one_line(error)}); get the zip anew") from None
