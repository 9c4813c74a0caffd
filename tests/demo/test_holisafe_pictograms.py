"""The pictogram benchmark has HoliSafe-Bench's layout, tells the truth, and is the same each time it is drawn."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tools.demo import holisafe_pictograms
from tools.demo.holisafe_pictograms import HARMS, plan_benchmark
from tools.demo.holisafe_questions import SAFE, SAFE_ABOUT_THINGS, UNSAFE, UNSAFE_TOGETHER
from tools.demo.pictograms import FIRST_HELD_OUT_SEED, PICTOGRAMS, draw, subject


FIELDS = {"id", "image", "query", "type", "category", "subcategory", "image_safe", "image_safety_label"}
# As the files of HoliSafe-Bench spell them.
THEIR_NAMES = {
    "hate": {"gender", "race", "religion", "harassment", "disability_discrimination"},
    "illegal_activity": {"drug_related_hazards", "property_crime"},
    "privacy": {"facial_data_exposure", "identity_data_exposure"},
    "self_harm": {"physical_self_injury", "suicide"},
    "violence": {
        "animal_abuse",
        "obscene_gestures",
        "physical_altercation",
        "terrorism",
        "weapon_related_violence",
    },
    "sexual_content": {"sexual_content"},
    "specialized_advice": {"financial_advice", "medical_advice"},
}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark") / "holisafe"
    assert holisafe_pictograms.main(["--out", str(out), "--rows", "120", "--seed", "3"]) == 0
    return out, json.loads((out / "holisafe_bench.json").read_text(encoding="utf-8"))


def test_the_folder_has_the_layout_of_holisafe_bench(benchmark):
    out, rows = benchmark
    assert sorted(file.name for file in out.iterdir()) == ["holisafe_bench.json", "images"]
    assert len(rows) == 120 and all(set(row) == FIELDS for row in rows)
    assert [row["id"] for row in rows] == list(range(1, 121))
    for row in rows:
        assert row["subcategory"] in THEIR_NAMES[row["category"]]
        assert row["image_safe"] is (row["type"][0] == "S") is (row["image_safety_label"] == 0)
    drawn = {str(file.relative_to(out / "images")) for file in (out / "images").rglob("*") if file.is_file()}
    assert drawn == {row["image"] for row in rows}
    assert all(image.startswith("sexual_content/sexual_content_") for image in drawn if image.startswith("sexual"))
    assert any(image.startswith("hate/gender/gender_") for image in drawn)


def test_a_picture_shows_what_its_label_says(benchmark):
    out, rows = benchmark
    pictures, planned = plan_benchmark(120, seed=3)
    assert planned == rows
    labels = {row["image"]: row["image_safety_label"] for row in rows}
    for picture in pictures:
        assert list(PICTOGRAMS)[labels[picture.file]] == picture.drawn
        with Image.open(out / "images" / picture.file) as file:
            shown = np.asarray(file.convert("RGB"), dtype=int)
        style = {"line_style": "sketch", "background": "grid"} if picture.held_out_style else {}
        expected = np.asarray(draw(picture.drawn, picture.seed, size=shown.shape[0], **style), dtype=int)
        if picture.file.endswith("png"):
            assert (shown == expected).all()
        else:  # what is left of a coarse JPEG is nearest to the drawing that it was made of
            other = np.asarray(draw(picture.drawn, picture.seed + 1, size=shown.shape[0]), dtype=int)
            assert abs(shown - expected).mean() < 0.7 * abs(shown - other).mean()


def test_the_same_arguments_give_the_same_bytes_and_another_seed_other_drawings(benchmark, tmp_path):
    def digests(folder):
        return {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in folder.rglob("*")
            if file.is_file()
        }

    holisafe_pictograms.write_benchmark(tmp_path / "again", 120, seed=3)
    assert digests(tmp_path / "again") == digests(benchmark[0])
    holisafe_pictograms.write_benchmark(tmp_path / "other", 120, seed=4)
    assert not set(digests(tmp_path / "other").values()) & set(digests(benchmark[0]).values())


def test_a_thousand_rows_have_five_types_and_pictures_that_are_asked_about_more_than_once():
    pictures, rows = plan_benchmark(1000)
    assert Counter(row["type"] for row in rows) == {"SSS": 200, "SSU": 180, "SUU": 240, "USU": 180, "UUU": 200}
    assert len({(row["image"], row["query"]) for row in rows}) == 1000
    # 4031 rows about 1796 pictures, as HoliSafe-Bench, would be 446; either kind of picture is rounded for itself.
    assert len({row["image"] for row in rows}) == len(pictures) == 445
    assert set(Counter(row["image"] for row in rows).values()) <= {2, 3}
    assert {row["image_safety_label"] for row in rows} == set(range(20))
    assert 0.05 < sum(picture.held_out_style for picture in pictures) / len(pictures) < 0.15
    assert 0.4 < sum(picture.file.endswith("jpg") for picture in pictures) / len(pictures) < 0.6
    assert min(picture.seed for picture in pictures) >= FIRST_HELD_OUT_SEED
    assert len({picture.seed for picture in pictures}) == len(pictures)


def test_a_question_fits_its_type_and_its_picture():
    pictures, rows = plan_benchmark(1000)
    by_file = {picture.file: picture for picture in pictures}
    unsafe = {question for questions in UNSAFE.values() for question in questions}
    for row in rows:
        picture, query = by_file[row["image"]], row["query"]
        if row["type"] == "SSS":
            assert query in SAFE + SAFE_ABOUT_THINGS
        elif row["type"] == "USU":
            assert query in SAFE
        elif row["type"] == "SSU":
            assert query in [question for _, question in UNSAFE_TOGETHER[subject("safe", picture.seed)]]
        else:
            assert query in unsafe
        if row["type"] == "UUU":
            assert query in UNSAFE[picture.drawn]


def test_there_are_questions_for_every_harm_and_every_harmless_thing():
    harms = [harm.name for harm in HARMS]
    assert list(UNSAFE) == harms and len(harms) == 19
    assert set(UNSAFE_TOGETHER) == set(PICTOGRAMS["safe"])
    assert {harm for pairs in UNSAFE_TOGETHER.values() for harm, _ in pairs} == set(harms)
    questions = [question for questions in UNSAFE.values() for question in questions]
    together = [question for pairs in UNSAFE_TOGETHER.values() for _, question in pairs]
    everything = [*questions, *together, *SAFE, *SAFE_ABOUT_THINGS]
    assert len(everything) == len(set(everything)) >= 150


@pytest.mark.parametrize("options", [["--rows", "99"], ["--rows", "10001"], ["--seed", "-1"]])
def test_what_cannot_be_drawn_is_refused(tmp_path, options, capsys):
    with pytest.raises(SystemExit):
        holisafe_pictograms.main(["--out", str(tmp_path / "out"), *options])
    assert "expected" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_nothing_is_written_into_a_folder_that_holds_something(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit):
        holisafe_pictograms.main(["--out", str(tmp_path)])
    assert "empty" in capsys.readouterr().err and len(list(tmp_path.iterdir())) == 1
