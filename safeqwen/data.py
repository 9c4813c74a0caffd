"""
Rows to train on: read, checked whole before training starts, and made into batches.

A row is a conversation about pictures or videos, with a verdict label, an answer or both:

    {"images": ["cat.png"], "messages": [{"role": "user", "content": "What is this?"},
                                         {"role": "assistant", "content": "A cat."}], "safety_label": "safe"}
    {"image": "cat.png", "query": "What is this?", "answer": "A cat.", "image_safe": true,
     "image_safety_label": "safe", "type": "...", "category": "...", "subcategory": "..."}

The first is JSONL's form, the second that of HoliSafe's files; a Hugging Face dataset may have either's columns. Rows
without a verdict label train the language model alone, rows without an answer the guard alone.
"""

import bisect
import difflib
import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml

from safeqwen.images import UnreadableImage, read_image
from safeqwen.prompt import plain_text
from safeqwen.taxonomy import CATEGORIES


IGNORED = -100  # no label
COLUMNS = (
    *("image", "images", "video", "videos", "messages", "query", "answer", "response", "safety_label"),
    *("image_safe", "image_safety_label", "type", "category", "subcategory"),
)


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
    """

    messages: list
    images: list
    videos: list
    label: int
    file: str
    row: int


@dataclass
class Cell:
    """A picture in a Hugging Face dataset, which stays there until it is needed."""

    dataset: object
    row: int
    column: str
    index: int | None = None  # in a column of lists

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
        super().__init__(
            f"{len(problems)} rows cannot be trained on; correct them, or leave them out with on_bad_row: skip\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )


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

    @property
    def labels(self):
        """`list[int]`: the verdict label of each row, -100 for none."""
        return [example.label for example in self.examples]

    def summary(self, categories):
        """`dict` for a run's record: files, counts and fingerprint."""
        counts = Counter(self.labels)
        return {
            "files": self.files,
            "rows": len(self),
            "skipped": len(self.problems),
            "cut": self.num_cut,
            "sha256": self.sha256,
            "rows_by_label": {name: counts[i] for i, name in enumerate(categories)},
            "rows_with_answer": sum(has_answer(example.messages) for example in self.examples),
        }


def has_answer(messages):
    return any(message["role"] == "assistant" for message in messages)


# ------------------------------------------------------------------------------------------------------- the taxonomy


class Taxonomy:
    """
    Finds the column of a label by name, alias or number.

    Args:
        names (`list[str]`): the guard's categories, in their order.
        aliases (`dict[str, str]`, *optional*): other names -> names. HoliSafe's own come along.
    """

    def __init__(self, names, aliases=None):
        self.names = list(names)
        known = {alias: category.name for category in CATEGORIES for alias in category.aliases}
        self.aliases = {alias: name for alias, name in {**known, **(aliases or {})}.items() if name in self.names}

    def column(self, label):
        """
        Returns the column (`int`) of a label.

        Raises:
            BadRow: if the label is no category's name, alias or number.
        """
        if isinstance(label, (list, tuple, dict)):
            raise BadRow(f"holds several verdict labels, {label!r}; a row is judged as a whole: give it one")
        if isinstance(label, str):
            name = self.aliases.get(label, label)
            if name in self.names:
                return self.names.index(name)
            if not label.strip().isdigit():
                near = difflib.get_close_matches(label, [*self.names, *self.aliases], n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(self.names)}"
                raise BadRow(f"label {label!r} is no category of this taxonomy; {hint}")
            label = int(label)
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(self.names):
            raise BadRow(
                f"label {label!r} is outside of the taxonomy, whose {len(self.names)} categories are 0 to "
                f"{len(self.names) - 1}; was the data labelled with another taxonomy?"
            )
        return label


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
    entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    expected = f"{path} must be a list of two or more category names, each a word or {{name: ..., aliases: [...]}}"
    if not isinstance(entries, list) or len(entries) < 2:
        raise ValueError(f"{expected}, got {entries!r}")
    names, aliases = [], {}
    for entry in entries:
        entry = entry if isinstance(entry, dict) else {"name": entry}
        if not isinstance(entry.get("name"), str) or set(entry) - {"name", "aliases"}:
            raise ValueError(f"{expected}, got {entry!r}")
        names.append(entry["name"])
        aliases.update(dict.fromkeys(entry.get("aliases") or (), entry["name"]))
    if twice := [name for name, count in Counter([*names, *aliases]).items() if count > 1]:
        raise ValueError(f"{path} names {', '.join(twice)} more than once; a category needs a name of its own")
    return Taxonomy(names, aliases)


# ------------------------------------------------------------------------------------------------------- reading rows


def raw_rows(source, split="train"):
    """
    Returns the rows of a source, as they are: `(name, [(number, row or BadRow), ...])`.

    Args:
        source (`str`): a `.jsonl` file, a `.json` file that holds a list, a folder that `Dataset.save_to_disk` wrote,
            or what `datasets.load_dataset` takes.
        split (`str`): of a dataset with several.

    Raises:
        OSError: if there is no such file.
        ValueError: if a `.json` file is no list.
    """
    path = Path(source)
    if path.suffix == ".jsonl":
        rows = []
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows.append((number, _parsed(line)))
        return str(source), rows
    if path.suffix == ".json":
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{source} is no valid JSON ({error}); for one object a line name it .jsonl") from error
        if not isinstance(rows, list):
            raise ValueError(f"{source} must hold a list of rows, got {type(rows).__name__}")
        return str(source), list(enumerate(rows, start=1))
    dataset = _dataset(source, split)
    pictures = [c for c in ("image", "images") if c in dataset.column_names]
    texts = dataset.remove_columns(pictures)
    rows = []
    for i in range(len(dataset)):
        row = dict(texts[i])
        for column in pictures:
            value = dataset[i][column]
            if isinstance(value, list):
                row[column] = [Cell(dataset, i, column, k) for k in range(len(value))]
            else:
                row[column] = None if value is None else Cell(dataset, i, column)
        rows.append((i + 1, row))
    return f"{source} ({split})", rows


def _parsed(line):
    try:
        return json.loads(line)
    except ValueError as error:
        return BadRow(f"is no valid JSON ({error}); each line must be one whole object")


def _dataset(source, split):
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{source} is neither .json nor .jsonl, and other data need the library datasets: pip install datasets"
        ) from error
    if Path(source, "state.json").exists() or Path(source, "dataset_dict.json").exists():
        dataset = datasets.load_from_disk(source)
        dataset = dataset[split] if isinstance(dataset, datasets.DatasetDict) else dataset
    else:
        dataset = datasets.load_dataset(source, split=split)
    for column, feature in dataset.features.items():  # undecoded: `read_image` is the only reader
        inner = getattr(feature, "feature", None)
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
        elif isinstance(inner, datasets.Image):
            dataset = dataset.cast_column(column, datasets.List(datasets.Image(decode=False)))
    return dataset


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
    for key in set(row) - set(COLUMNS):
        if near := difflib.get_close_matches(key, COLUMNS, n=1, cutoff=0.8):
            raise BadRow(f"has a field {key!r}; did you mean {near[0]!r}?")

    root = Path(image_root) if image_root is not None else Path(file).parent
    images = [_located(source, root) for source in _listed(row, "image", "images")]
    videos = [
        [_located(frame, root) for frame in source] if isinstance(source, list) else _located(source, root)
        for source in _listed(row, "video", "videos")
    ]
    messages = _messages(row, images, videos, root)
    label = _label(row, taxonomy)
    if label == IGNORED and not has_answer(messages):
        raise BadRow("has neither a verdict label nor an answer, so there is nothing to learn; give it one of them")
    if label != IGNORED and not images and not videos:
        raise BadRow("has a verdict label but no picture to judge; remove safety_label or name the picture in images")
    return Example(messages, images, videos, label, file, number)


def _listed(row, one, many):
    if one in row and many in row:
        raise BadRow(f"has both {one!r} and {many!r}; put all into {many!r}")
    if one in row:
        return [row[one]]
    value = row.get(many, [])
    if not isinstance(value, list):
        raise BadRow(f"{many!r} must be a list, got {type(value).__name__}; for a single one use {one!r}")
    return value


def _located(source, root):
    is_path = isinstance(source, str) and not source.startswith(("http://", "https://", "data:"))
    return str(root / source) if is_path else source


def _messages(row, images, videos, root):
    """The conversation with its pictures in their places; pictures that stand inline are added to the lists."""
    if "messages" not in row:
        answer = _only(row, "answer", "response")
        messages = [{"role": "user", "content": row.get("query", "")}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    elif extra := [key for key in ("query", "answer", "response") if key in row]:
        raise BadRow(f"has both 'messages' and {extra[0]!r}; put the whole conversation into 'messages'")
    else:
        messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise BadRow('\'messages\' must be a list of {"role", "content"}, and not empty')

    parsed, inline = [], {"image": [], "video": []}
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise BadRow(f"expected messages with a role of system, user or assistant, got {message!r}")
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            raise BadRow(f"a message's content must be text or a list of parts, got {content!r}")
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text" and isinstance(part.get("text"), str):
                continue
            if kind not in inline:
                raise BadRow(f"expected parts of type text, image or video, got {part!r}")
            inline[kind].append(part.get(kind))
        if message["role"] == "assistant" and (not parts or any(part["type"] != "text" for part in parts)):
            raise BadRow("an assistant's message must be text, and not empty")
        if message["role"] == "assistant" and not "".join(part["text"] for part in parts).strip():
            raise BadRow("an assistant's message is empty; leave it out if only the verdict is to be learnt")
        parsed.append({"role": message["role"], "content": parts})

    for kind, sources in (("image", images), ("video", videos)):
        named = [_located(source, root) for source in inline[kind] if source is not None]
        if named and (sources or len(named) < len(inline[kind])):
            raise BadRow(f"names {kind}s both in the messages and in '{kind}s'; use one of them")
        sources += named
        if inline[kind] and len(inline[kind]) != len(sources):
            raise BadRow(
                f"has {len(sources)} {kind}s for {len(inline[kind])} {kind} parts in its messages; give each its own"
            )
        if not inline[kind] and sources:  # no places named: in front of what the user first says
            users = [message for message in parsed if message["role"] == "user"]
            if not users:
                raise BadRow(f"has {kind}s but no user's message to put them in")
            users[0]["content"] = [{"type": kind}] * len(sources) + users[0]["content"]
    # Only the kind of a picture's part matters from here on; its source is in the lists.
    return [
        {
            "role": message["role"],
            "content": [
                part if part["type"] == "text" else {"type": part["type"]}
                for part in message["content"]
                if part.get("text") != ""
            ],
        }
        for message in parsed
    ]


def _only(row, *keys):
    given = [key for key in keys if key in row]
    if len(given) > 1:
        raise BadRow(f"has both {given[0]!r} and {given[1]!r}; keep one")
    return row[given[0]] if given else None


def _label(row, taxonomy):
    given = [row[key] for key in ("safety_label", "image_safety_label") if key in row]
    if len(given) > 1:
        raise BadRow(
            f"has two verdict labels, safety_label {given[0]!r} and image_safety_label {given[1]!r}; keep one"
        )
    column = taxonomy.column(given[0]) if given else IGNORED
    if given and "image_safe" in row and "safe" in taxonomy.names:
        if bool(row["image_safe"]) != (taxonomy.names[column] == "safe"):
            raise BadRow(f"says image_safe {row['image_safe']!r} but image_safety_label {given[0]!r}; correct one")
    return column


# ------------------------------------------------------------------------------------------------ pictures and tokens


def load_picture(source):
    """
    Returns a still picture, an RGB `PIL.Image`.

    Raises:
        UnreadableImage: as `read_image`, and if the source is an animation.
    """
    frames = read_image(source.read() if isinstance(source, Cell) else source)
    if len(frames) > 1:
        raise UnreadableImage(f"{source}: is an animation; train on it as a video, or on its frames as pictures")
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
        frames, seconds = np.stack([frames[i] for i in kept]), len(frames) / fps
    else:
        from transformers.video_utils import load_video as decode

        def sample(metadata, **kwargs):
            total, rate = metadata.total_num_frames, metadata.fps or fps
            wanted = min(max(round(total / rate * fps), 2), max_frames, total)
            return np.linspace(0, total - 1, wanted).round().astype(int)

        try:
            frames, metadata = decode(source, backend="pyav", sample_indices_fn=sample)
        except ImportError as error:
            raise ImportError("videos need PyAV: pip install av, or give a video as a list of pictures") from error
        except Exception as error:  # of whatever kind the decoder raises
            raise ValueError(f"{source}: cannot be read as a video ({error}); convert it to MP4") from error
        seconds = metadata.total_num_frames / (metadata.fps or fps)
    return torch.from_numpy(frames).movedim(-1, 1), len(frames) / seconds


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

    Typed special tokens such as `<|image_pad|>` stay text. Rows are padded on the right.

    Args:
        processor (`Qwen2_5_VLProcessor`): of the model, with any chat template that renders a conversation's beginning
            as the beginning of the whole.
        max_length (`int`, *optional*): tokens of a row; text behind is cut off, but never a picture.
        video_fps (`float`), max_video_frames (`int`): as in `load_video`.
    """

    def __init__(self, processor, max_length=None, video_fps=2.0, max_video_frames=32):
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
        digest = hashlib.sha256(json.dumps([example.messages, example.label]).encode())
        try:
            image_grids, video_grids = [], []
            for source in example.images:
                picture = load_picture(source)
                digest.update(picture.tobytes())
                patches = self.processor.image_processor.get_number_of_image_patches(picture.height, picture.width, {})
                image_grids.append([1, 1, patches])
            for source in example.videos:
                frames, fps = load_video(source, self.video_fps, self.max_video_frames)
                digest.update(frames.numpy().tobytes())
                video_grids += self._video_inputs([(frames, fps)])["video_grid_thw"].tolist()
        except BadRow:
            raise
        except ValueError as error:
            raise BadRow(str(error)) from error
        return digest.digest(), self.tokenize(example, image_grids, video_grids)[2]

    def tokenize(self, example, image_grids, video_grids):
        """
        Returns the tokens of an example: `(ids, labels, whether they were cut)`.

        Args:
            image_grids, video_grids (`list`): (frames, rows, columns) of patches before merging, one a picture.

        Raises:
            BadRow: if pictures do not fit into `max_length`, or nothing is left to learn from.
        """
        tokenizer = self.processor.tokenizer
        text, spans = self._render(example.messages)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts = [start for start, _ in spans]
        merged = self.processor.image_processor.merge_size**2
        sizes = {
            self.processor.image_token_id: [int(np.prod(grid)) // merged for grid in image_grids],
            self.processor.video_token_id: [int(np.prod(grid)) // merged for grid in video_grids],
        }
        ids, labels, end_of_pictures = [], [], 0
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"]):
            if token in sizes:
                count = sizes[token].pop(0)
                ids += [token] * count
                labels += [IGNORED] * count
                end_of_pictures = len(ids)
                continue
            span = bisect.bisect_right(starts, start) - 1
            ids.append(token)
            labels.append(token if span >= 0 and end <= spans[span][1] else IGNORED)
        is_cut = self.max_length is not None and len(ids) > self.max_length
        if is_cut:
            if end_of_pictures > self.max_length:
                raise BadRow(
                    f"needs {end_of_pictures} tokens up to the end of its pictures, but max_length is "
                    f"{self.max_length}; raise it, or lower max_pixels"
                )
            ids, labels = ids[: self.max_length], labels[: self.max_length]
            if example.label == IGNORED and all(label == IGNORED for label in labels):
                raise BadRow(f"has its whole answer behind max_length ({self.max_length} tokens); raise it")
        return ids, labels, is_cut

    def _render(self, messages):
        """The chat as text, and where in it the assistant speaks: `(str, [(start, end), ...])`."""
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
            return self.processor.apply_chat_template(messages[:upto], tokenize=False, **kwargs)

        text, spans = render(len(messages)), []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = render(i, add_generation_prompt=True), render(i + 1)
            if not (text.startswith(after) and after.startswith(before)):
                raise BadRow(
                    "the processor's chat template renders the beginning of this conversation in another way than the "
                    "whole, so the assistant's tokens cannot be told apart; make each answer a row of its own"
                )
            end = text.find(tokenizer.eos_token, len(before), len(after))  # what follows is not the assistant's
            spans.append((len(before), len(after) if end < 0 else end + len(tokenizer.eos_token)))
        return text, spans


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

    with ThreadPoolExecutor(num_threads) as pool:
        checked = list(pool.map(check, tasks))
    problems = [result for result, _, _ in checked if isinstance(result, Problem)]
    kept = [entry for entry in checked if not isinstance(entry[0], Problem)]
    if problems and (on_bad_row == "fail" or not kept):
        raise BadData(problems)
    if not kept:
        raise ValueError(f"{', '.join(names)}: holds no rows")
    digest = hashlib.sha256("\n".join(taxonomy.names).encode())
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
    counts = torch.bincount(torch.tensor([label for label in labels if label != IGNORED]), minlength=num_categories)
    weights = counts.sum() / (counts.gt(0).sum() * counts)
    return weights.masked_fill(counts.eq(0), 1.0)


def sample_weights(labels):
    """`list[float]`: how often to draw each row so that all labels, "none" among them, come up equally often."""
    counts = Counter(labels)
    return [1 / counts[label] for label in labels]
