"""A collection as one meets it: whatever lies there is a row, with a verdict or a reason, and the rest is judged."""

import http.server
import io
import json
import os
import random
import shutil
import socket
import struct
import tarfile
import threading
import tracemalloc
import zipfile
import zlib

import pytest
from PIL import Image
from scanning import drawings, rows_of

from safeqwen.pictures import UnreadableImage
from safeqwen.scan.local import scan
from safeqwen.scan.rows import read_rows
from safeqwen.scan.sources import Sources


MEGABYTE = 2**20


def tar_of(members, mode="w"):
    """The bytes of a tar of `(name, bytes)`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def parquet_of(rows, **options):
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


def png(colour, size=(30, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def bomb():
    """A PNG of a few bytes whose header promises 60,000 x 60,000 pixels."""
    data = bytearray(png("red"))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


class Server(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path == "/hangs.png":
            self.server.over.wait(20)
            return
        self.send_response(404)
        self.end_headers()


@pytest.fixture
def address():
    """Of a server on this machine that never answers when asked for hangs.png, and has nothing else."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.over, server.block_on_close = threading.Event(), False
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.over.set()
        server.shutdown()


def test_each_bad_thing_is_a_row_that_says_why_and_all_good_ones_are_judged_as_alone(
    command, tmp_path, address, capsys, monkeypatch
):
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    good = drawings(tmp_path / "alone", 8)
    alone = tmp_path / "alone.jsonl"
    assert command("alone", "--out", alone, "--quiet") == 0
    expected = {row["picture_sha256"]: row["scores"] for row in read_rows(alone)}

    folder = tmp_path / "in"
    shutil.copytree(tmp_path / "alone", folder / "good")
    data = [path.read_bytes() for path in good]
    members = [(f"{i}.png", one) for i, one in enumerate(data)]
    for name, content in {
        "bomb.png": bomb(),
        "cut.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF" + data[0],
        "cut.png": data[0][:-20],
        "empty.png": b"",
        "foreign.heic": b"\0\0\0\x18ftypheic",
        "huge.png": b"\0" * (64 * MEGABYTE + 1),
        "tiny.png": png("red", (5, 5)),
        "wide.png": png("red", (6000, 20)),
        "words.png": b"no picture",
        "cut.tar": tar_of(members)[:-20_000],
        "cut.zip": zip_of(members)[:-100],
        "half.parquet": parquet_of([{"image": one} for one in data])[:2000],
        "other.parquet": parquet_of([{"text": "words"}]),
    }.items():
        (folder / name).write_bytes(content)
    (folder / "folder.png").mkdir()
    (folder / "folder.png" / "up").symlink_to(folder)
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("in/socket.png")
    with open(os.fsencode(folder) + b"/caf\xe9.png", "wb") as file:
        file.write(data[1])
    list_of = [
        f"{address}/hangs.png",
        f"{address}/404.png",
        "http://[",
        "missing.png",
        "a\0b.png",
        "n" * 5000 + ".png",
    ]
    (tmp_path / "list.txt").write_text("\n".join(list_of))
    lines = ['{"image": ' + "[" * 100_000, '{"image": 7}', "{", "[]", json.dumps({"image": "in/good/002.png"})]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))

    words = ("--timeout", 0.5, "--private-networks", "--quiet")
    assert command("in", "list.txt", "lines.jsonl", "--out", "rows.jsonl", *words) == 1
    rows = rows_of(tmp_path / "rows.jsonl")
    reasons = {
        "in/bomb.png": "decompression bomb",
        "in/cut.jpg": "ends before the picture does",
        "in/cut.png": "ends before the picture does",
        "in/cut.tar": "ends early",
        "in/cut.zip": "the zip cannot be read",
        "in/empty.png": "is empty",
        "in/foreign.heic": "none of the formats that are read",
        "in/gone.png": "there is no such file",
        "in/half.parquet": "cannot be read as Parquet",
        "in/huge.png": "larger than",
        "in/loop.png": "symbolic link",
        "in/other.parquet": "no column image or images among text",
        "in/pipe.png": "device or pipe",
        "in/socket.png": "device or pipe",
        "in/tiny.png": "too small",
        "in/wide.png": "a ratio over 200",
        "in/words.png": "none of the formats that are read",
        "in/zero.png": "device or pipe",
        f"{address}/hangs.png": "within 0.5 s",
        f"{address}/404.png": "404",
        "http://[": "",
        "missing.png": "there is no such file",
        "a\0b.png": "zero bytes",
        "n" * 5000 + ".png": "too long",
        "lines.jsonl::1": "recursion",
        "lines.jsonl::2": "holds a int",
        "lines.jsonl::3": "is no row with a picture",
        "lines.jsonl::4": "expected an object, got list",
    }
    errors = {id: row["error"] for id, row in rows.items() if row["error"] is not None}
    assert {*errors} == {*reasons}
    assert [(id, errors[id]) for id, reason in reasons.items() if reason.lower() not in errors[id].lower()] == []
    judged = [row for row in rows.values() if row["error"] is None]
    copies = [f"in/good/{path.name}" for path in good] + ["lines.jsonl::5", f"{folder.as_uri()}/caf%E9.png"]
    in_tar = [row["id"] for row in judged if row["id"].startswith("in/cut.tar::")]
    assert {row["id"] for row in judged} == {*copies, *in_tar} and len(in_tar) >= 4
    for row in judged:
        assert [*row["scores"].values()] == pytest.approx([*expected[row["picture_sha256"]].values()], abs=1e-5)
    out, err = capsys.readouterr()
    assert f"{len(errors)} errors" in out and err == ""


def test_a_picture_that_vanishes_or_changes_while_the_scan_is_at_work_is_what_was_there_when_it_was_read(
    engine, tmp_path
):
    paths = drawings(tmp_path / "in", 60)

    def meanwhile(counts):
        if counts.num_met == 1:
            paths[-2].unlink()
            shutil.copy(paths[0], paths[-1])

    settings = {"batch_size": 2, "num_workers": 1, "progress": meanwhile}
    scan(engine, [str(tmp_path / "in")], tmp_path / "rows.jsonl", **settings)
    rows = rows_of(tmp_path / "rows.jsonl")
    assert len(rows) == 60 and "there is no such file" in rows[str(paths[-2])]["error"]
    assert rows[str(paths[-1])]["picture_sha256"] == rows[str(paths[0])]["picture_sha256"]


def loaded(path):
    """Id -> bytes or the reason why there are none; anything but an [`UnreadableImage`] is raised."""
    found = {}
    for place in Sources([str(path)]):
        assert place.id not in found and place.id.encode()
        try:
            found[place.id] = place.load()
        except UnreadableImage as error:
            found[place.id] = str(error)
    return found


def test_a_member_without_a_name_is_a_member(tmp_path):
    nameless = zipfile.ZipInfo("x")
    nameless.filename = ""
    (tmp_path / "a.zip").write_bytes(zip_of([(nameless, png("red")), ("b.png", png("blue"))]))
    assert loaded(tmp_path / "a.zip") == {f"{tmp_path}/a.zip::": png("red"), f"{tmp_path}/a.zip::b.png": png("blue")}


def test_a_parquet_with_fewer_rows_than_it_says_is_an_error_behind_those_that_it_has(tmp_path):
    pytest.importorskip("pyarrow")
    pictures = [png((i, 0, 0)) for i in range(37)]
    for name, rows in {
        "one": [{"image": one} for one in pictures],
        "two": [{"images": [one, one]} for one in pictures],
    }.items():
        # 37 and 38 as thrift writes a field of 64 bits: 0x16, then the number doubled.
        data = parquet_of(rows).replace(b"\x16\x4a", b"\x16\x4c")
        (tmp_path / f"{name}.parquet").write_bytes(data)
        found = [*loaded(tmp_path / f"{name}.parquet").values()]
        assert found[: 37 * (1 + (name == "two"))] == [one for one in pictures for _ in range(1 + (name == "two"))]
        assert len(found) == 38 + 37 * (name == "two") and "fewer rows" in found[-1]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_member_that_unpacks_to_more_than_is_read_is_refused_and_not_held_in_memory(tmp_path, kind):
    members = [("bomb.png", b"\0" * (65 * MEGABYTE)), ("good.png", png("red"))]
    data = zip_of(members, zipfile.ZIP_DEFLATED) if kind == "zip" else tar_of(members, "w:gz")
    del members
    (tmp_path / f"a.{kind}").write_bytes(data)
    assert len(data) < MEGABYTE
    tracemalloc.start()
    refused, good = loaded(tmp_path / f"a.{kind}").values()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "larger than" in refused and good == png("red")
    assert peak < 16 * MEGABYTE


def mutated(data, others, rng):
    """Bytes with bits flipped, pieces cut out, numbers overwritten, or the end of another file."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        start = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0 and start < len(data):
            data[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[start:]
        elif kind == 2:
            del data[start : start + rng.randrange(600)]
        elif kind == 3:
            data[start : start + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, b"99999999"))
        else:
            data[start:] = rng.choice(others)[start:]
    return bytes(data)


def test_no_mutated_archive_or_table_ends_a_scan(tmp_path):
    pytest.importorskip("pyarrow")
    pictures = [png((9 * i, 0, 0)) for i in range(6)]
    members = [*((f"{i}.png", data) for i, data in enumerate(pictures)), ("raw", png("blue")), ("w.txt", b"words")]
    files = {
        "a.tar": tar_of(members),
        "a.tar.gz": tar_of(members, "w:gz"),
        "a.tar.xz": tar_of(members, "w:xz"),
        "stored.zip": zip_of(members),
        "deflated.zip": zip_of(members, zipfile.ZIP_DEFLATED),
        "one.parquet": parquet_of([{"image": data} for data in pictures], row_group_size=3),
        "two.parquet": parquet_of([{"images": [data, data]} for data in pictures], row_group_size=3),
        "a.jsonl": b"".join(json.dumps({"image": "data:image/png;base64,AA"}).encode() + b"\n" for _ in range(5)),
    }
    rng, num_whole, num_refused = random.Random(0), 0, 0
    for number in range(600):
        name = [*files][number % len(files)]
        (tmp_path / name).write_bytes(mutated(files[name], [*files.values()], rng))
        found = loaded(tmp_path / name).values()
        num_refused += any(isinstance(one, str) for one in found)
        num_whole += any(isinstance(one, bytes) for one in found)
    assert num_whole > 100 and num_refused > 200, "both happen, or nothing was tried"
