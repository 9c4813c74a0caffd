"""HTML that carries all that it needs, and in which no text can command the browser, nor hide."""

import base64
import unicodedata

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


MAX_CHARACTERS = 2_000  # of one text
HIDDEN = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")  # Unicode categories: control, bidi, tags, surrogates, ...
HARMLESS = "\n\t\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"  # Persian, Indic scripts and emoji need the two


def visible(text):
    """Returns the text (`str`) with every character that nobody would see as its number, at most `MAX_CHARACTERS`.

    >>> visible("a\\u202eb")
    'a[U+202E]b'
    """
    if isinstance(text, Markup):
        return text
    text = str(text)
    shown = "".join(
        f"[U+{ord(c):04X}]" if unicodedata.category(c) in HIDDEN and c not in HARMLESS else c
        for c in text[:MAX_CHARACTERS]
    )
    num_cut = len(text) - MAX_CHARACTERS
    return f"{shown} [... {num_cut:,} more characters]" if num_cut > 0 else shown


def data_url(data, media_type):
    """Returns the bytes as a `data:` URL (`Markup`: nothing in it needs escaping, and it is never cut)."""
    return Markup(f"data:{media_type};base64,{base64.b64encode(data).decode()}")


def templates(folder):
    """Returns the templates in a folder (`jinja2.Environment`): each value in them is escaped and made `visible`."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        finalize=visible,  # of every expression, so none can be forgotten
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
