"""HoliSafe's categories (arXiv 2506.04704) in words: what each is called, where it belongs and its other names."""

from dataclasses import dataclass

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
