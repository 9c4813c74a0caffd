"""The categories: HoliSafe's (arXiv 2506.04704) in words, and taxonomies of one's own."""

import difflib
from collections import Counter
from dataclasses import dataclass

import yaml

from safeqwen.data.sources import BadRow, read_text
from safeqwen.hub.configuration_safeqwen import HOLISAFE_CATEGORIES


@dataclass(frozen=True)
class Category:
    """
    One output column of a HoliSafe guard.

    Args:
        name (`str`): as in `config.safety_categories`.
        title (`str`): for people, lower case, to stand within a sentence.
        group (`str`): HoliSafe's main category; "safe" for harmless pictures.
        aliases (`tuple[str, ...]`): what HoliSafe's data files call it, where that differs.
    """

    name: str
    title: str
    group: str
    aliases: tuple[str, ...] = ()


GROUPS = {
    "safe": ("safe",),
    "hate": (
        "gender_discrimination",
        "race_discrimination",
        "religion_discrimination",
        "harassment",
        "disability_discrimination",
    ),
    "illegal activity": ("drug_related_hazards", "property_crime"),
    "privacy": ("facial_data_exposure", "identity_data_exposure"),
    "self-harm": ("physical_self_injury", "suicide"),
    "violence": (
        "animal_abuse",
        "obscene_gestures",
        "physical_altercation",
        "terrorism",
        "weapon_related_violence",
    ),
    "sexual": ("sexual_content",),
    "specialized advice": ("financial_advice", "medical_advice"),
}

ALIASES = {
    "gender_discrimination": ("gender",),
    "race_discrimination": ("race",),
    "religion_discrimination": ("religion",),
}

TITLES = {"drug_related_hazards": "drug-related hazards", "weapon_related_violence": "weapon-related violence"}

CATEGORIES = tuple(
    Category(
        name=name,
        title=TITLES.get(name, name.replace("_", " ")),
        group=next(group for group, names in GROUPS.items() if name in names),
        aliases=ALIASES.get(name, ()),
    )
    for name in HOLISAFE_CATEGORIES
)


def title_of(name):
    """Returns a category in words (`str`), such as "drug-related hazards"; one of one's own by its name."""
    return next((known.title for known in CATEGORIES if known.name == name), name.replace("_", " "))


class Taxonomy:
    """
    Finds the column of a label by name, alias or number.

    Args:
        names (`list[str]`): the guard's categories, in their order.
        aliases (`dict[str, str]`, *optional*): other names -> names. HoliSafe's own come along, where they are free.

    Raises:
        ValueError: if a name or alias is a number.
    """

    def __init__(self, names, aliases=None):
        self.names = list(names)
        known = {alias: category.name for category in CATEGORIES for alias in category.aliases}
        self.aliases = {
            alias: name
            for alias, name in {**known, **(aliases or {})}.items()
            if name in self.names and alias not in self.names
        }
        if numbers := [name for name in (*self.names, *self.aliases) if name.strip().isdecimal()]:
            raise ValueError(f"category {numbers[0]!r} could be mistaken for the number of a column; give it a word")

    def column(self, label):
        """
        Returns the column (`int`) of a label.

        Raises:
            BadRow: if the label is no category's name, alias or number.
        """
        if isinstance(label, (list, tuple, dict)):
            raise BadRow(f"holds several verdict labels, {label!r}; a row is judged as a whole: give it one")
        if isinstance(label, bool) or not isinstance(label, (str, int)):
            raise BadRow(f"label {label!r} is neither a category's name nor its whole number; null is for no label")
        if isinstance(label, str) and not label.strip().isdecimal():
            name = self.aliases.get(label, label)
            if name not in self.names:
                near = difflib.get_close_matches(label.strip().lower(), [*self.names, *self.aliases], n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(self.names)}"
                raise BadRow(f"label {label!r} is no category of this taxonomy; {hint}")
            return self.names.index(name)
        if not 0 <= int(label) < len(self.names):
            raise BadRow(
                f"label {label!r} is outside of the taxonomy, whose {len(self.names)} categories are 0 to "
                f"{len(self.names) - 1}; was the data labelled with another taxonomy? null is for no label"
            )
        return int(label)


def read_taxonomy(path):
    """
    Returns the taxonomy in a YAML file: a list of names, or of `{name: ..., aliases: [...]}`.

        - safe
        - name: our_logo
          aliases: [logo, brand]

    Raises:
        ValueError: if the file holds anything else, or a name twice.
        OSError: if it cannot be read.
    """
    expected = f"{path} must be a list of two or more category names, each a word or {{name: ..., aliases: [...]}}"
    try:
        entries = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{expected}, but is no valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(entries, list) or len(entries) < 2:
        raise ValueError(f"{expected}, got {entries!r}")
    names, aliases = [], []
    for entry in entries:
        known = entry if isinstance(entry, dict) else {"name": entry}
        others = known.get("aliases") or []
        words = [known.get("name"), *(others if isinstance(others, list) else [None])]
        if set(known) - {"name", "aliases"} or not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError(f"{expected}, got {entry!r}; quote words that YAML takes for something else, as 'no'")
        names.append(words[0])
        aliases += [(alias, words[0]) for alias in others]
    if twice := [word for word, count in Counter([*names, *(alias for alias, _ in aliases)]).items() if count > 1]:
        raise ValueError(f"{path} names {', '.join(twice)} more than once; a category needs a name of its own")
    return Taxonomy(names, dict(aliases))
