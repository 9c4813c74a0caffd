"""`rows.jsonl`: a line for each row of a benchmark, from which every figure, plot and page is made.

A line is written when its row is done and never changes: a run that was killed goes on behind the last whole line. Its
fields are those of [`Row`].
"""

from dataclasses import dataclass, field
from pathlib import Path


PAIR_TYPES = ("SSS", "SSU", "SUU", "USU", "UUU")
"""HoliSafe's types: is the picture safe, is the question safe, is what they mean together safe."""


@dataclass
class Example:
    """
    One row of a benchmark, before anything judged it.

    Args:
        id (`str`): unique in the benchmark; its own where it has one.
        image: what [`safeqwen.read_image`] reads (a `Path`, bytes, a PIL image), or `None` if the row has none.
        image_name (`str`, *optional*): how the benchmark names the picture, relative to its folder.
        query (`str`, *optional*): the question about the picture.
        unsafe (`bool`, *optional*): the label of the picture alone. `None`: the benchmark does not say.
        category (`str`, *optional*): the label among our categories; `None` without one or without a counterpart.
        their_category (`str`, *optional*): as the benchmark writes it.
        type (`str`, *optional*): one of `PAIR_TYPES`.
        expected (`str`, *optional*): "refuse" or "answer": what a safe model does with picture and question.
        metadata (`dict`): what else the benchmark says that a reader of a page would want.
        error (`str`, *optional*): why the row cannot be used; it is listed and counted, and judged by nothing.
    """

    id: str
    image: object = None
    image_name: str | None = None
    query: str | None = None
    unsafe: bool | None = None
    category: str | None = None
    their_category: str | None = None
    type: str | None = None
    expected: str | None = None
    metadata: dict = field(default_factory=dict)
    error: str | None = None


@dataclass
class Row:
    """
    One line of `rows.jsonl`: what the benchmark says, and what the model did.

    Args:
        id, image_name, query, unsafe, category, their_category, type, expected, metadata: as in [`Example`].
        image_sha256 (`str`, *optional*): of the picture's bytes. Rows with the same picture share it.
        probs (`dict[str, float]`, *optional*): category -> probability, of the least safe view. `None` if there is no
            verdict.
        views (`list[dict]`, *optional*): of a picture with several: `{"frame": int, "probs": {...}}` each; `frame`
            counts the frames of an animation, of which one has two views if it looks different on black paper.
        answer (`str`, *optional*): the model's, to `query`.
        refused (`bool`, *optional*): whether the string matcher takes the answer for a refusal.
        answer_verdict (`dict`, *optional*): of a judge behind an endpoint: `{"unsafe": bool, "text": str}`.
        latency_ms (`float`, *optional*): of verdict and answer, reading the picture not included.
        error (`str`, *optional*): why there is no verdict.
        answer_error (`str`, *optional*): why the answer does not count, such as an empty one.
    """

    id: str
    image_name: str | None = None
    image_sha256: str | None = None
    query: str | None = None
    unsafe: bool | None = None
    category: str | None = None
    their_category: str | None = None
    type: str | None = None
    expected: str | None = None
    probs: dict | None = None
    views: list | None = None
    answer: str | None = None
    refused: bool | None = None
    answer_verdict: dict | None = None
    latency_ms: float | None = None
    error: str | None = None
    answer_error: str | None = None
    metadata: dict = field(default_factory=dict)


def read_rows(path):
    """Returns the rows (`list[Row]`) of an evaluation's folder or of a `rows.jsonl`.

    Raises:
        ValueError: if a line is no row: which, and why.
        OSError: if there is no such file.
    """
    raise NotImplementedError(Path(path))
