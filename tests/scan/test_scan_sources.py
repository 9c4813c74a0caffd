"""Where the pictures of a scan are: nothing that may be a picture is passed over, and nothing hangs."""

import base64
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from scanning import as_nobody, drawings

from safeqwen.pictures import UnreadableImage
from safeqwen.scan.sources import Access, Sources, read_place


def png(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (30, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


def loaded(*sources, **kwargs):
    """Id -> bytes, or the reason why there are none; each place is loaded as it comes."""
    found = {}
    for place in Sources(map(str, sources), **kwargs):
        assert place.id not in found
        try:
            found[place.id] = place.load()
        except UnreadableImage as error:
            found[place.id] = str(error)
    return found


# ------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_gives_what_is_a_picture_by_its_name_or_its_first_bytes(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.png").write_bytes(png())
    (tmp_path / "sub" / "no_suffix").write_bytes(png("blue"))
    (tmp_path / "empty.JPG").write_bytes(b"")
    (tmp_path / "notes.md").write_text("words")
    (tmp_path / "foreign.heic").write_bytes(b"no picture that is read")
    sources = Sources([str(tmp_path)])
    ids = [os.path.relpath(place.id, tmp_path) for place in sources]
    assert ids == ["b.png", "empty.JPG", "foreign.heic", "sub/no_suffix"]
    assert sources.num_left_out == 1
    assert loaded(tmp_path)[str(tmp_path / "sub" / "no_suffix")] == png("blue")


def test_loops_of_links_end_and_a_folder_is_walked_once(tmp_path):
    folder = tmp_path / "a"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "1.png").write_bytes(png())
    (folder / "b" / "up").symlink_to(folder)
    (folder / "itself.png").symlink_to(folder / "itself.png")
    (folder / "twice").symlink_to(folder / "b")
    found = loaded(folder)
    assert [os.path.relpath(id, folder) for id in found] == ["b/1.png", "itself.png"]
    assert "symbolic link" in found[str(folder / "itself.png")]


def test_a_broken_link_and_a_pipe_are_errors_and_the_pipe_is_never_opened(tmp_path, monkeypatch):
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    opened, open_it = [], os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **more: opened.append(str(path)) or open_it(path, *rest, **more)
    )
    found = {Path(id).name: reason for id, reason in loaded(tmp_path).items()}
    assert "there is no such file" in found["gone.png"]
    assert "device or pipe" in found["pipe.png"]
    assert not [path for path in opened if path.endswith("pipe.png")]


def test_what_may_not_be_read_is_an_error_whatever_it_is_called():
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        folder.chmod(0o755)
        (folder / "locked").mkdir()
        for name in ("a.png", "without_suffix"):
            (folder / name).write_bytes(png())
            (folder / name).chmod(0)
        (folder / "locked").chmod(0)
        with as_nobody():
            found = {Path(id).name: reason for id, reason in loaded(folder).items()}
        (folder / "locked").chmod(0o755)
    assert "permission denied" in found["a.png"] and "permission denied" in found["without_suffix"]
    assert "cannot be listed" in found["locked"]


def test_a_name_that_is_no_utf8_has_an_id_that_can_be_written_and_read_again(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(path, "wb") as file:
        file.write(png())
    ((id, data),) = loaded(tmp_path).items()
    assert json.loads(json.dumps(id).encode("utf-8")) == id
    assert id.startswith("file:///") and id.endswith("/caf%E9.png")
    assert data == png() == read_place(id)


def test_a_file_cannot_take_the_id_of_a_member(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("b.png", png("red"))
    (tmp_path / "a.zip::b.png").write_bytes(png("blue"))
    found = loaded(tmp_path)
    assert sorted(found.values()) == sorted([png("red"), png("blue")])
    assert all(read_place(id) == data for id, data in found.items())


def test_a_source_that_is_not_there_is_refused_and_the_scans_own_file_is_left_out(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="there is no .*nowhere"):
        Sources([str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match="there is no"):
        Sources([str(tmp_path / "*.png")])
    assert loaded(tmp_path, exclude=[tmp_path / "rows.parquet"]) == {}


def test_globs_and_lists_name_pictures_whatever_they_are_called(tmp_path):
    for name in ("a.png", "b.png", "c.dat"):
        (tmp_path / name).write_bytes(png())
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfc.dat\n\n  a.png \ngone.jpg\n")
    assert [Path(id).name for id in loaded(tmp_path / "*.png")] == ["a.png", "b.png"]
    found = {Path(id).name: data for id, data in loaded(tmp_path / "list.txt").items()}
    assert [*found] == ["c.dat", "a.png", "gone.jpg"]
    assert found["c.dat"] == png() and "there is no such file" in found["gone.jpg"]


# ------------------------------------------------------------------------------------------------------------ archives


def shard(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("suffix, mode", [(".tar", "w"), (".tar.gz", "w:gz")])
def test_a_shard_gives_its_pictures_and_two_members_of_one_name_are_two(tmp_path, suffix, mode):
    members = [("0.png", png("red")), ("0.json", b"{}"), ("0.png", png("blue")), ("raw", png("green"))]
    path = shard(tmp_path / f"s{suffix}", members, mode)
    sources = Sources([str(path)])
    assert [place.id.partition("::")[2] for place in sources] == ["0.png", "0.png::2", "raw"]
    assert sources.num_left_out == 1
    found = loaded(path)
    assert [*found.values()] == [png("red"), png("blue"), png("green")]
    assert all(read_place(id) == data for id, data in found.items())


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("kept", [0.1, 0.4, 0.7, 0.95])
def test_a_tar_cut_anywhere_is_an_error_and_never_fewer_pictures_in_silence(tmp_path, mode, kept):
    noise = [(f"{i}.png", os.urandom(3000)) for i in range(8)]
    whole = shard(tmp_path / "whole.tar", noise, mode).read_bytes()
    end = whole.rstrip(b"\0") if mode == "w" else whole  # behind that is padding alone
    path = tmp_path / "cut.tar"
    path.write_bytes(end[: int(kept * len(end))])
    found = loaded(path)
    assert isinstance(found[str(path)], str) and "get it anew" in found[str(path)]
    assert [data for data in found.values() if isinstance(data, bytes)] == [
        data for _, data in noise[: sum(isinstance(data, bytes) for data in found.values())]
    ]


def test_a_tar_cut_between_two_members_or_with_another_behind_it_is_seen(tmp_path):
    whole = shard(tmp_path / "whole.tar", [("0.png", b"x" * 512), ("1.png", b"x" * 512)]).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:1024])
    (tmp_path / "two.tar").write_bytes(whole + whole)
    for name in ("cut.tar", "two.tar"):
        assert "end mark" in loaded(tmp_path / name)[str(tmp_path / name)]


def test_a_zip_gives_its_pictures_and_a_cut_one_an_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (("x/1.png", png()), ("words.txt", b"words"), ("raw", png("blue"))):
            archive.writestr(name, data)
    assert [*loaded(tmp_path / "a.zip").values()] == [png(), png("blue")]
    (tmp_path / "cut.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-30])
    assert "the zip cannot be read" in loaded(tmp_path / "cut.zip")[str(tmp_path / "cut.zip")]


def test_a_member_with_a_wrong_checksum_is_an_error_of_its_own(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.png", b"one" * 50)
        archive.writestr("2.png", b"two" * 50)
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes().replace(b"oneone", b"onnone"))
    bad, good = loaded(tmp_path / "a.zip").values()
    assert "cannot be unpacked" in bad and good == b"two" * 50


def test_a_place_of_any_kind_can_be_loaded_by_another_process(tmp_path):
    pyarrow, datasets = pytest.importorskip("pyarrow"), pytest.importorskip("datasets")
    from pyarrow import parquet

    paths = drawings(tmp_path / "drawn", 3)
    data = [path.read_bytes() for path in paths]
    members = [(path.name, path.read_bytes()) for path in paths]
    shard(tmp_path / "a.tar", members, "w")
    shard(tmp_path / "b.tar.gz", members, "w:gz")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    parquet.write_table(pyarrow.table({"image": data}), tmp_path / "d.parquet")
    parquet.write_table(pyarrow.table({"images": [data]}), tmp_path / "e.parquet")
    (tmp_path / "f.jsonl").write_text("".join(json.dumps({"image": str(path)}) + "\n" for path in paths))
    (tmp_path / "g.txt").write_text("drawn/000.png\ndrawn/gone.png\n")
    saved = datasets.Dataset.from_dict({"image": [*map(str, paths)]}).cast_column("image", datasets.Image())
    saved.save_to_disk(tmp_path / "h")
    sources = [str(path) for path in sorted(tmp_path.iterdir())]
    code = "import pickle, sys; [sys.stdout.buffer.write(place.load()) for place in pickle.load(sys.stdin.buffer)]"
    places = [place for place in Sources(sources) if not place.id.endswith("gone.png")]
    assert len(places) == 8 * 3 + 1
    sent = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(places), capture_output=True, check=True)
    assert sent.stdout == b"".join(data) * 7 + data[0] + b"".join(data)
    broken = pickle.loads(pickle.dumps([*Sources([str(tmp_path / "g.txt")])][-1]))
    with pytest.raises(UnreadableImage, match="no such file"):
        broken.load()


# -------------------------------------------------------------------------------------------------------------- tables


def test_jsonl_names_pictures_by_path_data_url_or_list_and_every_line_counts(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    url = "data:image/png;base64," + base64.b64encode(png("blue")).decode()
    lines = [{"image": "a.png"}, {"images": [url, "gone.png"]}, {"picture": "a.png"}, {"image": None}, {"images": []}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + '\n\n{"image": "a.p\n[1]\n')
    found = {id.partition("::")[2]: data for id, data in loaded(path).items()}
    assert [*found] == ["1", "2::1", "2::2", "3", "4", "5", "7", "8"]
    assert found["1"] == png() and found["2::1"] == png("blue") == read_place(f"{path}::2::1")
    reasons = {"2::2": "no such file", "3": "picture", "4": "holds no picture", "5": "its list is empty", "8": "list"}
    for number, reason in reasons.items():
        assert reason in found[number], found[number]
    assert [*loaded(path, access=Access(column="picture"))][2] == f"{path}::3"


def test_parquet_gives_bytes_structs_and_paths_and_a_half_written_one_an_error(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    pictures = [png((i, 0, 0)) for i in range(40)]
    (tmp_path / "a.png").write_bytes(png("blue"))
    tables = {
        "bytes": [{"image": data} for data in pictures],
        "struct": [{"image": {"bytes": data, "path": None}} for data in pictures],
        "lists": [{"images": pictures[i : i + 2]} for i in range(0, 40, 2)],
        "paths": [{"image": "a.png"}, {"image": None}],
        "other": [{"text": "words"}],
    }
    for name, rows in tables.items():
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{name}.parquet", row_group_size=25)
    for name in ("bytes", "struct", "lists"):
        assert [*loaded(tmp_path / f"{name}.parquet").values()] == pictures
    blue, missing = loaded(tmp_path / "paths.parquet").values()
    assert blue == png("blue") and "holds no picture" in missing
    assert "no column image or images among text" in [*loaded(tmp_path / "other.parquet").values()][0]
    half = (tmp_path / "bytes.parquet").read_bytes()
    (tmp_path / "half.parquet").write_bytes(half[: len(half) // 2])
    assert "cannot be read as Parquet" in [*loaded(tmp_path / "half.parquet").values()][0]


def test_the_rows_of_parquet_can_be_asked_for_in_any_near_order(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"image": bytes([i])} for i in range(100)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    places = [*Sources([str(tmp_path / "a.parquet")])]
    order = [i ^ 3 for i in range(100)]
    assert [places[i].load() for i in order] == [bytes([i]) for i in order]


def test_a_saved_dataset_gives_its_pictures_of_all_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    paths = [str(path) for path in drawings(tmp_path / "drawn", 3)]
    split = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": split, "test": split.select([1])}).save_to_disk(tmp_path / "saved")
    found = loaded(tmp_path / "saved")
    assert [id.partition("::")[2] for id in found] == ["train::1", "train::2", "train::3", "test::1"]
    assert [*found.values()] == [Path(paths[i]).read_bytes() for i in (0, 1, 2, 1)]
