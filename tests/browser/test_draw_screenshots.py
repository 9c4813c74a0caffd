"""The page's examples are what scripts/draw_screenshots.py draws, and it writes nothing that is misjudged."""

import importlib.util
import io
import sys

import numpy as np
import pytest
from PIL import Image
from tiny import ROOT

from safeqwen.browser.page import EXAMPLES, example_bytes
from tools.demo.pictograms import draw


HARM = "weapon_related_violence"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("draw_screenshots", ROOT / "scripts" / "draw_screenshots.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shooting(script, chromium):
    return script.Shooting(chromium)


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=float)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_what_the_script_draws(script, name):
    drawn, kept = pixels(script.example(name).data), pixels(example_bytes(name))
    assert drawn.shape == kept.shape
    assert np.abs(drawn - kept).mean() < 2  # of 255: another Pillow may choose another palette


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_judged_as_what_it_is(script, shooting, name):
    sample = script.example(name)
    assert shooting.verdict(sample).label == sample.label


def test_a_picture_that_is_misjudged_is_not_written(script, shooting, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "four", lambda: script.Sample("four.png", draw(HARM, 1_000_000), "suicide"))
    assert not script.write(shooting, ["notebook"], tmp_path)
    assert f"four.png: {HARM}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_map_that_is_strongest_outside_of_the_harm_is_refused(script, shooting):
    picture = draw(HARM, 1_000_000)
    shooting.verdict(script.Sample("all.png", picture, HARM, (0, 0, *picture.size)))
    with pytest.raises(script.Misjudged, match="outside of"):
        shooting.verdict(script.Sample("corner.png", picture, HARM, (0, 0, 1, 1)))
