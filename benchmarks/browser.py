"""From a picture to its verdict on the page, against reading, preparing and guard() alone: medians, in turns.

    python -m benchmarks.browser [--model PATH] [--rounds N] [--pixels N]

Needs the environment of tests/browser (`make test-demo`): Gradio, Playwright and Chromium. Three ways from the bytes
of one picture, in one process, one after the other; each round begins when the page has nothing left to do:

- guard: `safeqwen.read_bytes`, the processor, `guard()`;
- handler: what the server does of its own accord, up to the verdict's HTML;
- page: from the drop of the file in Chromium to the frame that shows the verdict.

The last line is a JSON object, in milliseconds, with the page's time in its parts: the file's upload, Gradio's way to
the handler, the handler, the way back until the verdict is in the document, and that frame.
"""

import argparse
import base64
import json
import os
import statistics
import time

from playwright.sync_api import sync_playwright

import safeqwen
from safeqwen import browser
from safeqwen.browser import app
from safeqwen.browser.page import example_bytes, verdicts_html
from safeqwen.browser.visit import Judge


CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
WARM_UP = 5  # rounds
# Drops a file and notes the times (ms since 1970) of what follows. A timer that is set when a frame begins fires after
# it is painted.
DROP = """([name, base64]) => {
  const now = () => performance.timeOrigin + performance.now();
  const times = (window.times = {});
  const look = () => {
    if (!times.inserted && document.querySelector("#verdicts .name")?.textContent === name) {
      times.inserted = now();
      requestAnimationFrame(() => setTimeout(() => { times.shown = now(); }));
    }
    times.has_map = document.querySelector("#heatmap img")?.alt.startsWith(name);
    if (times.inserted && times.has_map) window.watching.disconnect();
  };
  window.watching = new MutationObserver(look);
  window.watching.observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true });
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([Uint8Array.from(atob(base64), (byte) => byte.charCodeAt(0))], name));
  performance.clearResourceTimings();
  times.dropped = now();
  document.querySelector("#pictures button:has(> input)").dispatchEvent(new DragEvent("drop", { dataTransfer }));
}"""
SHOWN = """() => {
  const upload = performance.getEntriesByType("resource").find(({ name }) => name.includes("/upload?"));
  const { shown, has_map } = window.times;
  return upload && shown && has_map && { ...window.times, uploaded: performance.timeOrigin + upload.responseEnd };
}"""


class TimedJudge(Judge):
    """Remembers when it began and when it had the last verdict."""

    def verdict(self, data, name):
        TimedJudge.began = time.time()
        verdict = super().verdict(data, name)
        TimedJudge.ended = time.time()
        return verdict


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="(default: the demo checkpoint)")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--pixels", type=int, help="of the picture as judged (default: the processor's own)")
    args = parser.parse_args(argv)
    model, processor = safeqwen.load(args.model)
    if args.pixels:
        processor.image_processor.size = {"shortest_edge": args.pixels, "longest_edge": args.pixels}
    judge, data = Judge(model, processor), example_bytes("safe")  # its map has its name, which tells that it has come
    engine, app.Judge = judge.pipeline.engine, TimedJudge
    blocks = browser.launch(model, processor, block=False)
    rounds = []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page()
        page.goto(blocks.local_url)
        for i in range(WARM_UP + args.rounds):
            page.get_by_text("Drop File Here").wait_for()
            started = time.perf_counter()
            engine.judge(engine.prepare(safeqwen.read_bytes(data)))
            guarded = time.perf_counter()
            verdicts_html([judge.verdict(data, "picture.png")])
            handled = time.perf_counter()
            page.evaluate(DROP, [f"{i}.png", base64.b64encode(data).decode()])
            at = page.wait_for_function(SHOWN, polling=100).json_value()
            began, ended = 1000 * TimedJudge.began, 1000 * TimedJudge.ended
            rounds.append(
                {
                    "guard": 1000 * (guarded - started),
                    "handler": 1000 * (handled - guarded),
                    "page": at["shown"] - at["dropped"],
                    "page: upload": at["uploaded"] - at["dropped"],
                    "page: to the handler": began - at["uploaded"],
                    "page: handler": ended - began,
                    "page: back": at["inserted"] - ended,
                    "page: frame": at["shown"] - at["inserted"],
                }
            )
        chromium.close()
    blocks.close()
    medians = {name: statistics.median(row[name] for row in rounds[WARM_UP:]) for name in rounds[0]}
    ratios = {f"{name} / guard": medians[name] / medians["guard"] for name in ("handler", "page")}
    print(json.dumps({**medians, **ratios}))


if __name__ == "__main__":
    main()
