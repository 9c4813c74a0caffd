"""What the page shows of a visit, as HTML; verdicts look as they do in a notebook."""

import io
from pathlib import Path

from safeqwen.data.taxonomy import title_of
from safeqwen.showing.colours import overlay
from safeqwen.showing.html import data_url, templates
from safeqwen.showing.notebook import blurred, verdict_html


HERE = Path(__file__).parent
MAP_SIDE = 720  # pixels of the longer side of a picture below its heat map
TEMPLATES = templates(HERE)
CSS = (HERE / "page.css").read_text(encoding="utf-8")
SCRIPT = (HERE / "page.js").read_text(encoding="utf-8")
EXAMPLES = {
    "safe": "harmless",
    "weapon_related_violence": "weapon",
    "drug_related_hazards": "drugs",
    "animal_abuse": "cruelty",
    "scene": "one of four",
}  # examples/*.png, drawn by scripts/draw_screenshots.py -> its name on the page


def example_bytes(name):
    """Returns the picture file (`bytes`) of an example."""
    return (HERE / "examples" / f"{name}.png").read_bytes()


def styles():
    """Returns the page's rules (`str`), with the examples' pictures in them: nothing is loaded from elsewhere."""
    pictures = (
        f"#example-{i}::before{{background-image:url({data_url(example_bytes(name), 'image/png')})}}"
        for i, name in enumerate(EXAMPLES)
    )
    return CSS + "\n".join(pictures)


def about(is_demo, model_name, is_shared):
    """Returns what stands at the top (`str`): what the model knows, and what becomes of the pictures."""
    return TEMPLATES.get_template("about.html.jinja").render(
        is_demo=is_demo, model_name=model_name, is_shared=is_shared
    )


def verdicts_html(verdicts):
    """Returns the verdicts (`str`), the newest first; of none what to do."""
    if not verdicts:
        return '<div class="safeqwen"><p class="empty">The verdict will stand here.</p></div>'
    return "".join(verdict_html(verdict) for verdict in reversed(verdicts))


def map_html(verdict, heatmap, opacity, reveal):
    """
    Returns the picture with the heat map over it (`str`).

    Args:
        verdict ([`Verdict`])
        heatmap ([`Heatmap`] or `str`): or why there is none.
        opacity (`float` in [0, 1])
        reveal (`bool`): whether a flagged picture is shown as it is; else the map lies over a blurred one.
    """
    if isinstance(heatmap, str):
        return TEMPLATES.get_template("map.html.jinja").render(reason=heatmap, name=verdict.name)
    picture, is_veiled = heatmap.picture, verdict.flagged and not reveal
    size = _fitted(picture.size)
    picture = (blurred(picture) if is_veiled else picture).resize(size)
    file = io.BytesIO()
    overlay(picture, heatmap.values, opacity).save(file, "JPEG", quality=85)
    return TEMPLATES.get_template("map.html.jinja").render(
        reason=None,
        name=verdict.name,
        url=data_url(file.getvalue(), "image/jpeg"),
        size=size,
        title=title_of(heatmap.category),
        percent=f"{100 * heatmap.probability:.1f} %",
        is_veiled=is_veiled,
    )


def conversation_html(turns, busy=False):
    """Returns the questions and answers (`str`), as text: what a model writes cannot command the browser."""
    return TEMPLATES.get_template("conversation.html.jinja").render(turns=turns, busy=busy)


def _fitted(size):
    scale = MAP_SIDE / max(size)
    return tuple(max(1, round(length * scale)) for length in size)
