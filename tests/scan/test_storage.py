"""Pictures in cloud storage, as pyarrow's file systems have it: here fsspec's, in memory and on this disk."""

import http.server
import json
import pickle
import re
import socket
import threading
import time
from datetime import timedelta

import fsspec
import pytest
from pyarrow.fs import FileSystem
from scanning import drawings, rows_of

import safeqwen_cli
from safeqwen.pictures import UnreadableImage
from safeqwen.pictures.source import MAX_BYTES
from safeqwen.scan import storage
from safeqwen.scan.local import scan
from safeqwen.scan.sources import Access, Sources, read_place


URI = "fsspec+memory://bucket/pictures"
TRUSTING = Access(private_networks=True)


@pytest.fixture
def memory():
    """Puts bytes at a path of the bucket."""
    files = fsspec.filesystem("memory")
    yield lambda path, data: files.pipe(f"/bucket/{path}", data)
    files.rm("/bucket", recursive=True)


def test_a_folder_gives_its_pictures_by_their_names_in_order_and_says_what_it_does_not_open(memory):
    for name in ("b.png", "a 50%.jpg", "sub/c.PNG", "shard.tar", "notes.md"):
        memory(f"pictures/{name}", name.encode())
    sources = Sources([f"{URI}/"])
    places = [*sources]
    assert [place.id for place in places] == [
        f"{URI}/{name}" for name in ("a 50%.jpg", "b.png", "shard.tar", "sub/c.PNG")
    ]
    assert sources.num_left_out == 1
    for place in places:
        name = place.id.removeprefix(f"{URI}/").encode()
        if name == b"shard.tar":
            with pytest.raises(UnreadableImage, match="is not opened in cloud storage"):
                place.load()
        else:
            assert place.load() == name == read_place(place.id, TRUSTING) == pickle.loads(pickle.dumps(place)).load()


def test_a_changed_file_has_another_stamp_and_one_that_is_gone_or_too_large_is_an_error(memory):
    memory("pictures/a.png", b"one")
    memory("pictures/large.png", bytes(MAX_BYTES + 1))
    first, large = Sources([URI])
    assert next(iter(Sources([URI]))).stamp == first.stamp
    memory("pictures/a.png", b"two")  # of the same size
    assert next(iter(Sources([URI]))).stamp != first.stamp
    with pytest.raises(UnreadableImage, match="is larger than"):
        large.load()
    fsspec.filesystem("memory").rm("/bucket/pictures/a.png")
    with pytest.raises(UnreadableImage, match="cannot be read"):
        first.load()
    with pytest.raises(UnreadableImage, match=re.escape(f"{URI}/a.png: ")):
        read_place(f"{URI}/a.png", TRUSTING)


@pytest.mark.parametrize(
    "uri, reason",
    [
        (f"{URI}/nowhere", "there is no fsspec.*; check the URI"),
        ("s3://key:secret@bucket/pictures", "s3://bucket/pictures: give keys by the environment"),
        ("s3://key:se/cret@bucket/pictures", "s3://bucket/pictures: cannot be opened"),
        ("abfss://c@a.dfs.core.windows.net/in?sig=secret", "abfss://a.*/in: give keys by the environment"),
        ("nosuch://bucket/pictures", "nosuch://bucket/pictures: cannot be opened"),
    ],
)
def test_a_source_that_is_not_there_or_tells_a_password_is_refused(uri, reason, memory):
    memory("pictures/a.png", b"one")
    with pytest.raises(ValueError, match=reason) as refusal:
        Sources([uri])
    assert "cret" not in str(refusal.value)


@pytest.mark.parametrize("load", [lambda uri: Sources([uri]), lambda uri: read_place(uri, TRUSTING)])
def test_a_storage_that_hangs_is_given_up_and_named(load, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    monkeypatch.setattr(storage, "STALLED_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:  # the system connects, and nobody answers
        at = f"scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(ValueError, match="s3://bucket/a.png: cannot be opened .*Operation too slow"):
            load(f"s3://bucket/a.png?{at}")
        assert time.monotonic() - started < 30  # without a limit of ours 100 s


@pytest.mark.parametrize("uri, limit", [("s3://a/b?region=c", 10.0), ("gs://anonymous@a/b", timedelta(seconds=10))])
def test_a_limit_goes_to_the_process_that_loads_and_all_else_stays(uri, limit, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    files, _ = FileSystem.from_uri(uri)
    (before,), (after,) = (
        found.__reduce__()[1] for found in (files, pickle.loads(pickle.dumps(storage._limited(files))))
    )
    assert {name: value for name, value in after.items() if before[name] != value} == (
        {"connect_timeout": limit, "request_timeout": limit} if uri[0] == "s" else {"retry_time_limit": limit}
    )


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a.png?scheme=http&region=us-east-1&endpoint_override=",
        "fsspec+http://",
        "fsspec+simplecache://x::http://",
        "hf://x::http://",
        "hdfs://",
    ],
)
def test_a_uri_that_a_list_or_a_row_names_reaches_no_host_of_its_own_choice(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"bytes"[: 5 * (self.command == "GET")])

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        uri += f"127.0.0.1:{serving.server_address[1]}"
        (tmp_path / "list.txt").write_text(uri)
        (tmp_path / "rows.jsonl").write_text(json.dumps({"image": uri}))
        for place in Sources([str(tmp_path / "list.txt"), str(tmp_path / "rows.jsonl")]):
            with pytest.raises(UnreadableImage, match="may lead inside a private network; name s3://"):
                place.load()
        assert not asked
        if uri.startswith("s3"):
            assert Access(private_networks=True).bytes_of(uri, "", uri) == b"bytes" and asked
        serving.shutdown()


def test_a_scan_of_a_folder_a_list_and_jsonl_in_storage_has_the_rows_of_the_same_files_on_a_disk(
    engine, memory, tmp_path
):
    paths = drawings(tmp_path / "in", 4)
    for path in paths:
        memory(f"pictures/{path.name}", path.read_bytes())
    (tmp_path / "list.txt").write_text(f"{URI}/000.png\n{URI}/gone.png\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": f"{URI}/001.png"}))
    scan(engine, [str(tmp_path / "in")], tmp_path / "here.jsonl")
    sources = [URI, str(tmp_path / "list.txt"), str(tmp_path / "rows.jsonl")]
    scan(engine, sources, tmp_path / "there.jsonl", access=TRUSTING)
    here, there = rows_of(tmp_path / "here.jsonl"), rows_of(tmp_path / "there.jsonl")
    assert [row["scores"] for row in here.values()] == [there[f"{URI}/{path.name}"]["scores"] for path in paths]
    assert [id for id, row in there.items() if row["error"]] == [f"{URI}/gone.png"]
    assert there[f"{tmp_path}/rows.jsonl::1"]["scores"] == there[f"{URI}/001.png"]["scores"]


def test_the_command_uploads_the_rows_and_refuses_what_is_no_uri_before_it_begins(tmp_path, capsys):
    drawings(tmp_path / "in", 2)
    (tmp_path / "bucket").mkdir()
    out, uri = tmp_path / "rows.jsonl", f"fsspec+file://{tmp_path}/bucket/all.jsonl"
    command = ["scan", str(tmp_path / "in"), "--quiet"]
    for wrong in (["--out", "s3://bucket/rows.jsonl"], ["--out", str(out), "--upload", "bucket/all.jsonl"]):
        assert safeqwen_cli.main([*command, *wrong]) == 2
    refusals = capsys.readouterr().err
    assert "--out is a local path" in refusals and "expected a URI of cloud storage" in refusals
    assert {path.name for path in tmp_path.iterdir()} == {"in", "bucket"}
    assert safeqwen_cli.main([*command, "--out", str(out), "--upload", uri]) == 0
    assert (tmp_path / "bucket" / "all.jsonl").read_bytes() == out.read_bytes()
