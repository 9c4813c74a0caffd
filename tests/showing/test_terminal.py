"""A verdict in characters: which bars, where a threshold stands, how a picture of any shape is fitted."""

import io
import sys

import pytest
import torch
from PIL import Image
from rich.console import Console

from safeqwen import SafetyPolicy
from safeqwen.judging.verdict import Verdict
from safeqwen.showing import terminal
from safeqwen.showing.bars import Bar, bar_rows, is_of_another_view


NAMES = ["safe", "drugs", "weapons", "nudity"]
PROBS = [0.2, 0.5, 0.25, 0.05]


def verdict(probs=PROBS, policy=None, categories=NAMES, name="a.png", size=(100, 100)):
    settings = {
        "policy": policy and SafetyPolicy(categories=categories, **policy),
        "thumbnail": Image.new("RGB", size),
    }
    return Verdict(categories=categories, probs=torch.tensor([probs]), image=name, **settings)


def values(rows):
    return {row.name: (round(row.probability, 4), row.threshold, row.fires) for row in rows}


def test_without_a_policy_the_bar_of_unsafe_has_the_threshold_that_was_given():
    assert values(bar_rows(verdict(), unsafe_at=0.9))["unsafe"] == (0.8, 0.9, False)
    rows = values(bar_rows(verdict(), unsafe_at=0.8 - 1e-6))
    assert rows["unsafe"][2] and rows["drugs"] == (0.5, None, False)
    with_a_policy = bar_rows(verdict(policy={"unsafe_threshold": 0.3}), unsafe_at=0.9)
    assert values(with_a_policy)["unsafe"] == (0.8, 0.3, True)


def test_with_a_policy_the_bars_are_what_its_thresholds_are_for():
    # A temperature of 2 halves the log-odds of 0.8: sigmoid(log(4) / 2) = 2 / 3; the harms keep their shares of it.
    rows = values(bar_rows(verdict(policy={"temperature": 2.0, "category_thresholds": {"drugs": 0.4}})))
    assert rows["unsafe"] == (0.6667, 0.5, True)
    assert rows["drugs"] == (round(2 / 3 * 0.5 / 0.8, 4), 0.4, True)
    assert rows["weapons"] == (round(2 / 3 * 0.25 / 0.8, 4), None, False)


def test_the_top_k_are_that_many_and_those_whose_rule_fires():
    assert [row.name for row in bar_rows(verdict([1, 0, 0, 0]))] == ["unsafe", "safe"]
    assert len(bar_rows(verdict([1, 0, 0, 0]), top=3)) == 4
    policy = {"category_thresholds": {"nudity": 0.04}}
    assert [row.name for row in bar_rows(verdict(policy=policy), top=1)] == ["unsafe", "drugs", "nudity"]


def test_bars_of_another_view_than_the_picture_say_so(monkeypatch):
    # Two frames must fire. The picture is the third, the least safe; the policy decides by the next, the first.
    policy = SafetyPolicy(categories=NAMES, clip={"at_least": 2, "of": 3})
    probs = torch.tensor([[0.4, 0.6, 0, 0], [1, 0, 0, 0], [0.1, 0.9, 0, 0]])
    picture = {"frames": [0, 1, 2], "thumbnail": Image.new("RGB", (9, 9))}
    clip = Verdict(categories=NAMES, probs=probs, policy=policy, **picture)
    assert is_of_another_view(clip) and values(bar_rows(clip))["unsafe"][0] == 0.6
    assert any("those of another view" in line for line in drawn(monkeypatch, clip, 100))
    assert not is_of_another_view(Verdict(categories=NAMES, probs=probs, **picture)) and not is_of_another_view(
        verdict()
    )


@pytest.mark.parametrize(
    ("value", "threshold", "drawn"),
    [
        (0.0, None, ""),
        (1.0, None, "██████████"),
        (0.55, None, "█████▌"),
        (0.2, 0.5, "██   │"),
        (0.8, 0.5, "█████│██"),
        (0.5, 0.5, "█████│"),
        (0.8, 0.0, "│███████"),
        (1.0, 1.0, "█████████│"),
        (0.0, 1.0, "         │"),
    ],
)
def test_a_threshold_is_marked_at_its_place_in_a_bar(value, threshold, drawn):
    fires = threshold is not None and value >= threshold
    bar = terminal._bar(Bar("drugs", "drugs", value, threshold, fires), 10, "", False)
    assert bar.plain == drawn
    Console(file=io.StringIO(), force_terminal=True).print(bar)  # its styles are styles


class Terminal(io.StringIO):
    """A stdout that says it is a terminal."""

    def isatty(self):
        return True


def drawn(monkeypatch, shown, columns, **settings):
    """The lines that a terminal of so many columns shows."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm-256color")
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=columns, record=True)
    terminal.show_verdict(console, shown, unsafe_at=0.5, **settings)
    return console.export_text().splitlines()


@pytest.mark.parametrize("columns", [1, 8, 40, 69, 70, 200])
@pytest.mark.parametrize("size", [(1, 1), (320, 2), (2, 320), (320, 320)])
def test_no_line_is_wider_than_the_terminal_whatever_the_picture(monkeypatch, columns, size):
    shown = verdict(policy={"category_thresholds": {"drugs": 0.4}}, name="a\x1b[2J\n.png", size=size)
    lines = drawn(monkeypatch, shown, columns)
    assert max(map(len, lines)) <= columns and not any("\x1b" in line for line in lines)
    picture = [line for line in lines if "▀" in line]
    assert 1 <= len(picture) <= 12 and max(line.count("▀") for line in picture) <= 24
    assert any("unsafe" in line for line in picture) == (columns >= 70)  # beside it, or below


def test_a_category_of_somebody_elses_model_cannot_command_the_terminal(monkeypatch):
    lines = drawn(monkeypatch, verdict([0.1, 0.9], categories=["safe", "bad\x1b[2J"]), 100, picture=False)
    assert not any("\x1b" in line for line in lines)


def test_little_is_left_of_a_blurred_picture(monkeypatch):
    seen = []
    monkeypatch.setattr(terminal, "_half_blocks", lambda image, columns, rows: seen.append(image.size) or "")
    shown = verdict(size=(300, 150))
    for blurred in (True, False):
        drawn(monkeypatch, shown, 100, blurred=blurred)
    assert seen == [(32, 16), (300, 150)]


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "tgp"),
        ({"TERM": "xterm-ghostty"}, "tgp"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "sixel"),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "250401"}, "sixel"),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "211200"}, None),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "WezTerm"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "socket,1,0"}, None),
        ({"TERM": "xterm-kitty", "ZELLIJ": "0"}, None),
        ({}, None),
    ],
)
def test_a_protocol_is_chosen_by_the_environment_alone(environment, protocol):
    pytest.importorskip("textual_image._terminal", reason="it is an extra")
    draw = terminal._graphics(environment)
    assert (draw and draw.__module__) == (protocol and f"textual_image.renderable.{protocol}")


def test_without_the_extra_it_is_half_blocks(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "textual_image"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "textual_image", None)
    stdout = sys.__stdout__
    assert terminal._graphics({"TERM": "xterm-kitty"}) is None and sys.__stdout__ is stdout


def test_rich_is_loaded_for_a_terminal_only(monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setitem(sys.modules, "rich.console", None)  # importing it fails
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert terminal.terminal() is None
