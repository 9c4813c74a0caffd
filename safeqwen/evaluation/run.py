"""`evaluate`: a model's verdicts on a benchmark's pictures, and its answers, as the rows of a folder.

The folder holds

    run.json      what is run: the benchmark's facts, the model, the settings that change a row, versions; `num_rows`
    rows.jsonl    a line for each row of the benchmark, in its order, written when the row is done

A run that was killed goes on behind the last whole line, and a run that has ended changes nothing. An error is part of
its row and is not tried again: remove the folder to start anew.
"""

import datetime
import hashlib
import itertools
import json
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

from safeqwen.evaluation.answers import refused
from safeqwen.evaluation.rows import FILE, LOCK, Example, Row, RowsFile, read_rows
from safeqwen.files import write_json
from safeqwen.fingerprint import weights_fingerprint
from safeqwen.judging.answering import Prompt, answer
from safeqwen.judging.engine import Engine
from safeqwen.judging.verdict import SAFE, Verdict, reason_of
from safeqwen.loading import DEMO_CHECKPOINT
from safeqwen.pictures import UnreadableImage, read_image
from safeqwen.provenance import git_commit, package_versions


PACKAGES = ("safeqwen", "torch", "transformers", "pillow", "accelerate", "scikit-learn", "torchmetrics")
RECORD = "run.json"
COMPARED = ("benchmark", "model_fingerprint", "categories", "settings", "num_rows")  # of run.json, when a run goes on
# What a row has of its example, and what a row that is there must still agree with.
FROM_EXAMPLE = [one.name for one in fields(Example) if one.name not in ("image", "error")]


@dataclass(eq=False)
class Read:
    """An example on its way through the model, with the digest of its picture once that was read."""

    example: Example
    image_sha256: str | None = None


def evaluate(
    model,
    processor,
    benchmark,
    out,
    *,
    answers=False,
    judge=None,
    batch_size=1,
    num_workers=0,
    max_new_tokens=256,
    max_pixels=None,
    limit=None,
    source=None,
    command=None,
    progress=None,
):
    """
    Runs a model over a benchmark and returns the rows (`list[Row]`) of `out`, which it writes as they come.

    Args:
        model, processor: as `safeqwen.load` returns them.
        benchmark ([`Benchmark`]): as `load_benchmark` returns it.
        out (`str` or `os.PathLike`): a folder that is empty or does not exist yet, or that a run of the same model,
            benchmark and settings has left.
        answers (`bool`): answer the benchmark's questions, too, in the same pass.
        judge ([`EndpointJudge`], *optional*): judges the answers.
        batch_size (`int`): pictures, or frames of one, a forward, and prompts that are answered together, at most.
        num_workers (`int`): threads that read pictures ahead, and ask the judge.
        max_new_tokens (`int`): of an answer.
        max_pixels (`int`, *optional*): larger pictures are shrunk to this many, by default to the processor's bound.
        limit (`int`, *optional*): the first rows alone.
        source (`str`, *optional*): the folder or repository of the model, by default the one that it was loaded from.
        command (`str`, *optional*): the command line, for run.json.
        progress (callable, *optional*): called with the number of rows that are done and of all, after each row.

    Raises:
        ValueError: if the benchmark has not what is asked for, `out` belongs to another run, or another process
            writes to it.
        JudgeUnavailable: if the judge cannot be asked. The rows until then are kept.
        RuntimeError: if the model may not judge: its guard is untrained, or it is in training mode.
    """
    if answers and not benchmark.has_queries:
        raise ValueError(f"{benchmark.title} has no questions: leave out --answers, or give rows a query")
    if not answers and not benchmark.has_picture_labels:
        raise ValueError(f"{benchmark.title} has no labels of pictures, it measures answers alone: ask for answers")
    if benchmark.has_picture_labels and SAFE not in model.config.safety_categories:
        raise ValueError(
            f"{benchmark.title} says which pictures are safe, but the model has no category {SAFE!r}: it has "
            f"{', '.join(model.config.safety_categories)}"
        )
    if judge is not None and not answers:
        raise ValueError("a judge of answers was given, but no answers are asked for")
    if refusal := model.refusal():
        raise RuntimeError(f"SafeQwen cannot judge with these weights: {refusal}")
    out, engine = Path(out), Engine(model, processor)
    engine.image_settings(max_pixels)  # raises if it is out of range
    source = model.config._name_or_path if source is None else source
    record = {
        "benchmark": benchmark.facts(),
        "model": "demo" if Path(source) == DEMO_CHECKPOINT else str(source),
        "model_fingerprint": weights_fingerprint(source) if source else None,
        "categories": list(model.config.safety_categories),
        "settings": {
            "answers": answers,
            "max_new_tokens": max_new_tokens if answers else None,
            "judge": None if judge is None else {"url": judge.base_url, "model": judge.model},
            "max_pixels": max_pixels,
            "limit": limit,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
        },
        "num_rows": min(len(benchmark.examples), limit or sys.maxsize),
        "command": command,
        "versions": package_versions(PACKAGES) | {"python": sys.version.split()[0], "git_commit": git_commit()},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    _open_folder(out)
    with RowsFile(out) as file:
        _check_record(out, record, file.rows)
        examples = itertools.islice(benchmark.examples, limit)
        for row, example in zip(file.rows, examples):
            _check_same(row, example, out)
        if judge is not None and len(file.rows) < record["num_rows"]:
            judge.check()  # else each of thousands of rows would have the same error
        settings = {"batch_size": batch_size, "num_workers": num_workers, "max_pixels": max_pixels}
        if answers:
            rows = _answered_rows(engine, examples, judge, max_new_tokens=max_new_tokens, **settings)
        else:
            rows = _judged_rows(engine, examples, **settings)
        for num_done, row in enumerate(rows, start=len(file.rows) + 1):
            file.append(row)
            if progress is not None:
                progress(num_done, record["num_rows"])
    return read_rows(out)


def _open_folder(out):
    """Makes the folder, unless it holds what no run has left."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give a folder")
    out.mkdir(parents=True, exist_ok=True)
    if not (out / RECORD).exists() and (others := {file.name for file in out.iterdir()} - {FILE, LOCK}):
        raise ValueError(f"{out} holds {min(others)} and no run: give a folder that is empty or does not exist yet")


def _check_record(out, record, rows):
    """Writes run.json, or compares with the one that is there."""
    file = out / RECORD
    if not file.exists():
        if rows:
            raise ValueError(f"{out} holds rows, but no {RECORD} that says of what: give another folder")
        write_json(file, record)
        return
    then = json.loads(file.read_text(encoding="utf-8"))
    then, now = (_flat({key: each.get(key) for key in COMPARED}) for each in (then, record))
    differing = [key for key in then | now if then.get(key) != now.get(key)]
    if differing:
        what = "; ".join(f"{key} is {now.get(key)!r}, there it was {then.get(key)!r}" for key in differing)
        raise ValueError(f"{out} is the folder of another run: {what}. Give another folder, or the same settings")


def _flat(values, prefix=""):
    """A `dict` of dotted names: `{"settings": {"limit": 3}}` -> `{"settings.limit": 3}`, as JSON gives it back."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.loads(json.dumps(value))
    return flat


def _check_same(row, example, out):
    for name in FROM_EXAMPLE:
        then, now = getattr(row, name), json.loads(json.dumps(getattr(example, name)))
        if then != now:
            raise ValueError(
                f"{out} was run on other data: the row {row.id!r} had {name} {then!r}, now it has {now!r} (row "
                f"{example.id!r}). Give another folder"
            )


def _judged_rows(engine, examples, **settings):
    """Yields a [`Row`] with a verdict, or an error, for each example."""
    return map(_row, engine.judge_each(map(Read, examples), _read, thumbnails=False, **settings))


def _answered_rows(engine, examples, judge, *, batch_size, num_workers, max_pixels, max_new_tokens):
    """Yields a [`Row`] with verdict and answer, or an error, for each example."""
    settings = {"batch_size": batch_size, "max_pixels": max_pixels, "max_new_tokens": max_new_tokens}
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        for batch, opening in _read_ahead(pool, engine, examples, batch_size):
            rows = []
            for verdict, text in _answer_each(engine, batch, opening, settings):
                rows.append(_row(verdict))
                _add_answer(rows[-1], text)
            if judge is not None:
                list(pool.map(lambda row: _ask_judge(judge, row), rows))
            yield from rows


def _read_ahead(pool, engine, examples, batch_size):
    """Yields lists of [`Read`] with the futures of the engine's pictures; the pool reads the next list meanwhile."""
    batches = deque()
    while True:
        while len(batches) < 2 and (batch := [*map(Read, itertools.islice(examples, batch_size))]):
            batches.append((batch, [pool.submit(engine.open, item, _read, thumbnails=False) for item in batch]))
        if not batches:
            return
        yield batches.popleft()


def _answer_each(engine, batch, opening, settings):
    """A [`Verdict`] and an answer for each item; the answer is `None` where there is no question or no verdict."""
    done, pictures = {}, {}
    for item, future in zip(batch, opening):
        if error := future.exception():
            done[item] = Verdict(categories=engine.categories, image=item, error=reason_of(error)), None
        elif item.example.query:
            pictures[item] = future.result()
        else:
            views, max_pixels = future.result().views, settings["max_pixels"]
            (verdict,) = engine.judge_each(
                [item], lambda _, views=views: views, max_pixels=max_pixels, thumbnails=False
            )
            done[item] = verdict, None
    prompts = [Prompt(picture.views, item.example.query) for item, picture in pictures.items()]
    for (item, picture), one in zip(pictures.items(), answer(engine, prompts, **settings)):
        done[item] = picture.verdict([one.error] if one.error else one.probs, one.seconds), one.text
    return [done[item] for item in batch]


def _read(item):
    """The views of an example's picture."""
    example = item.example
    if example.error is not None:
        raise UnreadableImage(example.error)
    if example.image is None:
        raise UnreadableImage("the row has no picture")
    views = read_image(example.image)
    item.image_sha256 = hashlib.sha256(_bytes_of(example.image, views)).hexdigest()
    return views


def _bytes_of(image, views):
    """The picture's file, or where there is none what is seen of it."""
    if isinstance(image, dict):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, (str, Path)) and Path(image).is_file():
        return Path(image).read_bytes()
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    return b"".join(str(view.size).encode() + view.tobytes() for view in views)


def _row(verdict):
    """The [`Row`] of a verdict on a [`Read`]."""
    example = verdict.image.example
    row = Row(**{name: getattr(example, name) for name in FROM_EXAMPLE}, image_sha256=verdict.image.image_sha256)
    if verdict.error is not None:
        row.error = " ".join(_without_folder(verdict.error, example).split())
        return row
    row.probs = verdict.scores
    if len(verdict.frames) > 1:
        scores = [dict(zip(verdict.categories, probs)) for probs in verdict.probs.tolist()]
        row.views = [{"frame": frame, "probs": probs} for frame, probs in zip(verdict.frames, scores)]
    row.latency_ms = round(1000 * verdict.seconds, 3)
    return row


def _without_folder(text, example):
    """An error with the picture's name in place of its path: rows are published, the folders of a machine are not."""
    if isinstance(example.image, (str, Path)):
        return text.replace(str(example.image), example.image_name or Path(example.image).name)
    return text


def _add_answer(row, text):
    if row.error is not None:
        return
    if text is None:
        row.answer_error = "the row has no question"
        return
    row.answer = text
    if not text.strip():
        row.answer_error = "the answer is empty"
        return
    row.refused = refused(text)


def _ask_judge(judge, row):
    if row.refused is None:  # there is no answer
        return
    try:
        row.answer_verdict = judge.judge(row.query, row.answer, row.expected)
    except ValueError as error:
        row.answer_error = str(error)
