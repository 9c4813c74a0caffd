"""A verdict as HTML that a notebook shows: picture, bars, thresholds, the decision in words, and the heat map.

A fragment needs no script, no network and no style: where a viewer drops `<style>`, as GitHub does, the table still
says everything, and a flagged picture is still not seen before it is asked for. So what stands there first is blurred
in its pixels, and the clear picture lies in `<details>`.
"""

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from weakref import WeakKeyDictionary

from markupsafe import Markup
from PIL import Image, ImageFilter

from safeqwen.data.taxonomy import title_of
from safeqwen.showing.bars import bar_rows, is_of_another_view
from safeqwen.showing.html import data_url, templates


TEMPLATES = Path(__file__).parent
MAX_SIDE = 320  # pixels of the longer side of an embedded picture
SIDE, GRID_SIDE = 256, 192  # pixels of the longer side, as shown
MAX_BYTES, GRID_MAX_BYTES = 10_000, 5_000  # of one picture: one that cannot be packed so small has fewer pixels
BLURRED_SIDE, BLUR_RADIUS = 32, 5  # pixels: what is smaller than a sixth of the picture cannot be made out


def caption(verdict):
    """Returns what the bars of a verdict are (`str`)."""
    if verdict.decision is None:
        return "Probabilities by the guard; there is no policy"
    return "Probabilities, calibrated by the policy; the mark is the policy's threshold"


@dataclass(frozen=True)
class Picture:
    """A small picture to embed: its `data:` URL, and width and height in pixels."""

    url: str
    width: int
    height: int


@dataclass(frozen=True)
class Shown:
    """What the template shows of a verdict; of an error only `name` and `error`."""

    name: str
    error: str | None = None
    flagged: bool = False
    decision: str = ""
    notes: tuple = ()
    rows: tuple = ()
    caption: str = ""
    blurred: Picture | None = None
    picture: Picture | None = None
    overlay: Picture | None = None
    overlay_caption: str = ""


def verdict_html(verdict, heatmap=None):
    """
    Returns a verdict as a fragment of HTML (`str`), of some 30 kB at most.

    A flagged picture is blurred, and its heat map hidden, until a person asks for them. All text is escaped.

    Args:
        verdict ([`Verdict`])
        heatmap ([`Heatmap`] or `str`, *optional*): where the verdict comes from, or why that cannot be shown.
    """
    return str(macro("fragment", _shown(verdict, heatmap, SIDE, MAX_BYTES), style()))


_FRAGMENTS = WeakKeyDictionary()  # verdict -> its fragment with a heat map, which took a forward and a backward


def notebook_html(verdict):
    """Returns `verdict_html` (`str`) with the heat map of the label: what `Verdict._repr_html_` returns."""
    if verdict in _FRAGMENTS:
        return _FRAGMENTS[verdict]
    heatmap = heatmap_or_reason(verdict)
    html = verdict_html(verdict, heatmap)
    if not isinstance(heatmap, str):  # a reason may be another one next time
        _FRAGMENTS[verdict] = html
    return html


def heatmap_or_reason(verdict):
    """
    Returns the [`Heatmap`] of a verdict's label, the reason (`str`) if there can be none, or `None` for an error and
    for "safe", which comes from no place.
    """
    if verdict.error is not None or verdict.label == "safe":
        return None
    try:
        return verdict.heatmap()
    except (ValueError, RuntimeError, FloatingPointError, OSError, MemoryError) as error:
        return str(error) or type(error).__name__


def show(verdicts, heatmaps=False):
    """
    Returns a [`Grid`] of all the verdicts, errors among them, in their order, which a notebook shows.

    Args:
        verdicts (iterable of [`Verdict`], or one)
        heatmaps (`bool`): whether to compute the map of each whose label is a harm, which takes a forward and a
            backward.

    Raises:
        TypeError: on anything else, as what `pipeline("image-safety")` returns when it is called.
    """
    verdicts = [verdicts] if hasattr(verdicts, "policy") else list(verdicts)
    if foreign := [entry for entry in verdicts if not hasattr(entry, "policy")]:
        raise TypeError(
            "show expects verdicts, as SafetyPipeline.verdict, .verdicts and Verdict.of return them, got "
            f"{type(foreign[0]).__name__}"
        )
    return Grid(verdicts, [heatmap_or_reason(verdict) if heatmaps else None for verdict in verdicts])


class Grid:
    """Verdicts side by side in a notebook, and one below the other in a terminal."""

    def __init__(self, verdicts, heatmaps):
        shown = [_shown(*pair, GRID_SIDE, GRID_MAX_BYTES) for pair in zip(verdicts, heatmaps)]
        self._html = str(macro("grid", shown, style()))
        self._lines = [repr(verdict) for verdict in verdicts]

    def __repr__(self):
        return "\n".join(self._lines)

    def _repr_html_(self):
        return self._html


# ----------------------------------------------------------------------------------------------------------- templates


@cache
def style():
    """Returns the rules (`Markup`) for a `<style>`; they touch nothing outside of elements of the class "safeqwen"."""
    return Markup((TEMPLATES / "verdict.css").read_text(encoding="utf-8"))


def macro(name, *values):
    """Returns what a macro of verdict.html.jinja makes of values (`Markup`): `macro("bars", rows, caption)`."""
    return getattr(_template().module, name)(*values)


@cache
def _template():
    return templates(TEMPLATES).get_template("verdict.html.jinja")


def _shown(verdict, heatmap, side, max_bytes):
    if verdict.error is not None:
        return Shown(verdict.name, error=verdict.error)
    thumbnail, flagged = verdict.thumbnail, verdict.flagged
    overlay = None if heatmap is None or isinstance(heatmap, str) else heatmap.overlay()
    first = overlay if thumbnail is None else thumbnail  # what is veiled if it is flagged
    return Shown(
        name=verdict.name,
        flagged=flagged,
        decision=_decision(verdict),
        notes=tuple(_notes(verdict, heatmap)),
        rows=tuple(bar_rows(verdict)),
        caption=caption(verdict),
        blurred=_embedded(blurred(first), side, max_bytes) if first is not None and flagged else None,
        picture=thumbnail and _embedded(thumbnail, side, max_bytes),
        overlay=overlay and _embedded(overlay, side, max_bytes),
        overlay_caption=overlay and f"where \u201c{title_of(heatmap.category)}\u201d comes from",
    )


def _decision(verdict):
    if verdict.decision is not None:
        return verdict.decision.in_words()
    if verdict.unsafe is None:
        return f"flagged: no category says that it is safe; likeliest is {title_of(verdict.label)}"
    flagged = "flagged" if verdict.flagged else "not flagged"
    return f"{flagged}: unsafe {100 * verdict.unsafe:.1f} %, most likely {title_of(verdict.label)}"


def _notes(verdict, heatmap):
    if verdict.thumbnail is None:
        yield "No picture: the verdict was made of tensors."
    if (num_views := len(verdict.frames)) > 1:
        yield f"{'The picture is the' if verdict.thumbnail else 'The'} least safe of {num_views} views."
        if is_of_another_view(verdict):
            yield "The probabilities are those of another view, by which the policy decided."
    if isinstance(heatmap, str):
        yield f"No heat map: {heatmap}"


def blurred(picture):
    """Returns a tiny copy (`PIL.Image.Image`, RGB) in which nothing can be made out but its colours."""
    small = picture.convert("RGB")
    small = small.resize(_fitted(small.size, BLURRED_SIDE), Image.Resampling.BOX)
    return small.filter(ImageFilter.GaussianBlur(BLUR_RADIUS))


def _embedded(picture, side, max_bytes):
    """A PIL picture as a [`Picture`] whose longer side is shown with `side` pixels."""
    pixels = min(max(picture.size), MAX_SIDE)
    while True:
        small = picture.convert("RGB")
        small.thumbnail((pixels, pixels))
        small.info.clear()  # a colour profile or comment would be written along
        file = io.BytesIO()
        small.save(file, "JPEG", quality=80, optimize=True)
        if file.tell() <= max_bytes or pixels <= 32:
            return Picture(data_url(file.getvalue(), "image/jpeg"), *_fitted(picture.size, side))
        pixels = pixels * 3 // 4


def _fitted(size, side):
    """Width and height of the shape of `size` with a longer side of `side`."""
    return tuple(max(1, round(length * side / max(size))) for length in size)
