"""
Rows become examples: each is checked, and all that is wrong is told at once.

[`to_example`] knows both forms of a row, which `safeqwen.data` shows; [`read_rows`] reads whole files.
"""

import difflib
import hashlib
import json
import re
import reprlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from safeqwen.data.sources import BadRow, raw_rows


IGNORED = -100  # no label
COLUMNS = (
    *("image", "images", "video", "videos", "messages", "query", "answer", "response"),
    *("safety_label", "image_safety_label", "picture_categories"),
)
NOTES = ("image_safe", "type", "category", "subcategory")  # HoliSafe's further columns
# Words in the names of columns by which other formats mean ours.
LOOKALIKES = {
    "images": "image images img imgs picture pictures photo photos video videos clip frames file filename path url",
    "safety_label": "label labels class verdict safety",
    "answer": "answer answers response output completion caption target text conversation conversations chat dialog",
    "query": "query question prompt instruction input text",
}


@dataclass
class Example:
    """
    One row, as it will be trained on.

    Args:
        messages (`list[dict]`): a chat whose contents are lists of parts: `{"type": "image"}`, `{"type": "video"}` or
            `{"type": "text", "text": ...}`.
        images, videos (`list`): their sources in the order of their parts: what `read_image` takes, or a `Cell`; a
            video is a path, or a list of pictures.
        label (`int`): column of the guard, or -100 for none.
        file (`str`), row (`int`): where it comes from; rows count from 1, as the lines of a JSONL file do.
        picture_categories (`list[int]`): columns for each of several pictures by itself, in the order of their parts.
    """

    messages: list
    images: list
    videos: list
    label: int
    file: str
    row: int
    picture_categories: list = field(default_factory=list)


@dataclass
class Problem:
    """What is wrong with a row, and what to do about it."""

    file: str
    row: int
    reason: str

    def __str__(self):
        return f"{self.file}, row {self.row}: {self.reason}"


class BadData(ValueError):
    """Rows that cannot be trained on; the message lists them all, each with its file, row and remedy."""

    def __init__(self, problems):
        self.problems = problems
        super().__init__(problems)  # what a copy in another process is made of

    def __str__(self):
        head = "rows that cannot be trained on: {}; correct them, or leave them out with on_bad_row: skip"
        return "\n  ".join([head.format(len(self.problems)), *map(str, self.problems)])


@dataclass
class Rows(torch.utils.data.Dataset):
    """
    Checked examples.

    Args:
        examples (`list[Example]`)
        files (`list[str]`): where they were read from.
        problems (`list[Problem]`): of the rows that were left out.
        num_cut (`int`): rows whose text is cut at `max_length`.
        sha256 (`str`): of all that is trained on: texts, labels and the bytes of the pictures, in their order.
    """

    examples: list
    files: list = field(default_factory=list)
    problems: list = field(default_factory=list)
    num_cut: int = 0
    sha256: str = ""

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]

    def blank(self):
        """An example with nothing to learn from."""
        first = self.examples[0]
        asked = [message for message in first.messages if message["role"] != "assistant"]
        return replace(
            first, messages=asked, label=IGNORED, picture_categories=[IGNORED] * len(first.picture_categories)
        )

    @property
    def labels(self):
        """`list[int]`: the verdict label of each row, -100 for none."""
        return [example.label for example in self.examples]

    @property
    def verdict_labels(self):
        """`list[int]`: the labels of all rows, and of all pictures by themselves."""
        return [label for example in self.examples for label in (example.label, *example.picture_categories)]

    def summary(self, categories):
        """`dict` for a run's record: files, counts and fingerprint."""
        counts = Counter(self.labels)
        return {
            "files": self.files,
            "rows": len(self),
            "skipped": len(self.problems),
            "cut": self.num_cut,
            "sha256": self.sha256,
            "rows_with_picture_categories": sum(has_label(example.picture_categories) for example in self.examples),
            "rows_by_label": {name: counts[i] for i, name in enumerate(categories)},
            "rows_with_answer": sum(has_answer(example.messages) for example in self.examples),
        }


def has_label(labels):
    return any(label != IGNORED for label in labels)


def has_answer(messages):
    return any(message["role"] == "assistant" for message in messages)


def to_example(row, taxonomy, file="", number=1, image_root=None):
    """
    Returns the [`Example`] that a raw row stands for.

    Args:
        row (`dict`): of either form that this module's docstring shows.
        taxonomy ([`Taxonomy`])
        image_root (`str`, *optional*): what relative paths start from; by default the folder of the file.

    Raises:
        BadRow: if the row is no conversation about pictures, or there is nothing to learn from it.
    """
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow(f"must be an object, got {type(row).__name__}")
    row = {key: value for key, value in row.items() if value is not None}
    unknown = [key for key in row if key not in COLUMNS and key not in NOTES]
    for key in unknown:
        if near := difflib.get_close_matches(_plain_name(key), COLUMNS, n=1, cutoff=0.8):
            raise BadRow(f"has a field {key!r}; did you mean {near[0]!r}?")

    root = Path(image_root) if image_root is not None else Path(file).parent
    images, videos = ([_located(s, root) for s in _listed(row, kind, f"{kind}s")] for kind in ("image", "video"))
    messages = _messages(row, images, videos, root)
    label = _label(row, taxonomy)
    picture_categories = _picture_categories(row, taxonomy, images, videos, label)
    asks = any(
        part.get("text", "").strip()
        for message in messages
        if message["role"] == "user"
        for part in message["content"]
    )
    lacking = {
        "images": not images and not videos,
        "safety_label": label == IGNORED and not has_label(picture_categories),
        "answer": not has_answer(messages),
        "query": has_answer(messages) and not asks,
    }
    for name in filter(lacking.get, lacking):
        for key in unknown:
            if set(LOOKALIKES[name].split()) & set(_plain_name(key).split("_")):
                raise BadRow(f"has a field {key!r}, which is not read, but no {name!r}; rename or remove it")
    for name in ("category", "subcategory"):
        if lacking["safety_label"] and row.get(name) in (*taxonomy.names, *taxonomy.aliases):
            raise BadRow(f"has a {name} {row[name]!r}, which is not read, but no 'safety_label'; rename or remove it")
    if lacking["safety_label"] and lacking["answer"]:
        raise BadRow("has neither a verdict label nor an answer, so there is nothing to learn; give it one of them")
    if lacking["images"] and not lacking["safety_label"]:
        raise BadRow("has a verdict label but no picture to judge; remove the label or name the picture in images")
    if lacking["images"] and lacking["query"]:
        raise BadRow("has an answer, but neither a picture nor a question; give it one of them")
    return Example(messages, images, videos, label, file, number, picture_categories)


def _picture_categories(row, taxonomy, images, videos, label):
    """The columns of a row's `picture_categories`, `[]` without any; `label` is that of the whole."""
    if "picture_safety_labels" in row:
        raise BadRow("has 'picture_safety_labels', whose name is 'picture_categories' now; rename it")
    labels, num_pictures = row.get("picture_categories", []), len(images) + len(videos)
    if not isinstance(labels, list) or labels and len(labels) != num_pictures:
        raise BadRow(
            f"'picture_categories' must be a list with a label or null for each of the row's {num_pictures} "
            f"pictures, got {reprlib.repr(labels)}"
        )
    if labels and num_pictures == 1:
        raise BadRow("has 'picture_categories' for a single picture; give it a 'safety_label' instead")
    if labels and images and videos:
        raise BadRow("has 'picture_categories' for images beside videos, whose order is not clear; split the row")
    columns = [IGNORED if name is None else taxonomy.column(name) for name in labels]
    if label != IGNORED and taxonomy.names[label] == "safe" and set(columns) - {label, IGNORED}:
        raise BadRow("is 'safe' as a whole, but by 'picture_categories' one of its pictures is not; correct one")
    return columns


def _plain_name(key):
    return re.sub(r"[\W_]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key)).lower()


def _listed(row, one, many):
    if one in row and many in row:
        raise BadRow(f"has both {one!r} and {many!r}; put all into {many!r}")
    value = row.get(many, [row[one]] if one in row else [])
    if not isinstance(value, list):
        raise BadRow(f"{many!r} must be a list, got {type(value).__name__}; for a single one use {one!r}")
    return value


def _located(source, root):
    """A source whose paths start from `root`; a video may be a list of frames."""
    if isinstance(source, list):
        return [_located(frame, root) for frame in source]
    if isinstance(source, dict):
        raise BadRow(f"names a picture or video by {reprlib.repr(source)}; give its path or URL as text")
    is_path = isinstance(source, str) and not source[:8].lower().startswith(("http://", "https://", "data:"))
    return str(root / source) if is_path else source


def _messages(row, images, videos, root):
    """The conversation with its pictures in their places; pictures that stand inline are added to the lists."""
    messages = row.get("messages")
    if messages is None:
        messages = [{"role": "user", "content": row.get("query", "")}]
        if answers := [row[key] for key in ("answer", "response") if key in row]:
            messages.append({"role": "assistant", "content": answers[0]})
        if len(answers) > 1:
            raise BadRow("has both 'answer' and 'response'; keep one")
    elif extra := [key for key in ("query", "answer", "response") if key in row]:
        raise BadRow(f"has both 'messages' and {extra[0]!r}; put the whole conversation into 'messages'")
    if not isinstance(messages, list) or not messages:
        raise BadRow('\'messages\' must be a list of {"role", "content"}, and not empty')
    messages = [_message(message) for message in messages]
    if messages[0]["role"] == "assistant":
        raise BadRow("begins with the assistant; begin with what it answers")

    parts = [part for message in messages for part in message["content"]]
    for kind, sources in (("image", images), ("video", videos)):
        places = [part for part in parts if part["type"] == kind]
        # Only the kind of a picture's part matters from here on; its source is in the lists.
        inline = [_located(part.pop(kind), root) for part in places if kind in part]
        if inline and (sources or len(inline) < len(places)):
            raise BadRow(f"names only some of its {kind}s in the messages; name all there, or all in '{kind}s'")
        sources += inline
        if places and len(places) != len(sources):
            raise BadRow(
                f"has {len(sources)} {kind}s for {len(places)} {kind} parts in its messages; give each its own"
            )
        if not places and sources:  # in front of what the user first says
            if any(f"<{kind}>" in part.get("text", "") for part in parts):
                raise BadRow(
                    f"has '<{kind}>' in its text, which stays text; make the content a list of parts, one of them "
                    f'{{"type": "{kind}"}}, or remove it'
                )
            first = next((message for message in messages if message["role"] == "user"), None)
            if first is None:
                raise BadRow(f"has {kind}s but no user's message to put them in")
            first["content"][:0] = [{"type": kind} for _ in sources]
    return messages


def _message(message):
    """A checked message, its content as new parts `{"type": "text", "text"}` or `{"type": kind, kind: source}`."""
    if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
        raise BadRow(f"expected messages with a role of system, user or assistant, got {reprlib.repr(message)}")
    role, content = message["role"], message.get("content")
    if extra := [key for key, value in message.items() if key not in ("role", "content") and value is not None]:
        raise BadRow(f"has a message with a field {extra[0]!r}, which is not read; remove it")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise BadRow(f"a message's content must be text or a list of parts, got {reprlib.repr(content)}")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "image", "video"):
            raise BadRow(f"expected parts of type text, image or video, got {reprlib.repr(part)}")
        part = {key: value for key, value in part.items() if value is not None}  # datasets fill in absent fields
        if extra := sorted(set(part) - {"type", kind}):
            raise BadRow(f"has a part of type {kind} with a field {extra[0]!r}; expected 'type' and {kind!r} alone")
        if kind != "text":
            if not isinstance(part.get(kind, ""), (str, list)):
                raise BadRow(f"a message names {kind}s by path or URL, got {type(part[kind]).__name__}; use '{kind}s'")
            parts.append(part)
            continue
        text = part.get("text")
        try:
            text.encode()  # fails on half a character, which JSON can hold: "\\ud83d"
        except (AttributeError, UnicodeEncodeError):
            raise BadRow(f"a part's text must be valid text, got {reprlib.repr(text)}") from None
        if parts and "text" in parts[-1]:  # else a special token could be typed in two halves
            parts[-1]["text"] += text
        elif text:
            parts.append(part)
    if role == "assistant" and any(part["type"] != "text" for part in parts):
        raise BadRow("an assistant's message must be text")
    if role == "assistant" and not (parts and parts[0]["text"].strip()):
        raise BadRow("an assistant's message is empty; leave it out if only the verdict is to be learnt")
    return {"role": role, "content": parts}


def _label(row, taxonomy):
    given = [key for key in ("safety_label", "image_safety_label") if key in row]
    if len(given) > 1:
        raise BadRow(
            f"has two verdict labels, safety_label {row['safety_label']!r} and image_safety_label "
            f"{row['image_safety_label']!r}; keep one"
        )
    label = taxonomy.column(row[given[0]]) if given else IGNORED
    if "image_safe" in row and "safe" in taxonomy.names:
        is_safe = row["image_safe"]
        if is_safe not in (True, False):
            raise BadRow(f"image_safe must be true or false, got {is_safe!r}")
        if not given:
            raise BadRow("has image_safe but no image_safety_label; name the category, 'safe' or what kind of harm")
        if is_safe != (taxonomy.names[label] == "safe"):
            raise BadRow(f"says image_safe {is_safe!r} but {given[0]} {row[given[0]]!r}; correct one")
    return label


def read_rows(sources, taxonomy, collator, *, split="train", image_root=None, on_bad_row="fail", num_threads=4):
    """
    Returns all rows of the sources, checked: each picture has been read, each conversation rendered and counted.

    Args:
        sources (`list[str]`): as `raw_rows` takes them.
        taxonomy ([`Taxonomy`]), collator ([`SafetyCollator`]): what the rows will be trained with.
        split (`str`): of Hugging Face datasets.
        image_root (`str`, *optional*): as in `to_example`.
        on_bad_row (`str`): "fail" or "skip".
        num_threads (`int`): that read pictures.

    Returns:
        [`Rows`]

    Raises:
        BadData: if rows are bad and `on_bad_row` is "fail", or none is left.
        OSError, ValueError: if a source is missing or no list of rows.
    """
    if on_bad_row not in ("fail", "skip"):
        raise ValueError(f"on_bad_row must be 'fail' or 'skip', got {on_bad_row!r}")
    names, tasks = [], []
    for source in sources:
        name, rows = raw_rows(source, split)
        names.append(name)
        tasks += [(source, number, row) for number, row in rows]

    def check(task):
        source, number, row = task
        try:
            example = to_example(row, taxonomy, source, number, image_root)
            return example, *collator.check(example)
        except BadRow as error:
            return Problem(source, number, str(error)), b"", False

    collator.processor.tokenizer("")  # undoes an earlier call's padding, which threads cannot do at once
    with ThreadPoolExecutor(num_threads) as pool:
        checked = list(pool.map(check, tasks))
    problems = [result for result, _, _ in checked if isinstance(result, Problem)]
    kept = [entry for entry in checked if not isinstance(entry[0], Problem)]
    if problems and (on_bad_row == "fail" or not kept):
        raise BadData(problems)
    if not kept:
        raise ValueError(f"{', '.join(names)}: holds no rows")
    digest = hashlib.sha256(json.dumps(taxonomy.names).encode())
    for _, row_digest, _ in kept:
        digest.update(row_digest)
    return Rows(
        [example for example, _, _ in kept], names, problems, sum(cut for _, _, cut in kept), digest.hexdigest()
    )
