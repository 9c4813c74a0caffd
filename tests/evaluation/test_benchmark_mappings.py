"""Which of our categories theirs are: the mappings that come along, and mappings of one's own."""

import pytest
from layouts import UNSAFEBENCH_ROWS, with_pictures, write_json

from safeqwen import CATEGORIES
from safeqwen.evaluation.benchmarks import load_benchmark
from safeqwen.evaluation.benchmarks.mapping import FOLDER, read_mapping


NAMES = [category.name for category in CATEGORIES]


def load(name, data, **settings):
    return load_benchmark(name, data, **{"categories": NAMES, **settings})


def own_mapping(tmp_path, entries):
    return write_json(tmp_path / "mapping.json", entries)


def test_a_mapping_of_ones_own_replaces_the_one_that_comes_along(tmp_path):
    file = own_mapping(tmp_path, {"hate": "gender", "SELF-HARM": {"no counterpart": "because"}, "Sexual": None})
    rows = list(load("unsafebench", with_pictures(UNSAFEBENCH_ROWS), mapping=file).examples)
    assert [row.category for row in rows] == ["safe", "gender_discrimination", None, None]
    assert [row.metadata.get("no counterpart") for row in rows] == [None, None, "no counterpart", "because"]


def test_a_mapping_serves_a_model_with_categories_of_its_own(tmp_path):
    categories = ["safe", "our_logo", "nudity"]
    data = with_pictures(UNSAFEBENCH_ROWS)
    with pytest.raises(ValueError, match="unsafebench.json maps 'Harassment' .* write a mapping of your own"):
        load("unsafebench", data, categories=categories)
    file = own_mapping(tmp_path, {"Sexual": "nudity", "Hate": None, "Self-harm": None})
    rows = list(load("unsafebench", data, categories=categories, mapping=file).examples)
    assert [row.category for row in rows] == ["safe", None, "nudity", None]


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ({"Hate": "harrassment"}, "maps 'Hate' to 'harrassment', .* this model: did you mean 'harassment'?"),
        ({"Hate": 4}, "maps 'Hate' to 4; expected a category's name, null or "),
        ({"Hate": {"reason": "none"}}, "maps 'Hate' to .*; expected a category's name, null or "),
        ({"Hate": None, "hate ": None}, "names 'hate ' twice"),
        ([], "must hold an object"),
        ({}, "must hold an object"),
    ],
)
def test_a_mapping_with_mistakes_is_refused(tmp_path, entries, error):
    with pytest.raises(ValueError, match=error):
        load("unsafebench", with_pictures(UNSAFEBENCH_ROWS), mapping=own_mapping(tmp_path, entries))


def test_a_mapping_that_cannot_be_read_is_refused(tmp_path):
    data = with_pictures(UNSAFEBENCH_ROWS)
    with pytest.raises(OSError, match="gone.json cannot be read: there is no such file"):
        load("unsafebench", data, mapping=tmp_path / "gone.json")
    (tmp_path / "mapping.json").write_text('{"Hate": ')
    with pytest.raises(ValueError, match="mapping.json is no valid JSON"):
        load("unsafebench", data, mapping=tmp_path / "mapping.json")


@pytest.mark.parametrize("name", ["mm-safetybench", "siuo", "vlsbench"])
def test_a_mapping_is_refused_where_pictures_have_no_labels(tmp_path, name):
    file = own_mapping(tmp_path, {"a": None})
    with pytest.raises(ValueError, match="has no labels of pictures: there is nothing to map"):
        load(name, tmp_path, mapping=file)
    with pytest.raises(ValueError, match="without categories: there is nothing to map"):
        load("safeeditbench", tmp_path, mapping=file)


PUBLISHED = {
    "holisafe_bench": NAMES,
    "unsafebench": [
        "Hate",
        "Harassment",
        "Violence",
        "Self-harm",
        "Sexual",
        "Shocking",
        "Illegal activity",
        "Deception",
        "Political",
        "Public and personal health",
        "Spam",
    ],
    "vlguard": [
        "privacy/personal data",
        "risky behavior/professional advice",
        "risky behavior/political",
        "risky behavior/sexually explicit",
        "risky behavior/violence",
        "deception/disinformation",
        "discrimination/sex",
        "discrimination/race",
        "discrimination/other",
    ],
    "llavaguard": [
        "O1: Hate, Humiliation, Harassment",
        "O2: Violence, Harm, or Cruelty",
        "O3: Sexual Content",
        "O4: Nudity Content",
        "O5: Criminal Planning",
        "O6: Weapons or Substance Abuse",
        "O7: Self-Harm",
        "O8: Animal Cruelty",
        "O9: Disasters or Emergencies",
        "NA: None applying",
    ],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_category_has_a_counterpart_or_a_reason(name):
    mapping = read_mapping(name, None, NAMES)
    assert list(mapping.names) == PUBLISHED[name]
    assert mapping.reasons.keys() == {theirs for theirs, ours in mapping.names.items() if ours is None}
    assert all(len(reason) > 10 for reason in mapping.reasons.values())
    assert sorted(file.stem for file in FOLDER.glob("*.json")) == sorted(PUBLISHED)
