"""
Rows to train on: read, checked whole before training starts, and made into batches.

A row is a conversation about pictures or videos, with a verdict label, an answer or both:

    {"images": ["cat.png"], "messages": [{"role": "user", "content": "What is this?"},
                                         {"role": "assistant", "content": "A cat."}], "safety_label": "safe"}
    {"image": "cat.png", "query": "What is this?", "answer": "A cat.", "image_safe": true,
     "image_safety_label": "safe", "type": "...", "category": "...", "subcategory": "..."}

The first is JSONL's form, the second that of HoliSafe's files; a Hugging Face dataset may have either's columns. Rows
without a verdict label train the language model alone, rows without an answer the guard alone. null is as good as
absent; -100 in data is refused. Fields of other names are not read, and refused if they look like what the row lacks.

Beside the label of the whole, a row of several pictures may have one for each by itself, or null, in their order:

    {"images": ["a.png", "b.png"], "safety_label": "terrorism", "picture_safety_labels": ["safe", "terrorism"], ...}
"""

import difflib
import hashlib
import json
import math
import os
import re
import reprlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import yaml

from safeqwen.pictures import UnreadableImage, read_image
from safeqwen.prompt import plain_text
from safeqwen.taxonomy import CATEGORIES


IGNORED = -100  # no label
COLUMNS = (
    *("image", "images", "video", "videos", "messages", "query", "answer", "response"),
    *("safety_label", "image_safety_label", "picture_safety_labels"),
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
        picture_labels (`list[int]`): columns for each of several pictures by itself, in the order of their parts.
    """

    messages: list
    images: list
    videos: list
    label: int
    file: str
    row: int
    picture_labels: list = field(default_factory=list)


@dataclass
class Cell:
    """A picture in a Hugging Face dataset, which stays there until it is needed."""

    dataset: object
    row: int
    column: str
    index: int | None = None  # in a column of lists

    def __str__(self):
        return f"{self.column!r} of row {self.row + 1}"

    def read(self):
        value = self.dataset[self.row][self.column]
        return value if self.index is None else value[self.index]


@dataclass
class Problem:
    """What is wrong with a row, and what to do about it."""

    file: str
    row: int
    reason: str

    def __str__(self):
        return f"{self.file}, row {self.row}: {self.reason}"


class BadRow(ValueError):
    """What is wrong with one row and what to do."""


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
        return replace(first, messages=asked, label=IGNORED, picture_labels=[IGNORED] * len(first.picture_labels))

    @property
    def labels(self):
        """`list[int]`: the verdict label of each row, -100 for none."""
        return [example.label for example in self.examples]

    @property
    def verdict_labels(self):
        """`list[int]`: the labels of all rows, and of all pictures by themselves."""
        return [label for example in self.examples for label in (example.label, *example.picture_labels)]

    def summary(self, categories):
        """`dict` for a run's record: files, counts and fingerprint."""
        counts = Counter(self.labels)
        return {
            "files": self.files,
            "rows": len(self),
            "skipped": len(self.problems),
            "cut": self.num_cut,
            "sha256": self.sha256,
            "rows_with_picture_labels": sum(has_label(example.picture_labels) for example in self.examples),
            "rows_by_label": {name: counts[i] for i, name in enumerate(categories)},
            "rows_with_answer": sum(has_answer(example.messages) for example in self.examples),
        }


def has_label(labels):
    return any(label != IGNORED for label in labels)


def has_answer(messages):
    return any(message["role"] == "assistant" for message in messages)


# ------------------------------------------------------------------------------------------------------- the taxonomy


class Taxonomy:
    """
    Finds the column of a label by name, alias or number.

    Args:
        names (`list[str]`): the guard's categories, in their order.
        aliases (`dict[str, str]`, *optional*): other names -> names. HoliSafe's own come along, where they are free.

    Raises:
        ValueError: if a name or alias is a number.
    """

    def __init__(self, names, aliases=None):
        self.names = list(names)
        known = {alias: category.name for category in CATEGORIES for alias in category.aliases}
        self.aliases = {
            alias: name
            for alias, name in {**known, **(aliases or {})}.items()
            if name in self.names and alias not in self.names
        }
        if numbers := [name for name in (*self.names, *self.aliases) if name.strip().isdecimal()]:
            raise ValueError(f"category {numbers[0]!r} could be mistaken for the number of a column; give it a word")

    def column(self, label):
        """
        Returns the column (`int`) of a label.

        Raises:
            BadRow: if the label is no category's name, alias or number.
        """
        if isinstance(label, (list, tuple, dict)):
            raise BadRow(f"holds several verdict labels, {label!r}; a row is judged as a whole: give it one")
        if isinstance(label, bool) or not isinstance(label, (str, int)):
            raise BadRow(f"label {label!r} is neither a category's name nor its whole number; null is for no label")
        if isinstance(label, str) and not label.strip().isdecimal():
            name = self.aliases.get(label, label)
            if name not in self.names:
                near = difflib.get_close_matches(label.strip().lower(), [*self.names, *self.aliases], n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(self.names)}"
                raise BadRow(f"label {label!r} is no category of this taxonomy; {hint}")
            return self.names.index(name)
        if not 0 <= int(label) < len(self.names):
            raise BadRow(
                f"label {label!r} is outside of the taxonomy, whose {len(self.names)} categories are 0 to "
                f"{len(self.names) - 1}; was the data labelled with another taxonomy? null is for no label"
            )
        return int(label)


def read_taxonomy(path):
    """
    Returns the taxonomy in a YAML file: a list of names, or of `{name: ..., aliases: [...]}`.

        - safe
        - name: our_logo
          aliases: [logo, brand]

    Raises:
        ValueError: if the file holds anything else, or a name twice.
        OSError: if it cannot be read.
    """
    expected = f"{path} must be a list of two or more category names, each a word or {{name: ..., aliases: [...]}}"
    try:
        entries = yaml.safe_load(_read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{expected}, but is no valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(entries, list) or len(entries) < 2:
        raise ValueError(f"{expected}, got {entries!r}")
    names, aliases = [], []
    for entry in entries:
        known = entry if isinstance(entry, dict) else {"name": entry}
        others = known.get("aliases") or []
        words = [known.get("name"), *(others if isinstance(others, list) else [None])]
        if set(known) - {"name", "aliases"} or not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError(f"{expected}, got {entry!r}; quote words that YAML takes for something else, as 'no'")
        names.append(words[0])
        aliases += [(alias, words[0]) for alias in others]
    if twice := [word for word, count in Counter([*names, *(alias for alias, _ in aliases)]).items() if count > 1]:
        raise ValueError(f"{path} names {', '.join(twice)} more than once; a category needs a name of its own")
    return Taxonomy(names, dict(aliases))


def _read_text(path):
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error


# ------------------------------------------------------------------------------------------------------- reading rows


def raw_rows(source, split="train"):
    """
    Returns the rows of a source, as they are: `(name, [(number, row or BadRow), ...])`.

    Args:
        source (`str`): a `.jsonl` file, a `.json` file that holds a list, a folder that `Dataset.save_to_disk` wrote,
            or what `datasets.load_dataset` takes.
        split (`str`): of a dataset with several.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a file is not UTF-8, a `.json` file is no list, or a dataset cannot be loaded.
    """
    suffix = Path(source).suffix.lower()
    if suffix == ".jsonl":
        lines = _read_text(source).split("\n")
        return str(source), [(i, _parsed(line)) for i, line in enumerate(lines, start=1) if line.strip()]
    if suffix == ".json":
        rows = _parsed(_read_text(source))
        if isinstance(rows, BadRow):
            raise ValueError(f"{source} {rows}; a file of one object a line is named .jsonl")
        if not isinstance(rows, list):
            raise ValueError(f"{source} must hold a list of rows, got {type(rows).__name__}")
        return str(source), list(enumerate(rows, start=1))
    return f"{source} ({split})", list(enumerate(_dataset_rows(source, split), start=1))


def _parsed(text):
    try:
        return json.loads(text, object_pairs_hook=_json_object)
    except (ValueError, RecursionError) as error:
        return BadRow(f"is no valid JSON ({error})")


def _json_object(pairs):
    """Python would keep the last of two fields of one name, say of two verdict labels."""
    for _, value in pairs:
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, BadRow):  # makes the whole row bad
                return inner
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        return BadRow(f"has {twice[0]!r} more than once; keep one")
    return dict(pairs)


def _dataset_rows(source, split):
    """The rows of a Hugging Face dataset (`dict`): its pictures as `Cell`s, its class labels by their names."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{source} is neither .json nor .jsonl, and other data need the library datasets: pip install datasets"
        ) from error
    if Path(source).is_file():
        raise ValueError(
            f"{source} is neither .json nor .jsonl; load it with the library datasets and name what save_to_disk wrote"
        )
    try:
        if Path(source, "state.json").exists() or Path(source, "dataset_dict.json").exists():
            dataset = datasets.load_from_disk(source)
        else:
            dataset = datasets.load_dataset(source, split=split)
    except Exception as error:  # of whatever kind the library raises
        raise ValueError(f"{source} is no file, and as a dataset it cannot be loaded: {error}") from error
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise ValueError(f"{source} has no split {split!r}, but {', '.join(dataset)}; name one of them")
        dataset = dataset[split]

    dataset = dataset.with_format(None)  # not as tensors
    pictures, classes = [], {}
    for column, feature in dataset.features.items():
        inner = getattr(feature, "feature", None)
        if isinstance(feature, datasets.ClassLabel):
            classes[column] = feature.names
        elif isinstance(feature, datasets.Image) or isinstance(inner, datasets.Image):
            raw = datasets.Image(decode=False)  # `read_image` is the only reader
            dataset = dataset.cast_column(column, datasets.List(raw) if inner else raw)
            pictures.append(column)
        elif isinstance(feature, datasets.Video) or isinstance(inner, datasets.Video):
            raise ValueError(f"{source} has videos in its column {column!r}; make it a column of paths to files")
    rows = []
    for i, row in enumerate(dataset):
        for column in pictures:
            if isinstance(row[column], list):
                row[column] = [Cell(dataset, i, column, k) for k in range(len(row[column]))]
            elif row[column] is not None:
                row[column] = Cell(dataset, i, column)
        for column, names in classes.items():  # a number in such a column is that of its own names, not of ours
            if row[column] is not None and row[column] >= 0:
                row[column] = names[row[column]]
        rows.append(row)
    return rows


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
    picture_labels = _picture_labels(row, taxonomy, images, videos, label)
    asks = any(
        part.get("text", "").strip()
        for message in messages
        if message["role"] == "user"
        for part in message["content"]
    )
    lacking = {
        "images": not images and not videos,
        "safety_label": label == IGNORED and not has_label(picture_labels),
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
    return Example(messages, images, videos, label, file, number, picture_labels)


def _picture_labels(row, taxonomy, images, videos, label):
    """The columns of a row's `picture_safety_labels`, `[]` without any; `label` is that of the whole."""
    labels, num_pictures = row.get("picture_safety_labels", []), len(images) + len(videos)
    if not isinstance(labels, list) or labels and len(labels) != num_pictures:
        raise BadRow(
            f"'picture_safety_labels' must be a list with a label or null for each of the row's {num_pictures} "
            f"pictures, got {reprlib.repr(labels)}"
        )
    if labels and num_pictures == 1:
        raise BadRow("has 'picture_safety_labels' for a single picture; give it a 'safety_label' instead")
    if labels and images and videos:
        raise BadRow("has 'picture_safety_labels' for images beside videos, whose order is not clear; split the row")
    columns = [IGNORED if name is None else taxonomy.column(name) for name in labels]
    if label != IGNORED and taxonomy.names[label] == "safe" and set(columns) - {label, IGNORED}:
        raise BadRow("is 'safe' as a whole, but by 'picture_safety_labels' one of its pictures is not; correct one")
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


# ------------------------------------------------------------------------------------------------ pictures and tokens


def load_picture(source):
    """
    Returns a still picture, an RGB `PIL.Image`.

    Raises:
        UnreadableImage: as `read_image`, and if the source is an animation.
    """
    frames = read_image(source.read() if isinstance(source, Cell) else source, one_paper=True)
    if len(frames) > 1:
        name = source if isinstance(source, (str, os.PathLike, Cell)) else f"<{type(source).__name__}>"
        raise UnreadableImage(f"{name}: is an animation; train on it as a video, or on its frames as pictures")
    return frames[0]


def load_video(source, fps=2.0, max_frames=32):
    """
    Returns frames of a video and how many of them make a second: `(uint8 tensor (frames, 3, height, width), float)`.

    Args:
        source (`str` or `list`): a file that PyAV decodes, or the frames themselves, as pictures of one size.
        fps (`float`): frames to take a second; of a list, how many of its frames made a second.
        max_frames (`int`): at most this many, evenly spaced over the whole clip.

    Raises:
        ValueError: if the video cannot be read.
    """
    if isinstance(source, list):
        frames = [np.asarray(load_picture(frame)) for frame in source]
        if len({frame.shape for frame in frames}) != 1:
            raise ValueError("a video needs one or more frames, all of one size")
        kept = np.linspace(0, len(frames) - 1, min(len(frames), max_frames)).round().astype(int)
        return torch.from_numpy(np.stack([frames[i] for i in kept])).movedim(-1, 1), fps * len(kept) / len(frames)

    from transformers.video_utils import load_video as decode

    if not isinstance(source, str) or not os.path.isfile(source):
        raise ValueError(f"{source}: there is no such video file; a video is a file here, or a list of pictures")

    def sample(metadata, **kwargs):
        total, rate = metadata.total_num_frames, metadata.fps
        return np.linspace(0, total - 1, min(max(round(total / rate * fps), 2), max_frames, total)).round().astype(int)

    try:
        frames, metadata = decode(source, backend="pyav", sample_indices_fn=sample)
    except ImportError as error:
        raise ImportError("videos need PyAV: pip install av, or give a video as a list of pictures") from error
    except Exception as error:  # of whatever kind the decoder raises
        raise ValueError(f"{source}: cannot be read as a video ({error}); convert it to MP4") from error
    if len(frames) < len(metadata.frames_indices):
        raise ValueError(f"{source}: ends before its last frame; get the whole file anew, or convert it to MP4")
    return torch.from_numpy(frames).movedim(-1, 1), len(frames) * metadata.fps / metadata.total_num_frames


@dataclass
class Pixels:
    """What the processors made of an example's pictures; the grids are lists of (frames, rows, columns) of patches."""

    inputs: dict
    image_grids: list
    video_grids: list


class SafetyCollator:
    """
    Makes examples into a batch for `forward`, with labels on the assistant's tokens alone.

        >>> SafetyCollator(processor)([Example([user_with_picture, assistant_says_a_cat], ["cat.png"], [], 0, "", 1)])
        input_ids      <|im_start|> user \\n <|vision_start|> <|image_pad|> ... assistant \\n A cat. <|im_end|> \\n
        labels         -100 ...                                                        A cat. <|im_end|> -100
        safety_labels  0
        attention_mask, pixel_values, image_grid_thw  as the processor makes them

    An answer is labelled up to its end-of-text token, or, where the template has none, with all that the template puts
    behind it. Typed special tokens such as `<|image_pad|>` stay text. Rows are padded on the right.

    Args:
        processor (`Qwen2_5_VLProcessor`): of the model, with any chat template whose generation prompt ends where the
            answer begins, and that renders a conversation's beginning as the beginning of the whole.
        max_length (`int`, *optional*): tokens of a row; text behind is cut off, but never a picture.
        video_fps (`float`), max_video_frames (`int`): as in `load_video`.

    Raises:
        ValueError: if `max_length` is under 1.
    """

    def __init__(self, processor, max_length=None, video_fps=2.0, max_video_frames=32):
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be 1 or more tokens, got {max_length}; leave it out to cut nothing")
        self.processor = processor
        self.max_length = max_length
        self.video_fps = video_fps
        self.max_video_frames = max_video_frames

    def __call__(self, examples):
        batch, rows, targets = {}, [], []
        for example in examples:
            pixels = self.pixels(example)
            ids, labels, _ = self.tokenize(example, pixels.image_grids, pixels.video_grids)
            rows.append(torch.tensor(ids))
            targets.append(torch.tensor(labels))
            for name, tensor in pixels.inputs.items():
                batch.setdefault(name, []).append(tensor)
        batch = {name: torch.cat(tensors) for name, tensors in batch.items()}
        pad = torch.nn.utils.rnn.pad_sequence
        batch["input_ids"] = pad(rows, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id)
        batch["attention_mask"] = pad([torch.ones_like(row) for row in rows], batch_first=True)
        batch["labels"] = pad(targets, batch_first=True, padding_value=IGNORED)
        batch["safety_labels"] = torch.tensor([example.label for example in examples])
        if any(has_label(example.picture_labels) for example in examples):
            per_picture = [
                example.picture_labels or [IGNORED] * len(example.images + example.videos) for example in examples
            ]
            batch["picture_categories"] = torch.tensor(sum(per_picture, []))
            batch["picture_rows"] = torch.tensor([i for i, labels in enumerate(per_picture) for _ in labels])
        return batch

    def pixels(self, example):
        """The [`Pixels`] of an example."""
        inputs = {}
        if example.images:
            pictures = [load_picture(source) for source in example.images]
            inputs.update(self.processor.image_processor(images=pictures, return_tensors="pt"))
        if example.videos:
            clips = [load_video(source, self.video_fps, self.max_video_frames) for source in example.videos]
            inputs.update(self._video_inputs(clips))
        grids = [inputs[key].tolist() if key in inputs else [] for key in ("image_grid_thw", "video_grid_thw")]
        return Pixels(inputs, *grids)

    def _video_inputs(self, clips):
        processed = self.processor.video_processor(
            videos=[frames for frames, _ in clips], do_sample_frames=False, return_tensors="pt"
        )
        step = self.processor.video_processor.temporal_patch_size
        return {
            "pixel_values_videos": processed["pixel_values_videos"],
            "video_grid_thw": processed["video_grid_thw"],
            "second_per_grid_ts": torch.tensor([step / fps for _, fps in clips]),
        }

    def check(self, example):
        """
        Reads an example's pictures and counts its tokens, as far as can go wrong.

        Returns:
            `tuple`: (digest of the row (`bytes`), whether its text will be cut (`bool`))

        Raises:
            BadRow: if a picture cannot be read or no token is left to learn from.
        """
        digest = hashlib.sha256(json.dumps([example.messages, example.label, example.picture_labels]).encode())
        try:
            image_grids, video_grids = [], []
            for source in example.images:
                picture = load_picture(source)
                digest.update(repr(picture.size).encode() + picture.tobytes())
                image_grids.append([self._num_patches(picture)])
            for source in example.videos:
                frames, fps = load_video(source, self.video_fps, self.max_video_frames)
                digest.update(repr((*frames.shape, fps)).encode() + frames.numpy().tobytes())
                video_grids += self._video_inputs([(frames, fps)])["video_grid_thw"].tolist()
        except ValueError as error:
            raise BadRow(str(error)) from error
        _, labels, is_cut = self.tokenize(example, image_grids, video_grids)
        if is_cut and not has_label([example.label, *example.picture_labels, *labels]):
            raise BadRow(f"has its whole answer behind max_length ({self.max_length} tokens); raise it")
        return digest.digest(), is_cut

    def _num_patches(self, picture):
        processor = self.processor.image_processor
        limits = {name: getattr(processor, name, None) for name in ("min_pixels", "max_pixels")}
        if None in limits.values():  # 4.57 resizes by these two if it has both, and counts by its `size` regardless
            limits = {}
        return processor.get_number_of_image_patches(picture.height, picture.width, limits)

    def tokenize(self, example, image_grids, video_grids):
        """
        Returns the tokens of an example: `(ids, labels, whether they were cut)`.

        Args:
            image_grids, video_grids (`list`): for each picture numbers whose product is its patches before merging.

        Raises:
            BadRow: if the chat template does not fit, or pictures do not fit into `max_length`.
        """
        merged = self.processor.image_processor.merge_size**2
        sizes = {
            self.processor.image_token_id: [math.prod(grid) // merged for grid in image_grids],
            self.processor.video_token_id: [math.prod(grid) // merged for grid in video_grids],
        }
        ids, labels, end_of_pictures = [], [], 0
        for text, is_answer in self._render(example.messages):
            for token in self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]:
                count = 1
                if token in sizes:
                    if not sizes[token]:
                        raise BadRow("has fewer pictures than the processor's chat template makes places for")
                    count = sizes[token].pop(0)
                    end_of_pictures = len(ids) + count
                ids += [token] * count
                labels += [token if is_answer else IGNORED] * count
        if any(sizes.values()):
            raise BadRow("has more pictures than the processor's chat template makes places for; use Qwen2.5-VL's")
        is_cut = self.max_length is not None and len(ids) > self.max_length
        if is_cut:
            if end_of_pictures > self.max_length:
                raise BadRow(
                    f"needs {end_of_pictures} tokens up to the end of its pictures, but max_length is "
                    f"{self.max_length}; raise it, or lower max_pixels"
                )
            ids, labels = ids[: self.max_length], labels[: self.max_length]
        return ids, labels, is_cut

    def _render(self, messages):
        """
        The chat in pieces, `[(text, whether it is an answer), ...]`.

        Each becomes tokens by itself, as when the model generates: a line break at the beginning of an answer does not
        merge with the one before it.
        """
        from jinja2 import TemplateError

        tokenizer = self.processor.tokenizer
        messages = [
            {
                "role": message["role"],
                "content": [
                    {**part, "text": plain_text(part["text"], tokenizer)} if "text" in part else part
                    for part in message["content"]
                ],
            }
            for message in messages
        ]

        def render(upto, **kwargs):
            try:
                return self.processor.apply_chat_template(messages[:upto], tokenize=False, **kwargs)
            except TemplateError as error:
                raise BadRow(f"the processor's chat template refuses the conversation: {error}") from error

        text, pieces, done = render(len(messages)), [], 0
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = render(i, add_generation_prompt=True), render(i + 1)
            answer = message["content"][0]["text"].strip()
            spoken = after[len(before) :]
            if not (text.startswith(after) and after.startswith(before) and spoken.strip().startswith(answer)):
                raise BadRow(
                    f"the processor's chat template renders answer {reprlib.repr(answer)} otherwise at the end of a "
                    "conversation, within one, or behind the generation prompt, so it is not clear what to learn; "
                    "make each answer a row of its own, or use another template"
                )
            end = spoken.find(tokenizer.eos_token)  # what follows is not the assistant's
            spoken = spoken if end < 0 else spoken[: end + len(tokenizer.eos_token)]
            pieces += [(text[done : len(before)], False), (spoken, True)]
            done = len(before) + len(spoken)
        return [*pieces, (text[done:], False)]


# ---------------------------------------------------------------------------------------------------- the whole check


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


def class_weights(labels, num_categories):
    """
    Returns a weight for each category so that all weigh the same in the safety loss, float32 `(num_categories,)`.

    labelled rows / (categories that occur * rows of the category), as scikit-learn's "balanced"; 1 for a category
    without rows.
    """
    known = torch.tensor([label for label in labels if label != IGNORED], dtype=torch.long)
    counts = torch.bincount(known, minlength=num_categories)
    weights = counts.sum() / (counts.gt(0).sum() * counts)
    return weights.masked_fill(counts.eq(0), 1.0)


def sample_weights(labels):
    """`list[float]`: how often to draw each row so that all labels, "none" among them, come up equally often."""
    counts = Counter(labels)
    return [1 / counts[label] for label in labels]
