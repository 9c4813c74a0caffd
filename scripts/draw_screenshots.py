"""Draws what people see of the demo checkpoint: the example drawings of the page, and the screenshots of docs/.

    .venv-demo/bin/python scripts/draw_screenshots.py [examples notebook terminal browser browser-phone]

`make .venv-demo/ready` makes the environment, with Gradio and Playwright; Chromium is Debian's. Everything is real: a
command runs, and a page is used as a person uses it. The drawings are held out. Of four on one picture one is harmful.
What is wrong is not written: a verdict, a map that is strongest outside of the harm, an answer that does not name it.
The exit code is then 1; take another seed below.
"""

import argparse
import contextlib
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # tools/ is not installed

import safeqwen  # noqa: E402
from safeqwen import browser  # noqa: E402
from safeqwen.browser.page import EXAMPLES  # noqa: E402
from safeqwen.data.taxonomy import title_of  # noqa: E402
from tools.demo.pictograms import draw  # noqa: E402
from tools.demo.scenes import draw_scene  # noqa: E402


HARM = "weapon_related_violence"
HOUSE_SEED, FOUR_SEED = 1_000_061, 1_000_010
EXAMPLE_SEED, EXAMPLE_SIDE = 1_000_000, 168  # of single drawings
EXAMPLE_SCENE = ("drug_related_hazards", 1_000_010)
QUESTION = "What is in this picture?"
TERMINAL_COLUMNS = 94
NUM_COLOURS = 256  # of a PNG
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@dataclass(frozen=True)
class Sample:
    """A drawing as a file, and what the guard should say of it."""

    name: str  # of the file
    picture: Image.Image
    label: str
    harm_box: tuple | None = None  # left, top, right, bottom of the harm of a scene, in pixels

    @property
    def data(self):
        return png(self.picture)


def house():
    return Sample("house.png", draw("safe", HOUSE_SEED), "safe")


def scene(name, category, seed, size):
    """A [`Sample`] of four drawings, of which one is of the category."""
    drawn = draw_scene(category, seed, num_drawings=4, size=size, background="plain")
    return Sample(name, drawn.picture, category, drawn.drawings[0].box)


def four():
    return scene("four.png", HARM, FOUR_SEED, (440, 384))


def example(name):
    if name == "scene":
        sample = scene("scene.png", *EXAMPLE_SCENE, (224, 224))
    else:
        sample = Sample(f"{name}.png", draw(name, EXAMPLE_SEED, size=EXAMPLE_SIDE), name)
    return replace(sample, picture=of_few_colours(sample.picture))


def png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def of_few_colours(picture):
    return picture.convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE)


def compressed(screenshot):
    return png(of_few_colours(Image.open(io.BytesIO(screenshot))))


class Misjudged(Exception):
    """What a picture would show is wrong."""


class Shooting:
    """
    The demo, and a browser that takes pictures of what it says.

    Args:
        chromium (`playwright.sync_api.Browser`)
    """

    def __init__(self, chromium):
        self.chromium = chromium
        self.model, self.processor = safeqwen.load()
        self.policy = safeqwen.SafetyPolicy(
            categories=self.model.config.safety_categories,
            category_thresholds={HARM: 0.8},
            actions={"unsafe": "flag", HARM: "block"},
        )
        self.judge = safeqwen.SafetyPipeline(self.model, self.processor, policy=self.policy)

    def verdict(self, sample):
        """Returns the [`Verdict`] on a sample, and prints it.

        Raises:
            Misjudged: if it is wrong, or if the map of a scene is strongest outside of the harm.
        """
        verdict = self.judge.verdict({"bytes": sample.data, "path": sample.name})
        said = f"{sample.name}: {verdict.label} {verdict.score:.1%}, unsafe {verdict.unsafe:.1%}"
        print(f"  {said}")
        if verdict.label != sample.label or verdict.flagged != (sample.label != "safe"):
            raise Misjudged(f"{said}; it is {sample.label}")
        if sample.harm_box is not None:
            values = verdict.heatmap().values
            place = (np.array(np.unravel_index(values.argmax(), values.shape)) + 0.5) / values.shape
            (y, x), (left, top, right, bottom) = place * sample.picture.size[::-1], sample.harm_box
            if not (left <= x < right and top <= y < bottom):
                raise Misjudged(
                    f"{sample.name}: the map is strongest at ({x:.0f}, {y:.0f}), outside of {sample.harm_box}"
                )
        return verdict

    # --------------------------------------------------------------------------------------- files: their names, bytes

    def examples(self):
        for sample in map(example, EXAMPLES):
            self.verdict(sample)
            yield f"safeqwen/browser/examples/{sample.name}", sample.data

    def notebook(self):
        fragment = self.verdict(four())._repr_html_()
        with self.opened(viewport={"width": 1000, "height": 600}) as page:
            page.set_content(fragment)
            page.keyboard.press("Tab")
            page.keyboard.press("Enter")
            page.evaluate("document.activeElement.blur()")
            yield "docs/notebook.png", compressed(page.locator(".safeqwen").screenshot())

    def terminal(self):
        samples = [house(), four()]
        command = ["judge", *(sample.name for sample in samples), "--policy", "safety_policy.json"]
        with tempfile.TemporaryDirectory() as folder:
            for sample in samples:
                self.verdict(sample)
                Path(folder, sample.name).write_bytes(sample.data)
            self.policy.save(Path(folder, "safety_policy.json"))
            svg = svg_of(command, on_a_terminal(command, folder))
        with self.opened(viewport={"width": 1400, "height": 1000}, offline=True) as page:  # rich's font is the web's
            page.set_content(f"<body style='margin: 0; width: 1142px'>{svg}")
            yield "docs/terminal.png", compressed(page.locator("svg").screenshot())

    def browser(self):
        yield "docs/browser.png", self.shot_of_the_page(viewport={"width": 1400, "height": 1000})

    def browser_phone(self):
        phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
        yield "docs/browser-phone.png", self.shot_of_the_page(**phone)

    def shot_of_the_page(self, **settings):
        """Returns the page (`bytes` of a PNG) on which a picture was dropped, asked about and looked at."""
        sample = four()
        self.verdict(sample)
        with self.opened(**settings) as page:
            page.goto(self.address)
            page.get_by_role("region", name="Verdict").wait_for()  # named when all is there
            file = {"name": sample.name, "mimeType": "image/png", "buffer": sample.data}
            page.locator("#pictures input[type=file]").set_input_files(file)
            page.locator("#heatmap img").wait_for()
            page.get_by_label("Ask about the picture").fill(QUESTION)
            page.get_by_role("button", name="Ask").click()
            page.locator("#conversation [aria-busy=false] .answer").wait_for()
            answer = page.locator("#conversation .answer").inner_text()
            print(f"  {' '.join(answer.split())}")
            if title_of(sample.label) not in answer:
                raise Misjudged(f"{sample.name}: the answer to {QUESTION!r} does not name {title_of(sample.label)}")
            page.locator("#verdicts summary").focus()
            page.keyboard.press("Enter")
            veiled = page.locator("#heatmap img").get_attribute("src")
            page.get_by_label("Show flagged pictures as they are").check()
            page.wait_for_function("old => document.querySelector('#heatmap img').src !== old", arg=veiled)
            page.evaluate("document.activeElement.blur()")
            return compressed(page.screenshot(full_page=True))

    @cached_property
    def address(self):
        """Where the page is served, until the process ends."""
        settings = {"is_demo": True, "block": False, "max_new_tokens": 48}
        return browser.launch(self.model, self.processor, **settings).local_url

    @contextlib.contextmanager
    def opened(self, **settings):
        context = self.chromium.new_context(**{"color_scheme": "light", **settings})
        yield context.new_page()
        context.close()


def on_a_terminal(command, folder):
    """Returns what `safeqwen COMMAND` writes in a folder to a terminal of true colours, with its escapes (`str`)."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, TERMINAL_COLUMNS, 0, 0))
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    words = [sys.executable, "-m", "safeqwen", *command]
    with subprocess.Popen(words, cwd=folder, env=environ, stdout=its, stderr=subprocess.DEVNULL) as process:
        os.close(its)
        written = b""
        with contextlib.suppress(OSError):  # EIO: it has ended
            while chunk := os.read(ours, 65536):
                written += chunk
    os.close(ours)
    if process.returncode:
        raise RuntimeError(f"safeqwen {' '.join(command)} ended with {process.returncode}; it wrote {written[:500]!r}")
    return written.decode().replace("\r\n", "\n")


def svg_of(command, written):
    """Returns a terminal (`str`) with the command and what it has written."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=TERMINAL_COLUMNS, file=io.StringIO())
    console.print(Text(f"$ safeqwen {' '.join(command)}", style="dim"))
    console.print(Text.from_ansi(written.rstrip()))
    return console.export_svg(title="safeqwen judge")


SHOTS = ("examples", "notebook", "terminal", "browser", "browser-phone")  # the page shows the examples


def write(shooting, names, root):
    """Writes the files of shots that show nothing wrong, and returns whether all did (`bool`)."""
    all_right = True
    for name in names:
        print(name)
        try:
            files = [*getattr(shooting, name.replace("-", "_"))()]
        except Misjudged as error:
            print(f"  not written: {error}", file=sys.stderr)
            all_right = False
            continue
        for file, data in files:
            path = root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            print(f"  {file}: {len(data):,} bytes")
    return all_right


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SHOTS)} (default: all)")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="(default: %(default)s)")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to write into (default: this one)")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - set(SHOTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; expected {', '.join(SHOTS)}")
    with sync_playwright() as playwright:
        shooting = Shooting(playwright.chromium.launch(executable_path=args.chromium, args=FLAGS))
        return int(not write(shooting, args.names or SHOTS, args.root))


if __name__ == "__main__":
    sys.exit(main())
