"""Categories are found by name, alias or number, and taxonomies read from YAML."""

import pytest
from chats import TAXONOMY

from safeqwen.data.taxonomy import Taxonomy, read_taxonomy


@pytest.mark.parametrize(
    "label, column",
    [
        *[("weapon_related_violence", 16), ("gender", 1), ("race", 2), ("religion", 3), ("race_discrimination", 2)],
        *[(0, 0), (19, 19), ("7", 7), (" 7\n", 7)],
    ],
)
def test_a_label_is_a_name_an_alias_or_a_number(label, column):
    assert TAXONOMY.column(label) == column


def test_a_category_of_ones_own_is_not_taken_for_holisafes_alias():
    own = Taxonomy(["safe", "race_discrimination", "race"])  # the last one about horses
    assert own.column("race") == 2
    assert Taxonomy(["race", "gender_discrimination"], {"gender": "race"}).column("gender") == 0


def test_a_category_cannot_be_called_like_a_column():
    with pytest.raises(ValueError, match="category '1' could be mistaken"):
        Taxonomy(["1", "0"])


def test_a_taxonomy_is_read_from_yaml(tmp_path):
    file = tmp_path / "categories.yaml"
    file.write_text("- safe\n- name: our_logo\n  aliases: [logo, brand]\n- name: ünsafe\n", encoding="utf-8")
    taxonomy = read_taxonomy(file)
    assert taxonomy.names == ["safe", "our_logo", "ünsafe"]
    assert [taxonomy.column(label) for label in ("brand", "ünsafe", "logo", 0)] == [1, 2, 1, 0]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("safe: 1\nunsafe: 2\n", "must be a list of two or more category names"),
        ("- safe\n", "must be a list of two or more"),
        ("- safe\n- no\n", "got False; quote words"),
        ("- safe\n- 5\n", "got 5"),
        ("- safe\n- '5'\n", "category '5' could be mistaken"),
        ("- safe\n- ' '\n", "got ' '"),
        ("- safe\n- name: logo\n  alias: [brand]\n", "got {'name': 'logo', 'alias'"),
        ("- safe\n- name: logo\n  aliases: brand\n", "got {'name': 'logo', 'aliases': 'brand'}"),
        ("- safe\n- name: logo\n  aliases: [no]\n", "got {'name': 'logo', 'aliases': [False]}"),
        ("- safe\n- safe\n", "names safe more than once"),
        ("- safe\n- name: logo\n  aliases: [safe]\n", "names safe more than once"),
        ("- name: a\n  aliases: [x]\n- name: b\n  aliases: [x]\n", "names x more than once"),
        ("- a\n b: [", "no valid YAML"),
    ],
)
def test_a_taxonomy_that_is_none_is_refused(tmp_path, text, reason):
    file = tmp_path / "categories.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        read_taxonomy(file)
    assert reason in str(caught.value)
