"""One self-contained HTML page: no script, nothing from the network, and no text or picture that could command it.

`page.html.jinja` is the frame, `parts.html.jinja` holds macros, `page.css` is the look; a report is a template that
extends the frame.
"""

import base64
import hashlib
import io
import unicodedata
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from safeqwen.pictures import read_image


TEMPLATES = Path(__file__).parent
THUMBNAIL_PIXELS = 320  # of the longer side
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


def render(template, **values):
    """Returns the page (`str`) of a template in this folder; every value in it is escaped and made `visible`.

    Raises:
        jinja2.UndefinedError: if the template uses a value that is not given.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=visible,  # of every expression, so none can be forgotten
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    # The browser applies this style alone: none that a text might smuggle in.
    style_hash = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template(template).render(style=Markup(style), style_hash=style_hash, **values)


def thumbnail(data, view=0):
    """Returns a picture (`bytes` of its file) as a small WebP in a `data:` URL, without metadata.

    Args:
        view (`int`): which of the views of [`safeqwen.read_image`].

    Raises:
        UnreadableImage: if it cannot be read.
    """
    views = read_image(data)
    picture = views[min(view, len(views) - 1)]
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    small = io.BytesIO()
    picture.save(small, "WEBP", quality=75)
    return data_url(small.getvalue(), "image/webp")


def data_url(data, media_type):
    """Returns the bytes as a `data:` URL (`Markup`: nothing in it needs escaping, and it is never cut)."""
    return Markup(f"data:{media_type};base64,{base64.b64encode(data).decode()}")
