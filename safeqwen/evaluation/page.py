"""One self-contained HTML page: nothing from the network, and no text or picture that could command it.

`page.html.jinja` is the frame, `parts.html.jinja` holds macros, `page.css` is the look; a report is a template that
extends the frame, here or in another folder.
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


def render(template, *, folder=TEMPLATES, more_style="", script=None, **values):
    """Returns the page (`str`) of a template; every value in it is escaped and made `visible`.

    Args:
        template (`str`): a file in the `folder`, or in this one.
        folder (`Path`): where templates of the page's own are.
        more_style (`str`): CSS beside page.css.
        script (`str`, *optional*): the one script that may run, which the template puts into a `<script>`.

    Raises:
        jinja2.UndefinedError: if the template uses a value that is not given.
    """
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8") + more_style
    return (
        templates([folder, TEMPLATES])
        .get_template(template)
        .render(
            style=Markup(style),
            style_hash=_digest(style),
            script=script and Markup(script),
            script_hash=script and _digest(script),
            **values,
        )
    )


def _digest(text):
    """What the page's policy names a style or script by: the browser applies this alone, none that is smuggled in."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def thumbnail(data, view=0, pixels=THUMBNAIL_PIXELS, quality=75):
    """Returns a picture (`bytes` of its file) as a small WebP in a `data:` URL, without metadata.

    Args:
        view (`int`): which of the views of [`safeqwen.read_image`].
        pixels (`int`): of the longer side, at most.
        quality (`int` in [0, 100]): of the WebP.

    Raises:
        UnreadableImage: if it cannot be read.
    """
    views = read_image(data)
    return webp(views[min(view, len(views) - 1)], pixels, quality)


def webp(picture, pixels, quality):
    """Returns a `PIL.Image.Image`, made small in place, as a WebP in a `data:` URL; see `thumbnail`."""
    picture.thumbnail((pixels, pixels))
    picture.info.clear()  # no colour profile, no comment
    small = io.BytesIO()
    picture.save(small, "WEBP", quality=quality)
    return data_url(small.getvalue(), "image/webp")
