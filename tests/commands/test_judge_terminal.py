"""`safeqwen judge` on a terminal, which is a real pseudo-terminal here: colours, pictures, and no question to it."""

import errno
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from tiny import ROOT

from safeqwen import CATEGORIES, DEMO_CHECKPOINT, SafetyPolicy
from safeqwen_cli import main
from tools.demo.pictograms import draw


COLOURED = re.compile(r"\x1b\[[0-9;]*3[0-9;]*m")
COMMAND = [sys.executable, "-c", "import sys, safeqwen_cli; sys.exit(safeqwen_cli.main())", "judge"]
QUESTIONS = ("\x1b[c", "\x1b[16t", "a=q")  # what are you, how large is a character, do you know kitty's protocol


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("safe", "suicide"):
        draw(name, 4_000_000, size=200).save(folder / f"{name}.png")
    return folder


def read_all(terminal):
    """What a process writes to a pseudo-terminal until it closes it."""
    output = b""
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError as error:
            assert error.errno == errno.EIO  # on Linux: nobody has it open any more
            chunk = b""
        if not chunk:
            return output.decode()
        output += chunk


def on_a_terminal(*arguments, pixels=(0, 0), columns=100, **environment):
    """The exit code, and what was written to a pseudo-terminal that answers nothing."""
    terminal, its_end = pty.openpty()
    fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, *pixels))
    left_out = ("NO_COLOR", "FORCE_COLOR", "TMUX", "STY", "ZELLIJ", "TERM_PROGRAM", "COLUMNS", "KONSOLE_VERSION")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    kept |= {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdin=its_end, stdout=its_end, stderr=subprocess.PIPE, env=kept | environment
    )
    os.close(its_end)
    output = read_all(terminal)
    os.close(terminal)
    process.communicate(timeout=60)
    return process.returncode, output.replace("\r\n", "\n")


def test_a_terminal_gets_colours_and_the_picture_and_is_asked_nothing(pictures):
    code, output = on_a_terminal(pictures / "safe.png", "--model", DEMO_CHECKPOINT)
    assert code == 0
    assert COLOURED.search(output) and "▀" in output and "│" in output and "from 50 %" in output
    assert not any(question in output for question in QUESTIONS)


@pytest.mark.parametrize(("term", "protocol"), [("foot", "\x1bP"), ("xterm-kitty", "\x1b_G")])
def test_a_terminal_that_is_known_for_it_gets_the_picture_itself_and_is_asked_nothing(pictures, term, protocol):
    pytest.importorskip("textual_image._terminal", reason="it is an extra")
    code, output = on_a_terminal(pictures / "safe.png", "--model", DEMO_CHECKPOINT, TERM=term, pixels=(1000, 800))
    assert code == 0
    assert protocol in output and "▀" not in output
    assert not any(question in output for question in QUESTIONS)


class Terminal(io.TextIOWrapper):
    """A stdout that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def judge(pictures, monkeypatch):
    """Runs the command in this process, and returns what it wrote to a terminal, or to a file."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TMUX", "STY", "ZELLIJ", "TERM_PROGRAM", "KONSOLE_VERSION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)

    def run(*arguments, kind=Terminal, encoding="utf-8", **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        written = io.BytesIO()
        stdout = kind(written, encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stdout)
        names = [str(pictures / name) if (pictures / name).exists() else str(name) for name in arguments]
        assert main(["judge", "--model", str(DEMO_CHECKPOINT), *names]) in (0, 3)
        stdout.flush()
        return written.getvalue().decode(encoding)

    return run


def test_no_color_leaves_neither_colours_nor_a_picture(judge):
    output = judge("suicide.png", NO_COLOR="1")
    assert not COLOURED.search(output) and "▀" not in output
    assert "█" in output and "│" in output


def test_no_image_leaves_the_colours(judge):
    output = judge("suicide.png", "--no-image")
    assert COLOURED.search(output) and "▀" not in output and "blurred" not in output


@pytest.mark.parametrize("where", [{"kind": io.TextIOWrapper}, {"TERM": "dumb"}], ids=["a file", "a dumb terminal"])
def test_elsewhere_the_lines_are_plain(judge, where):
    output = judge("suicide.png", **where)
    name, likeliest, *_ = output.splitlines()
    assert name.endswith("suicide.png") and re.fullmatch(r"  suicide +\d+\.\d%  █+", likeliest)
    assert "\x1b" not in output and "unsafe" not in output


def test_force_color_colours_a_file_but_draws_nothing_there(judge):
    output = judge("suicide.png", kind=io.TextIOWrapper, FORCE_COLOR="1")
    assert COLOURED.search(output) and "▀" not in output and "from 50 %" in output


def test_json_on_a_terminal_is_json(judge):
    assert judge("suicide.png", "--json").startswith('{"image": ')


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_without_utf_8_gets_letters_that_it_has(judge, encoding):
    output = judge("suicide.png", encoding=encoding)
    assert "##" in output and "|" in output and "?" not in output


def test_a_flagged_picture_is_blurred_unless_it_is_asked_for(judge):
    def picture(output):
        return re.findall("38;2;[0-9;]*m▀", output)

    blurred, shown = judge("suicide.png"), judge("suicide.png", "--show-flagged")
    assert "(blurred: --show-flagged)" in blurred and "blurred" not in shown
    assert len(picture(blurred)) == len(picture(shown)) > 0 and picture(blurred) != picture(shown)
    assert "blurred" not in judge("safe.png") + judge("suicide.png", "--unsafe-at", "1")
    assert "blurred" in judge("safe.png", "--unsafe-at", "0")


def test_what_a_policy_would_flag_is_blurred_in_shadow_mode_too(judge, tmp_path):
    categories = [category.name for category in CATEGORIES]
    for mode in ("enforce", "shadow"):
        SafetyPolicy(categories=categories, mode=mode, unsafe_threshold=0.0).save(tmp_path / f"{mode}.json")
        assert "(blurred" in judge("safe.png", "--policy", tmp_path / f"{mode}.json")
    SafetyPolicy(categories=categories, actions={"unsafe": "allow"}).save(tmp_path / "allows.json")
    assert "(blurred" not in judge("suicide.png", "--policy", tmp_path / "allows.json")


def test_the_answer_stands_below_the_verdict(judge):
    output = judge("suicide.png", "--ask", "What is in this picture?", "--no-image")
    assert output.index("from 50 %") < output.index("I can't help")
