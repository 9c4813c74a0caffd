"""Rows of a scan whose numbers are chosen, and what is on a page that was made of them."""

import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from safeqwen.judging.policy import SafetyPolicy
from safeqwen.scan.ledger import Judged
from safeqwen.scan.report import write_report
from safeqwen.scan.rows import RowMaker


CATEGORIES = ["safe", "suicide", "our_logo"]
POLICY = SafetyPolicy(
    categories=CATEGORIES, category_thresholds={"suicide": 0.25}, actions={"unsafe": "flag", "suicide": "block"}
)
NOTHING = {"num_pictures": 100, "num_thumbnails": 100}


def row(id, probs=(0.75, 0.125, 0.125), *, policy=None, model="m" * 64, data=None, error=None, **more):
    """A row (`dict`) as a scan makes it; `data` are the picture's bytes."""
    judged = None
    if error is None:
        values = np.array([probs] if np.ndim(probs) == 1 else probs, dtype="<f4")
        judged = Judged(values, [*range(len(values))], 64, 48, None, 0.5, "2026-11-26T19:30:00+00:00")
    digest = hashlib.sha256(id.encode() if data is None else data).digest()
    made = RowMaker(CATEGORIES, policy, model).row((id, 100, digest, error, judged))
    return made | more


def picture(path, colour="red"):
    """Writes a picture, and returns its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), colour).save(path, "PNG")
    return path.read_bytes()


def write(path, rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


class Page(HTMLParser):
    """What is on a page: `made` (what `write_report` returned), `elements`, `text`, and the script's `data`."""

    def __init__(self, folder, rows, name="rows.jsonl", **settings):
        super().__init__()
        paths = rows if isinstance(rows, list) and rows and not isinstance(rows[0], dict) else None
        paths = paths or [write(folder / name, rows)]
        self.made = write_report(paths, folder / "report.html", root=folder, **settings)
        self.html = (folder / "report.html").read_text(encoding="utf-8")
        self.elements, self._texts, self._inside = [], {}, None
        self.feed(self.html)
        self.text = " ".join(" ".join(self._texts[None]).split())
        self.data = json.loads("".join(self._texts["application/json"]))
        self.script = "".join(self._texts["script"])
        self.entries = {entry["name"]: entry for entry in self.data["pictures"]}

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self._inside = dict(attributes).get("type", tag)

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._inside = None

    def handle_data(self, data):
        self._texts.setdefault(self._inside, []).append(data)

    def cells(self, caption):
        """The rows (`list[list[str]]`) of the table with that caption."""
        table = re.search(rf"<caption>{caption}.*?</table>", self.html, re.DOTALL)[0]
        body = re.search(r"<tbody>.*</tbody>", table, re.DOTALL)[0]
        return [
            re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in re.findall(r"<tr>.*?</tr>", body, re.DOTALL)
        ]
