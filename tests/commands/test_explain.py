"""`safeqwen explain`: which maps it makes, where it writes them, and what it refuses."""

import base64
import json

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import safeqwen
from safeqwen.commands.explain import top_categories
from safeqwen.judging.engine import Engine
from safeqwen_cli import main
from tools.demo.pictograms import draw


NAMES = [category.name for category in safeqwen.CATEGORIES]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "suicide.png"
    draw("suicide", 4_000_001, size=160).save(file)
    return file


def explain(*arguments):
    return main(["explain", *map(str, arguments)])


def test_one_category_is_one_png_of_the_pictures_size(tmp_path, picture, capsys):
    assert explain(picture, "--category", "suicide", "--out", tmp_path / "map.png") == 0
    with Image.open(tmp_path / "map.png") as overlay:
        assert overlay.size == (160, 160) and overlay.format == "PNG"
    said = capsys.readouterr().out
    assert str(picture) in said and "suicide" in said and "map.png" in said


def test_several_categories_are_named_in_their_files(tmp_path, picture):
    chosen = ("--category", "suicide", "--category", "safe", "--category", "suicide")
    assert explain(picture, *chosen, "--out", tmp_path / "map.png") == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["map-safe.png", "map-suicide.png"]


def test_json_holds_the_values_and_guards_probabilities(picture, capsys):
    assert explain(picture, "--category", "suicide", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    engine = Engine(*safeqwen.load())
    (probs,) = engine.judge(engine.prepare([draw("suicide", 4_000_001, size=160)]))
    assert_close(torch.tensor([found["scores"][name] for name in NAMES]), probs, atol=1e-5, rtol=0)
    (one,) = found["maps"]
    assert one["category"] == "suicide" and one["file"] is None
    assert one["probability"] == pytest.approx(float(probs[NAMES.index("suicide")]), abs=1e-5)
    assert {len(row) for row in one["values"]} == {len(one["values"])}
    assert [*found] == ["image", "label", "scores", "frame", "views", "maps", "model"]


def test_the_frame_that_decided_is_explained_and_named(tmp_path, capsys):
    drawings = [draw("safe", 4_000_002, size=112), draw("suicide", 4_000_001, size=112), draw("safe", 4_000_003, 112)]
    file = tmp_path / "moving.png"
    drawings[0].save(file, save_all=True, append_images=drawings[1:], duration=100)
    assert explain(file, "--category", "suicide", "--json") == 0
    moving = json.loads(capsys.readouterr().out)
    engine = Engine(*safeqwen.load())
    unsafe = [1 - float(probs[0]) for probs in engine.judge(engine.prepare(drawings))]
    assert moving["views"] == 3 and moving["frame"] == max(range(3), key=unsafe.__getitem__)
    assert moving["maps"][0]["probability"] == pytest.approx(moving["scores"]["suicide"], abs=1e-5)
    assert explain(file, "--category", "suicide", "--out", tmp_path / "map.png") == 0
    assert f"frame {moving['frame']} from 0, the least safe of 3 views" in capsys.readouterr().out


def test_the_top_categories_are_harms_above_a_tenth():
    scores = {"safe": 0.3, "a": 0.25, "b": 0.2, "c": 0.13, "d": 0.12}
    assert top_categories(scores) == ["a", "b", "c"]
    assert top_categories({"safe": 0.9, "a": 0.09, "b": 0.01}) == ["safe"]
    assert top_categories({"safe": 0.85, "a": 0.1, "b": 0.05}) == ["a"]
    assert top_categories({"a": 0.09, "b": 0.08}) == ["a"]  # a taxonomy without "safe", of many


def test_a_file_that_exists_is_kept_unless_told_otherwise(tmp_path, picture, capsys):
    out = tmp_path / "map.png"
    out.write_text("mine")
    assert explain(picture, "--category", "suicide", "--out", out) == 2
    assert out.read_text() == "mine" and "exists: --force replaces it" in capsys.readouterr().err
    assert explain(picture, "--category", "suicide", "--out", out, "--force") == 0
    with Image.open(out) as overlay:
        assert overlay.size == (160, 160)
    assert [file.name for file in tmp_path.iterdir()] == ["map.png"]


def test_a_picture_that_is_no_file_may_replace_one(tmp_path, picture):
    (tmp_path / "there.png").write_bytes(b"another's")
    url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"  # longer than any file's name
    assert explain(url, "--category", "suicide", "--out", tmp_path / "there.png", "--force") == 0
    with Image.open(tmp_path / "there.png") as overlay:
        assert overlay.size == (160, 160)


def test_none_of_several_is_written_if_one_exists(tmp_path, picture, capsys):
    (tmp_path / "map-safe.png").write_text("mine")
    chosen = ("--category", "suicide", "--category", "safe")
    assert explain(picture, *chosen, "--out", tmp_path / "map.png") == 2
    assert [file.name for file in tmp_path.iterdir()] == ["map-safe.png"]


def test_an_unknown_category_names_the_nearest(tmp_path, picture, capsys):
    assert explain(picture, "--category", "suicid", "--out", tmp_path / "map.png") == 2
    assert "there is no category 'suicid'; did you mean 'suicide'?" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no picture", "none of the formats"), (None, "there is no such file"), (b"\x89PNG\r\n\x1a\n", "")],
    ids=["words", "gone", "cut"],
)
def test_a_picture_that_cannot_be_read_exits_with_1_and_its_reason(tmp_path, content, reason, capsys):
    file = tmp_path / "broken.png"
    if content is not None:
        file.write_bytes(content)
    assert explain(file, "--out", tmp_path / "map.png") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("safeqwen: ") and "broken.png" in said and reason in said
    assert not (tmp_path / "map.png").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "give --out PNG for a picture, --json for the values, or both"),
        (("--out", "gone/map.png"), "there is no folder gone"),
        (("--json", "--max-pixels", "10"), "784 or more"),
        (("--json", "--model", "no/such"), "could not be loaded"),
    ],
)
def test_wrong_usage_exits_with_2_and_its_reason(picture, arguments, reason, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert explain(picture, *arguments) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("gone.png", "--json"), 1, "gone.png: there is no such file"),
        (("words.png", "--json"), 1, "words.png: "),
        (("a.png", "--out", "a.png"), 2, "a.png is the picture itself: give another --out"),
        (("a.png", "--out", "./a.png", "--force"), 2, "a.png is the picture itself: give another --out"),
        (("a.png", "--out", "link.png", "--force"), 2, "link.png is the picture itself: give another --out"),
        (("a-b.png", "--out", "a.png", "--category", "a", "--category", "b", "--force"), 2, "a-b.png is the picture"),
        (("a.png", "--out", "taken.png", "--category", "safe"), 2, "taken.png exists: --force replaces it"),
        (("a.png", "--out", "m.png", "--category", "a/b", "--category", "a b"), 2, "categories would be one file"),
    ],
)
def test_what_needs_no_model_is_refused_before_one_is_loaded(
    tmp_path, arguments, code, reason, capsys, monkeypatch, picture
):
    monkeypatch.chdir(tmp_path)
    content = picture.read_bytes()
    for name in ("a.png", "a-b.png"):
        (tmp_path / name).write_bytes(content)
    for name in ("words.png", "taken.png"):
        (tmp_path / name).write_text("no picture")
    (tmp_path / "link.png").symlink_to("a.png")
    monkeypatch.setattr("safeqwen.commands.explain.load_model", lambda args: pytest.fail("a model was loaded"))
    assert explain(*arguments) == code
    assert reason in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "a-b.png").read_bytes() == content


def test_another_format_than_png_is_refused(picture, capsys):
    with pytest.raises(SystemExit) as exited:
        explain(picture, "--out", "map.jpg")
    assert exited.value.code == 2 and "ends in .png, got 'map.jpg'" in capsys.readouterr().err
