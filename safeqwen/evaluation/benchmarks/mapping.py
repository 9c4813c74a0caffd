"""Which of our categories a benchmark's category is, and why some are none of ours."""

import difflib
import json
from pathlib import Path

from safeqwen.data.sources import BadRow, read_text
from safeqwen.data.taxonomy import Taxonomy
from safeqwen.judging.verdict import SAFE


FOLDER = Path(__file__).parent
NO_COUNTERPART = "no counterpart"


def hint(word, known):
    """Returns half a sentence (`str`) that names the known word nearest to `word`, or all of them."""
    names = {str(name).lower(): name for name in known}
    near = difflib.get_close_matches(str(word).strip().lower(), names, n=1)
    return f"did you mean {names[near[0]]!r}?" if near else f"expected one of {', '.join(map(str, known))}"


class Mapping:
    """
    Finds our category for a benchmark's.

    Args:
        names (`dict[str, str | None]`): their category -> ours; `None` for one without a counterpart.
        reasons (`dict[str, str]`): their category -> why it has none.
        safe (`str`, *optional*): our category of harmless pictures, if there is one.
    """

    def __init__(self, names, reasons, safe):
        self.names, self.reasons, self.safe = names, reasons, safe
        self._written = {name.strip().lower(): name for name in names}

    def label(self, example, theirs, unsafe=None):
        """
        Sets `unsafe`, `category` and `their_category` of an example.

        Args:
            example ([`Example`])
            theirs (`str`): the benchmark's category, whatever its case.
            unsafe (`bool`, *optional*): its label of the picture; by default any category but the safe one is unsafe.

        Raises:
            BadRow: if the category is not in the mapping, or is the safe one and the picture unsafe.
        """
        example.unsafe = unsafe
        if not isinstance(theirs, str) or theirs.strip().lower() not in self._written:
            raise BadRow(f"has the category {theirs!r}, which is not in the mapping; {hint(theirs, self.names)}")
        known = self._written[theirs.strip().lower()]
        ours = self.names[known]
        if unsafe is None:
            unsafe = ours is None or ours != self.safe
        elif unsafe and ours is not None and ours == self.safe:
            raise BadRow(f"is an unsafe picture of the category {theirs!r}, which is for safe ones")
        example.unsafe, example.their_category = unsafe, theirs
        example.category = ours if unsafe else self.safe
        if unsafe and ours is None:
            example.metadata[NO_COUNTERPART] = self.reasons.get(known, NO_COUNTERPART)


def identity(categories):
    """Returns the mapping of data that use the model's own names, or HoliSafe's other names for them."""
    taxonomy = Taxonomy(categories)
    return Mapping({**{name: name for name in taxonomy.names}, **taxonomy.aliases}, {}, _safe(categories))


def read_mapping(benchmark, path, categories):
    """
    Returns the mapping in a JSON file, by default the one that comes with a benchmark.

        {"Sexual": "sexual_content", "Spam": null, "Deception": {"no counterpart": "none of ours is about lies"}}

    Args:
        benchmark (`str`): name of its file in the package.
        path (`str` or `os.PathLike`, *optional*): a file of one's own.
        categories (`list[str]`): the model's.

    Raises:
        ValueError: if the file is no such object, names a category twice, or one that the model lacks.
        OSError: if it cannot be read.
    """
    file = FOLDER / f"{benchmark}.json" if path is None else Path(path)
    try:
        entries = json.loads(read_text(file), object_pairs_hook=lambda pairs: _once(pairs, file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no valid JSON ({error})") from error
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f'{file} must hold an object, {{"their category": "ours" or null, ...}}, got {entries!r}')
    taxonomy, names, reasons = Taxonomy(categories), {}, {}
    for theirs, ours in entries.items():
        if isinstance(ours, dict) and set(ours) == {NO_COUNTERPART} and isinstance(ours[NO_COUNTERPART], str):
            names[theirs], reasons[theirs] = None, ours[NO_COUNTERPART]
        elif ours is None:
            names[theirs] = None
        elif not isinstance(ours, str):
            raise ValueError(
                f"{file} maps {theirs!r} to {ours!r}; expected a category's name, null or "
                f'{{"{NO_COUNTERPART}": "why"}}'
            )
        else:
            name = taxonomy.aliases.get(ours, ours)
            if name not in taxonomy.names:
                own = "" if path is not None else "; for a model with other categories write a mapping of your own"
                raise ValueError(
                    f"{file} maps {theirs!r} to {ours!r}, which is no category of this model: "
                    f"{hint(ours, [*taxonomy.names, *taxonomy.aliases])}{own}"
                )
            names[theirs] = name
    return Mapping(names, reasons, _safe(categories))


def _safe(categories):
    return SAFE if SAFE in categories else None


def _once(pairs, file):
    seen = set()
    for key, _ in pairs:
        if key.strip().lower() in seen:
            raise ValueError(f"{file} names {key!r} twice; a category has one counterpart")
        seen.add(key.strip().lower())
    return dict(pairs)
