"""Pictures in cloud storage, as pyarrow's file systems have it: here fsspec's, in memory and on this disk."""

import json
import pickle
import re

import fsspec
import pytest
from scanning import drawings, rows_of

import safeqwen_cli
from safeqwen.pictures import UnreadableImage
from safeqwen.pictures.source import MAX_BYTES
from safeqwen.scan.local import scan
from safeqwen.scan.sources import Sources, read_place


URI = "fsspec+memory://bucket/pictures"


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
            assert place.load() == name == read_place(place.id) == pickle.loads(pickle.dumps(place)).load()


def test_a_changed_file_has_another_stamp_and_one_that_is_gone_or_too_large_is_an_error(memory):
    memory("pictures/a.png", b"one")
    memory("pictures/large.png", bytes(MAX_BYTES + 1))
    first, large = Sources([URI])
    memory("pictures/a.png", b"other")
    assert next(iter(Sources([URI]))).stamp != first.stamp
    with pytest.raises(UnreadableImage, match="is larger than"):
        large.load()
    fsspec.filesystem("memory").rm("/bucket/pictures/a.png")
    with pytest.raises(UnreadableImage, match="cannot be read"):
        first.load()
    with pytest.raises(UnreadableImage, match=re.escape(f"{URI}/a.png: ")):
        read_place(f"{URI}/a.png")


@pytest.mark.parametrize(
    "uri, reason",
    [
        (f"{URI}/nowhere", "there is no fsspec.*; check the URI"),
        ("s3://key:secret@bucket/pictures", "s3://bucket/pictures: give keys by the environment"),
        ("nosuch://bucket/pictures", "nosuch://bucket/pictures: cannot be opened"),
    ],
)
def test_a_source_that_is_not_there_or_tells_a_password_is_refused(uri, reason, memory):
    memory("pictures/a.png", b"one")
    with pytest.raises(ValueError, match=reason) as refusal:
        Sources([uri])
    assert "secret" not in str(refusal.value)


def test_a_scan_of_a_folder_a_list_and_jsonl_in_storage_has_the_rows_of_the_same_files_on_a_disk(
    engine, memory, tmp_path
):
    paths = drawings(tmp_path / "in", 4)
    for path in paths:
        memory(f"pictures/{path.name}", path.read_bytes())
    (tmp_path / "list.txt").write_text(f"{URI}/000.png\n{URI}/gone.png\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": f"{URI}/001.png"}))
    scan(engine, [str(tmp_path / "in")], tmp_path / "here.jsonl")
    scan(engine, [URI, str(tmp_path / "list.txt"), str(tmp_path / "rows.jsonl")], tmp_path / "there.jsonl")
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
