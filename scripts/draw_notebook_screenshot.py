"""Draws docs/notebook.png: what a notebook shows of one drawing, as the code makes it, in Chromium.

    python scripts/draw_notebook_screenshot.py [--chromium /usr/bin/chromium] [--out docs/notebook.png]

Needs Playwright. The picture is opened by the keyboard, as a person would do it.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright


ROOT = Path(__file__).parents[1]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "notebook.png", help="(default: %(default)s)")
    args = parser.parse_args(argv)

    sys.path.insert(0, str(ROOT))  # tools/ is not installed
    import safeqwen
    from tools.demo.pictograms import draw

    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        draw("weapon_related_violence", 1_000_005, size=224).save(picture)
        model, processor = safeqwen.load()
        policy = safeqwen.SafetyPolicy(
            categories=model.config.safety_categories,
            category_thresholds={"weapon_related_violence": 0.8},
            actions={"unsafe": "flag", "weapon_related_violence": "block"},
        )
        verdict = safeqwen.SafetyPipeline(model, processor, policy=policy).verdict(picture)
        fragment = verdict._repr_html_().replace(folder + "/", "")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1000, "height": 600}, color_scheme="light")
        page.set_content(fragment)
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.evaluate("document.activeElement.blur()")
        shot = page.locator(".safeqwen").screenshot()
        browser.close()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(128).save(args.out, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
