"""A verdict in a notebook: all is said in words, nothing is asked of a network, and what is flagged is veiled."""

import base64
import io
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from safeqwen.judging.policy import SafetyPolicy
from safeqwen.judging.verdict import Verdict
from safeqwen.showing.notebook import bar_rows, blurred, notebook_html, show, style, verdict_html


CATEGORIES = ["safe", "suicide", "terrorism", "weapon_related_violence"]
EVIL = "\"'><script>alert(1)</script>"
VOID = ("img", "meta", "link", "br", "input")


class Fragment(HTMLParser):
    """`elements` (tag, attributes, tags around it) in their order, `rows` (cells of each table row) and all `text`."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.rows, self.text = [], [], [], ""
        self.feed(html)
        assert not self.open, "an element is not closed"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data.strip()}".strip()

    def all(self, tag):
        return [(attributes, around) for name, attributes, around in self.elements if name == tag]


def verdict_of(*rows, categories=CATEGORIES, **fields):
    probs = torch.tensor(rows or [[0.1, 0.05, 0.05, 0.8]])
    return Verdict(categories=categories, probs=probs, **{"thumbnail": picture(), **fields})


def picture(size=(64, 64)):
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).rectangle((20, 20, 40, 40), fill="black")
    return image


def heatmap_of(category="weapon_related_violence", size=(64, 64)):
    return SimpleNamespace(category=category, overlay=lambda: Image.new("RGB", size, "red"))


def policy_of(**settings):
    return SafetyPolicy(categories=CATEGORIES, **settings)


def pixels(url):
    assert url.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))


def test_the_numbers_thresholds_and_the_decision_are_words_in_a_table():
    policy = policy_of(unsafe_threshold=0.4, category_thresholds={"weapon_related_violence": 0.75, "suicide": 0.3})
    verdict = verdict_of(policy=policy)
    fragment = Fragment(verdict_html(verdict))
    assert fragment.rows == [
        ["Category", "Probability", "Threshold"],
        ["unsafe", "90.0 %", "40 % fires"],
        ["weapon-related violence", "80.0 %", "75 % fires"],
        ["safe", "10.0 %", ""],
        ["suicide", "5.0 %", "30 %"],
        ["terrorism", "5.0 %", ""],
    ]
    assert verdict.decision.in_words() in fragment.text
    widths = [a["style"] for a, _ in fragment.all("div") if a.get("class") == "fill"]
    marks = [a["style"] for a, _ in fragment.all("div") if a.get("class") == "mark"]
    assert widths == ["width:90.00%", "width:80.00%", "width:10.00%", "width:5.00%", "width:5.00%"]
    assert marks == ["left:40.00%", "left:75.00%", "left:30.00%"]


def test_without_a_policy_no_threshold_is_drawn_and_the_words_say_what_holds():
    flagged, safe = Fragment(verdict_html(verdict_of())), Fragment(verdict_html(verdict_of([0.97, 0.01, 0.01, 0.01])))
    assert "flagged: unsafe 90.0 %, most likely weapon-related violence" in flagged.text
    assert "not flagged: unsafe 3.0 %, most likely safe" in safe.text
    assert flagged.rows[0] == ["Category", "Probability"] and "there is no policy" in flagged.text


def test_bars_are_the_calibrated_numbers_that_the_thresholds_are_compared_with():
    # logit(0.8) = ln 4; halved it is ln 2: an unsafe probability of 2 / 3, of which the harms keep their shares.
    verdict = verdict_of([0.2, 0.4, 0.2, 0.2], policy=policy_of(temperature=2.0, unsafe_threshold=0.7))
    assert {row.name: row.probability for row in bar_rows(verdict)} == pytest.approx(
        {"unsafe": 2 / 3, "suicide": 1 / 3, "safe": 1 / 3, "terrorism": 1 / 6, "weapon_related_violence": 1 / 6},
        abs=1e-6,
    )
    assert not any(row.fires for row in bar_rows(verdict))


def test_what_a_policy_allows_has_no_threshold_and_does_not_count():
    policy = policy_of(category_thresholds={"suicide": 0.1}, actions={"suicide": "allow"})
    unsafe, suicide, *_ = bar_rows(verdict_of([0.1, 0.8, 0.05, 0.05], policy=policy))
    assert (unsafe.title, unsafe.fires) == ("unsafe, without what is allowed", False)
    assert unsafe.probability == pytest.approx(0.1)
    assert (suicide.title, suicide.threshold, suicide.fires) == ("suicide (allowed)", None, False)


def test_a_category_whose_rule_fires_is_shown_however_small():
    names = ["safe", *"abcdefg"]
    policy = SafetyPolicy(categories=names, category_thresholds={"g": 0.001})
    rows = bar_rows(verdict_of([0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.045, 0.005], categories=names, policy=policy))
    assert [row.name for row in rows] == ["unsafe", "safe", "a", "b", "c", "d", "g"]


def test_a_number_is_never_rounded_over_its_threshold():
    below, above = 0.49996, 0.50004
    policy = policy_of(unsafe_threshold=0.5)
    assert bar_rows(verdict_of([1 - below, below, 0, 0], policy=policy))[0].percent == "49.996 %"
    assert bar_rows(verdict_of([1 - above, above, 0, 0], policy=policy))[0].percent == "50.0 %"


def test_without_a_category_safe_there_is_no_unsafe_and_everything_is_flagged():
    fragment = Fragment(verdict_html(verdict_of([0.7, 0.3], categories=["unsafe", "logo"])))
    assert "flagged: no category says that it is safe; likeliest is unsafe" in fragment.text
    assert fragment.rows[1:] == [["unsafe", "70.0 %"], ["logo", "30.0 %"]] and fragment.all("details")


def test_a_flagged_picture_and_its_map_lie_in_closed_details_and_what_is_seen_first_is_blurred_in_its_pixels():
    fragment = Fragment(verdict_html(verdict_of(), heatmap_of()))
    ((details, _),) = fragment.all("details")
    assert "open" not in details
    first, *hidden = fragment.all("img")
    assert "summary" in first[1] and len(hidden) == 2
    assert all("details" in around and "summary" not in around for _, around in hidden)
    assert max(pixels(first[0]["src"]).size) == 32  # whatever a viewer makes of styles
    assert "where “weapon-related violence” comes from" in fragment.text


def test_a_map_without_a_thumbnail_is_veiled_too():
    fragment = Fragment(verdict_html(verdict_of(thumbnail=None), heatmap_of()))
    first, (_, around) = fragment.all("img")
    assert "summary" in first[1] and "details" in around and "summary" not in around
    assert max(pixels(first[0]["src"]).size) == 32


def test_what_is_flagged_in_shadow_mode_is_veiled_too_and_a_safe_picture_is_not():
    assert Fragment(verdict_html(verdict_of(policy=policy_of(mode="shadow")))).all("details")
    fragment = Fragment(verdict_html(verdict_of([0.97, 0.01, 0.01, 0.01])))
    assert not fragment.all("details") and len(fragment.all("img")) == 1


def test_pictures_that_differ_in_details_alone_look_the_same_when_blurred():
    stripes = np.tile(np.arange(24) // 2 % 2 * 255, (16, 1)).astype(np.uint8)  # each a twelfth of the width
    one, other = (Image.fromarray(v).resize((300, 200), Image.Resampling.NEAREST) for v in (stripes, 255 - stripes))
    difference = np.asarray(blurred(one), float) - np.asarray(blurred(other), float)
    # At the edge a stripe goes on for ever; away from it less than a twentieth of black against white is left.
    assert np.abs(difference[:, 10:-10]).max() < 13


def test_names_reasons_and_categories_are_text_and_cannot_command_the_browser():
    names = ["safe", EVIL]
    verdict = verdict_of([0.1, 0.9], categories=names, name=EVIL)
    failed = Verdict(categories=names, error=EVIL, name=f"{EVIL}\u202e")
    for html in (
        verdict_html(verdict, heatmap_of(EVIL)),
        verdict_html(verdict, EVIL),
        verdict_html(failed),
        show([verdict, failed])._repr_html_(),
    ):
        fragment = Fragment(html)
        assert not fragment.all("script") and EVIL in fragment.text
        known = {
            "class",
            "style",
            "src",
            "width",
            "height",
            "alt",
            "aria-label",
            "aria-hidden",
            "scope",
            "dir",
            "role",
        }
        assert {name for _, attributes, _ in fragment.elements for name in attributes} <= known
    assert "[U+202E]" in Fragment(verdict_html(failed)).text


def test_an_error_shows_its_reason_and_neither_bars_nor_a_picture():
    failed = Verdict(categories=CATEGORIES, error="it is cut off", name="a.png", thumbnail=picture())
    fragment = Fragment(verdict_html(failed))
    assert "a.png" in fragment.text and "Not judged. it is cut off" in " ".join(fragment.text.split())
    assert not fragment.all("table") and not fragment.all("img") and "safe" not in fragment.text.lower()


def test_nothing_is_asked_of_a_network_or_a_script_and_no_id_is_shared():
    html = verdict_html(verdict_of(), heatmap_of())
    fragment = Fragment(html)
    assert all(attributes["src"].startswith("data:") for attributes, _ in fragment.all("img"))
    assert not re.search(r"url\(|@import|https?:|<script|<link|\son\w+=|\sid=", html)
    assert all("safeqwen" in rule for rule in re.findall(r"(?:^|})\s*([^{}]+){", re.sub(r"/\*.*?\*/", "", style())))


def test_a_fragment_of_the_noisiest_picture_stays_small():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (320, 320, 3), dtype=np.uint8))
    noisy_map = SimpleNamespace(category="suicide", overlay=lambda: noise)
    assert len(verdict_html(verdict_of(thumbnail=noise), noisy_map)) < 36_000
    verdicts = [verdict_of(thumbnail=noise)] * 10
    assert len(show(verdicts)._repr_html_()) < 120_000


def test_no_metadata_of_a_picture_is_embedded():
    noted = picture()
    noted.info = {"comment": b"secret", "icc_profile": b"secret", "exif": b"secret"}
    html = verdict_html(verdict_of([1.0, 0, 0, 0], thumbnail=noted))
    assert b"secret" not in base64.b64decode(Fragment(html).all("img")[0][0]["src"].split(",")[1])
    assert noted.info["comment"] == b"secret"  # the caller's picture stays as it was


def test_the_reason_why_there_is_no_map_is_a_sentence_and_is_asked_for_again():
    verdict = verdict_of()  # of no picture that could be read again
    first = Fragment(notebook_html(verdict)).text
    assert "No heat map: there is no picture behind this verdict" in first


class Counting(SimpleNamespace):
    """A verdict that counts how often its map is computed."""

    __hash__ = object.__hash__

    def heatmap(self):
        self.computed += 1
        return heatmap_of(self.label)


def counting(label):
    probs = [0.97, 0.01, 0.01, 0.01] if label == "safe" else [0.1, 0.8, 0.05, 0.05]
    real = verdict_of(probs)
    names = ("name", "error", "flagged", "decision", "policy", "scores", "unsafe", "label", "frames", "thumbnail")
    return Counting(computed=0, **{name: getattr(real, name) for name in names})


def test_the_map_of_a_harm_is_computed_once_and_of_safe_never():
    harm, safe = counting("suicide"), counting("safe")
    assert notebook_html(harm) == notebook_html(harm) and len(Fragment(notebook_html(harm)).all("img")) == 3
    assert len(Fragment(notebook_html(safe)).all("img")) == 1
    assert (harm.computed, safe.computed) == (1, 0)


def test_a_grid_shows_all_and_computes_maps_only_if_asked():
    verdicts = [counting("suicide"), counting("safe"), Verdict(categories=CATEGORIES, error="it is cut off")]
    fragment = Fragment(show(iter(verdicts))._repr_html_())
    assert len(fragment.all("article")) == 3 and len(fragment.all("style")) == 1 and "it is cut off" in fragment.text
    assert [verdict.computed for verdict in verdicts[:2]] == [0, 0]
    show(verdicts, heatmaps=True)._repr_html_()
    assert [verdict.computed for verdict in verdicts[:2]] == [1, 0]


def test_a_grid_in_a_terminal_is_the_verdicts_lines():
    verdicts = [verdict_of(name="a.png"), Verdict(categories=CATEGORIES, error="it is cut off", name="b.png")]
    assert repr(show(verdicts)) == f"{verdicts[0]!r}\n{verdicts[1]!r}"
    assert repr(show(verdicts[0])) == repr(verdicts[0])


def test_what_is_no_verdict_is_refused():
    with pytest.raises(TypeError, match="verdicts.*got dict"):
        show([verdict_of(), {"label": "safe", "score": 0.9}])


def test_a_clip_whose_policy_went_by_another_frame_says_so():
    # Two of three frames are needed, so the second worst decides: not the one in the picture.
    rows = [0.1, 0.9, 0, 0], [0.3, 0, 0.7, 0], [1.0, 0, 0, 0]
    clip = verdict_of(*rows, frames=[0, 1, 2], policy=policy_of(clip={"at_least": 2, "of": 3}))
    fragment = Fragment(verdict_html(clip))
    assert fragment.rows[1][:2] == ["unsafe", "70.0 %"]
    assert "The picture is the least safe of 3 views." in fragment.text
    assert "The probabilities are those of another view" in fragment.text
    assert "of another view" not in verdict_html(verdict_of(*rows, frames=[0, 1, 2], policy=policy_of()))
