"""One self-contained HTML page: no script, nothing from the network, and no text or picture that could command it.

`page.html.jinja` is the frame, `parts.html.jinja` holds macros, `page.css` is the look; a report is a template that
extends the frame.
"""

import base64
import hashlib
import io
from pathlib import Path

from markupsafe import Markup

from safeqwen.pictures import read_image
from safeqwen.showing.html import data_url, templates


TEMPLATES = Path(__file__).parent
THUMBNAIL_PIXELS = 320  # of the longer side


def render(template, **values):
    """Returns the page (`str`) of a template in this folder; every value in it is escaped and made `visible`.

    Raises:
        jinja2.UndefinedError: if the template uses a value that is not given.
    """
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    # The browser applies this style alone: none that a text might smuggle in.
    style_hash = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return templates(TEMPLATES).get_template(template).render(style=Markup(style), style_hash=style_hash, **values)


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
