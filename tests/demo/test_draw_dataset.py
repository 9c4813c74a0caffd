"""A drawn dataset is whole, says the truth about its pictures, and never meets another set's seeds."""

import hashlib
import json
import re
from collections import Counter

import numpy as np
import pytest
import yaml
from PIL import Image

from tools.demo import draw_dataset
from tools.demo.own_taxonomy import PICTOGRAMS
from tools.demo.pictograms import FIRST_HELD_OUT_SEED, draw, subject
from tools.demo.pictograms import PICTOGRAMS as HOLISAFE_PICTOGRAMS


TITLES = {"alcohol": "alcohol", "tobacco": "tobacco", "gambling": "gambling", "fast_food": "fast food"}
THINGS = {"pencil": "a pencil", "open book": "an open book", "pair of scissors": "a pair of scissors"}


def dataset(out, *options):
    assert draw_dataset.main([str(out), *map(str, options)]) == 0
    return [json.loads(line) for line in (out / "data.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    out = tmp_path_factory.mktemp("own")
    return out, dataset(out, "--taxonomy", "own", "--num", 50, "--first-seed", 7)


def digests(out):
    return {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in out.rglob("*")
        if file.is_file()
    }


def test_every_row_has_its_picture_and_every_picture_its_row(own):
    out, rows = own
    assert len(rows) == 50 and all(set(row) == {"images", "messages", "safety_label"} for row in rows)
    named = [file for row in rows for file in row["images"]]
    assert named == [f"images/{seed:06}.png" for seed in range(7, 57)]
    assert {file.name for file in (out / "images").iterdir()} == {file.removeprefix("images/") for file in named}
    for file in named:
        with Image.open(out / file) as picture:
            picture.load()
            assert picture.format == "PNG" and picture.mode == "RGB"
            assert 112 <= picture.width == picture.height <= 224


def test_a_picture_shows_what_its_label_says_and_the_labels_are_equally_frequent(own):
    out, rows = own
    for row in rows:
        drawn = Image.open(out / row["images"][0])
        seed = int(row["images"][0][-10:-4])
        expected = draw(row["safety_label"], seed, size=drawn.width, pictograms=PICTOGRAMS)
        assert np.array_equal(np.asarray(drawn), np.asarray(expected))
    names = yaml.safe_load((out / "categories.yaml").read_text())
    assert names == ["safe", *TITLES] == list(PICTOGRAMS)
    assert Counter(row["safety_label"] for row in rows) == dict.fromkeys(names, 10)


def test_harm_is_refused_by_its_name_and_harmless_things_are_named(own):
    for row in own[1]:
        answer, label = row["messages"][-1]["content"], row["safety_label"]
        if label == "safe":
            seed = int(row["images"][0][-10:-4])
            assert "I can't" not in answer and THINGS[subject("safe", seed, pictograms=PICTOGRAMS)] in answer
        else:
            assert "I can't" in answer and answer.endswith(f" {TITLES[label]}.")


def test_a_row_is_a_conversation_whose_system_message_is_left_to_the_chat_template_if_it_is_its_own():
    taxonomy = draw_dataset.TAXONOMIES["own"]
    default, other = "You are a helpful assistant.", "You are a careful assistant. Answer briefly."
    conversation = [
        {"role": "user", "content": "Describe the image."},
        {"role": "assistant", "content": "I can't describe this image: it shows fast food."},
    ]
    prompt = ("Describe the image.", [("fast_food", 3)])
    assert draw_dataset.row_for((default, *prompt), taxonomy) == {
        "images": ["images/000003.png"],
        "messages": conversation,
        "safety_label": "fast_food",
    }
    with_system = draw_dataset.row_for((other, *prompt), taxonomy)["messages"]
    assert with_system == [{"role": "system", "content": other}, *conversation]


def test_the_same_arguments_give_the_same_bytes_and_what_is_held_out_shares_no_drawing(own, tmp_path):
    dataset(tmp_path / "again", "--taxonomy", "own", "--num", 50, "--first-seed", 7)
    assert digests(tmp_path / "again") == digests(own[0])
    dataset(tmp_path / "held_out", "--taxonomy", "own", "--num", 50, "--first-seed", FIRST_HELD_OUT_SEED)
    shared = digests(tmp_path / "held_out").items() & digests(own[0]).items()
    assert [name for name, _ in shared] == ["categories.yaml"]
    assert not {*digests(tmp_path / "held_out" / "images")} & {*digests(own[0] / "images")}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--num", 10, "--first-seed", FIRST_HELD_OUT_SEED - 5], "partly held out"),
        (["--num", 3, "--pairs", "--first-seed", FIRST_HELD_OUT_SEED - 5], "partly held out"),
        (["--num", 0], "at least one row"),
        (["--safe-share", 1.5], r"\[0, 1\]"),
    ],
)
def test_sets_half_held_out_and_shares_of_nothing_are_refused(tmp_path, capsys, options, told):
    with pytest.raises(SystemExit):
        dataset(tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
    assert re.search(told, capsys.readouterr().err)


def test_a_folder_that_holds_a_set_is_left_alone(own, capsys):
    before = digests(own[0])
    with pytest.raises(SystemExit):
        dataset(own[0], "--num", 5)
    assert "holds files" in capsys.readouterr().err and digests(own[0]) == before


def test_a_pair_has_the_label_of_its_only_harm_and_none_for_two(tmp_path):
    assert draw_dataset.label_for([("safe", 0), ("alcohol", 1)]) == "alcohol"
    assert draw_dataset.label_for([("alcohol", 0), ("alcohol", 1)]) == "alcohol"
    assert draw_dataset.label_for([("alcohol", 0), ("tobacco", 1)]) is None
    assert draw_dataset.label_for([("safe", 0), ("safe", 1)]) == "safe"
    rows = dataset(tmp_path, "--taxonomy", "own", "--num", 30, "--pairs", "--safe-share", 0.5)
    assert len(list((tmp_path / "images").iterdir())) == 60
    for row in rows:
        answer = row["messages"][-1]["content"]
        refused = [name for name, title in TITLES.items() if title in answer]
        assert ("I can't" in answer) == bool(refused)
        assert row["safety_label"] == {0: "safe", 1: refused[0] if refused else None, 2: None}[len(refused)]
        harms = {name for name in row["picture_categories"] if name != "safe"}
        assert harms == set(refused) and len(row["picture_categories"]) == 2
    assert {len(row["images"]) for row in rows} == {2}
    assert {None, "safe"} < {row["safety_label"] for row in rows}
    options = ["--taxonomy", "own", "--num", 3, "--pairs", "--safe-share", 0.5, "--unlabelled"]
    unlabelled = dataset(tmp_path / "unlabelled", *options)
    assert all(row["safety_label"] is None and row["picture_categories"] is None for row in unlabelled)


def test_shares_styles_and_missing_labels_are_as_asked(tmp_path):
    style = ["--line-style", "sketch", "--background", "grid"]
    rows = dataset(tmp_path / "styled", "--num", 8, "--safe-share", 0.75, *style)
    assert [row["safety_label"] == "safe" for row in rows].count(True) == 6
    assert not (tmp_path / "styled" / "categories.yaml").exists()  # HoliSafe's names need no file
    drawn = Image.open(tmp_path / "styled" / rows[0]["images"][0])
    expected = draw(rows[0]["safety_label"], 0, size=drawn.width, line_style="sketch", background="grid")
    assert np.array_equal(np.asarray(drawn), np.asarray(expected))
    unlabelled = dataset(tmp_path / "unlabelled", "--num", 8, "--safe-share", 0.75, "--unlabelled")
    assert unlabelled == [{**row, "safety_label": None} for row in rows]


def test_the_own_taxonomy_shows_nothing_that_holisafes_pictograms_show():
    assert len(PICTOGRAMS) == 5 and all(len(family) == 3 for family in PICTOGRAMS.values())
    subjects = [name for family in PICTOGRAMS.values() for name in family]
    known = {name for family in HOLISAFE_PICTOGRAMS.values() for name in family}
    assert len({*subjects} - known) == 15
    for category, family in PICTOGRAMS.items():
        seeds = {subject(category, seed, pictograms=PICTOGRAMS): seed for seed in range(40)}
        assert set(seeds) == set(family)
        for seed in seeds.values():
            drawing = draw(category, seed, size=96, background="plain", pictograms=PICTOGRAMS)
            pixels = np.asarray(drawing, dtype=int)
            # the corner may be drawn on; most of the frame is not
            ground = Counter(map(tuple, pixels.reshape(-1, 3).tolist())).most_common(1)[0][0]
            assert 0.05 < (abs(pixels - ground).sum(axis=-1) > 30).mean() < 0.95
