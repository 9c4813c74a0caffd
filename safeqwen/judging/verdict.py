"""What came of one picture, and what "unsafe" means: the only place in the package that computes it.

A picture's unsafe probability is 1 - p(safe). A picture of several views (frames of an animation, each on white and on
black paper where these differ) is as unsafe as its least safe view. A taxonomy without a category "safe" has no unsafe
probability.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from safeqwen.pictures.errors import UnreadableImage, one_line, printable


SAFE = "safe"  # the name of the category
UNSAFE_AT = 0.5  # from which unsafe probability a picture is flagged without a policy
SUM_TOLERANCE = 0.01  # by which probabilities that were rounded, as to half precision, may miss a sum of 1
THUMBNAIL_SIDE = 320
NAMELESS = "picture"
NO_PICTURE = "nothing was judged: the prompt holds no picture"
COLUMNS = ("name", "label", "score", "unsafe", "action", "error")  # of `to_pandas`
# By how much the probabilities of one picture differ from one forward to another, by the model's precision.
SAME_IN_FLOAT32, SAME_IN_HALF_PRECISION = 1e-3, 0.05


def unsafe_probability(probs, categories):
    """`(..., categories)` probabilities -> `(...)` probabilities in [0, 1] that the picture is unsafe: 1 - p(safe).

    `None` if no category is named "safe".
    """
    if SAFE not in categories:
        return None
    return 1 - probs[..., categories.index(SAFE)]


def worst_frame(probs, categories):
    """`(frames, categories)` probabilities -> the index (`int`) of the least safe frame.

    Without a category "safe" it is the frame with the highest probability of any category.
    """
    unsafe = unsafe_probability(probs, categories)
    return int((probs.amax(dim=-1) if unsafe is None else unsafe).argmax())


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Verdict:
    """
    What the guard says of one picture, by names: `verdict.label`, `verdict.unsafe`, `verdict["suicide"]`.

    [`SafetyPipeline.verdict`] makes it of a picture, [`Verdict.of`] of the tensors that the model returns. Its numbers
    are those of the least safe view, `view`. A verdict with an `error` has none: asking it for one raises a
    `ValueError` with the reason, as nothing may take an error for safe. A verdict is equal to itself alone. It can be
    pickled and copied, but then has no heat maps; `dataclasses.replace(verdict, policy=...)` keeps them.

    Args:
        categories (`list[str]`): of the model, in its order.
        probs (`torch.FloatTensor` of shape `(views, categories)`, *optional*): the model's probabilities, float32, on
            the CPU. `None` with an error.
        frames (`list[int]`, *optional*): the number of the frame that each view shows, from 0: two views of one frame
            share it. May be left out for one view.
        image (*optional*): what was judged, as the caller gave it; a stream as its bytes, `{"bytes", "path"}`.
        name (`str`, *optional*): its path or URL as given, else "picture".
        thumbnail (`PIL.Image.Image`, *optional*): the view that counts, in RGB, its longer side 320 pixels or less.
        policy ([`SafetyPolicy`], *optional*): makes the `decision`.
        error (`str`, *optional*): why there is no verdict.
        seconds (`float`): that the model took, of a batch the picture's share.
        origin (*optional*): what reads and judges `image` again, for heat maps: an [`Origin`] of the engine's.

    Raises:
        ValueError: if there are both `probs` and an `error` or neither, `probs` are not probabilities that add up to 1
            for each view, or `frames` or the policy do not fit.
    """

    categories: list
    probs: torch.Tensor | None = None
    frames: list | None = None
    image: Any = None
    name: str | None = None
    thumbnail: Image.Image | None = None
    policy: Any = None
    error: str | None = None
    seconds: float = 0.0
    origin: Any = None

    def __post_init__(self):
        if (self.probs is None) == (self.error is None):
            raise ValueError("a verdict has either probs or an error that says why there are none")
        if self.name is None:
            object.__setattr__(self, "name", name_of(self.image))
        if self.policy is not None:
            self.policy.check(self.categories)
        if self.probs is None:
            object.__setattr__(self, "frames", self.frames or [])
            return
        shape = tuple(self.probs.shape)
        if len(shape) != 2 or not shape[0] or shape[1] != len(self.categories):
            raise ValueError(f"probs must be of shape (views, {len(self.categories)}), one a category, got {shape}")
        if not ((self.probs >= 0).all() and ((self.probs.sum(dim=-1) - 1).abs() <= SUM_TOLERANCE).all()):
            raise ValueError("probs must be probabilities, finite, that add up to 1 for each view; are they logits?")
        # A copy: whoever writes into the model's output later would change the verdict.
        object.__setattr__(self, "probs", self.probs.detach().to("cpu", torch.float32, copy=True))
        frames = [0] if self.frames is None and shape[0] == 1 else self.frames
        if frames is None or len(frames) != shape[0]:
            raise ValueError(f"frames must give the number of the frame for each of {shape[0]} views, got {frames}")
        object.__setattr__(self, "frames", list(frames))

    @classmethod
    def of(cls, output, model, policy=None):
        """
        Returns the verdicts (`list[Verdict]`) in a model's output, one a row of `img_safety_probs`: a prompt, or with
        `granularity="image"` a picture.

        A prompt without a picture, whose row is NaN, is a verdict with an error. What `generate` stopped by its own
        `safety_threshold` stays in `output.safety_flagged`: `flagged` goes by the policy.

        Args:
            output: what `forward`, `guard`, or `generate` with `return_dict_in_generate=True` returned.
            model ([`SafeQwen2_5_VLForConditionalGeneration`]): that returned it.
            policy ([`SafetyPolicy`], *optional*): by default the model's own, if there is one.

        Raises:
            ValueError: if the output holds no verdict, one on each patch, or one of another number of categories; if
                the policy is for other categories.
        """
        probs = getattr(output, "img_safety_probs", None)
        if probs is None:
            is_verdict = hasattr(output, "img_safety_probs")
            what = "has no img_safety_probs" if is_verdict else f"is a {type(output).__name__}"
            raise ValueError(
                f"nothing was judged: the output {what}. Expected what guard(), forward(do_safety=True) or "
                "generate(do_safety=True, return_dict_in_generate=True) returns, and a picture in one prompt at least"
            )
        if isinstance(probs, list):
            raise ValueError(
                "these are maps, with a verdict on each patch (granularity='patch'): judge with 'prompt' or 'image'"
            )
        categories = list(model.config.safety_categories)
        if probs.ndim != 2 or probs.shape[1] != len(categories):
            raise ValueError(
                f"img_safety_probs must be of shape (rows, {len(categories)}) for this model's categories, got "
                f"{tuple(probs.shape)}: is the output another model's?"
            )
        about = {"categories": categories, "policy": policy or getattr(model, "safety_policy", None)}
        return [
            cls(error=NO_PICTURE, **about) if row.isnan().all() else cls(probs=row[None], **about)
            for row in probs.detach().cpu()
        ]

    # -------------------------------------------------------------------------------------------------------- by names

    @cached_property
    def view(self):
        """The index (`int`) of the view that counts: the least safe one, or without "safe" the most certain one."""
        return worst_frame(self._judged(), self.categories)

    @property
    def num_frames(self):
        """The number of frames (`int`) that were judged, however many views each has."""
        self._judged()
        return len({*self.frames})

    @property
    def label(self):
        """The likeliest category (`str`)."""
        return self.categories[int(self._row().argmax())]

    @property
    def score(self):
        """The probability (`float`) of `label`."""
        return float(self._row().max())

    @property
    def scores(self):
        """Category -> probability (`dict[str, float]`), in the model's order."""
        return dict(zip(self.categories, self._row().tolist()))

    @property
    def unsafe(self):
        """The probability (`float` in [0, 1]) that the picture is unsafe; `None` without a category "safe"."""
        unsafe = unsafe_probability(self._row(), self.categories)
        return None if unsafe is None else float(unsafe)

    def __getitem__(self, category):
        """The probability (`float`) of a category. Raises a `ValueError` that names the nearest for an unknown one."""
        row = self._row()
        return float(row[self.categories.index(known_category(category, self.categories))])

    __iter__ = None  # else `in`, `list` and `to_pandas` of one verdict would ask for a category 0

    @cached_property
    def decision(self):
        """What the policy says ([`Decision`]) of all views; `None` without a policy."""
        probs = self._judged()
        return None if self.policy is None else self.policy.decide(probs, self.frames)

    @property
    def flagged(self):
        """
        Whether something is to be done (`bool`): the decision is, or in shadow mode would be, other than "allow".

        Without a policy it is whether `unsafe` is 0.5 or more. Without a category "safe" too it is always true:
        nothing says that the picture is safe.
        """
        if self.decision is not None:
            return self.decision.would_action != "allow"
        return self.unsafe is None or self.unsafe >= UNSAFE_AT

    def to_dict(self):
        """Returns what `safeqwen judge --json` prints (`dict`) of JSON's types; with an error all else is `None`."""
        fields = dict.fromkeys(("image", "label", "score", "unsafe", "scores", "frames", "decision", "error"))
        fields |= {"image": self.name, "error": self.error}
        if self.error is None:
            fields |= {name: getattr(self, name) for name in ("label", "score", "unsafe", "scores")}
            fields["frames"] = len(self.frames)  # views: a frame counts twice if it differs on white and black paper
            fields["decision"] = self.decision and self.decision.to_dict()
        return fields

    # ------------------------------------------------------------------------------------------------------- heat maps

    def heatmap(self, category=None):
        """Returns where the verdict comes from ([`Heatmap`]), for one category, by default `label`; see `heatmaps`."""
        return self.heatmaps([self.label if category is None else category])[0]

    def heatmaps(self, categories):
        """
        Returns a map ([`Heatmap`]) for each of the `categories` (`list[str]`) on the view that counts, of one forward.

        The picture is read again from `image`, as it was, and judged again.

        Raises:
            ValueError: if there is no verdict, no such category, nothing to read again, or another picture there now.
            UnreadableImage: if the picture cannot be read any more.
            RuntimeError: if the model cannot give maps.
        """
        probs = self._row()
        if isinstance(categories, str):
            raise ValueError(f"categories must be a list of names, got {categories!r}; heatmap takes one")
        for category in categories:
            known_category(category, self.categories)
        if self.origin is None:
            raise ValueError(
                "there is no picture behind this verdict, which was made of tensors, copied or unpickled: judge the "
                "picture with SafetyPipeline.verdict to have maps"
            )
        from safeqwen.judging.heatmap import heatmaps

        views = self.origin.read(self.image)
        is_same = len(views) == len(self.probs)
        if is_same and self.thumbnail is not None:
            is_same = thumbnail_of(views[self.view]).tobytes() == self.thumbnail.tobytes()
        if is_same:
            engine, max_pixels = self.origin.engine, self.origin.max_pixels
            maps = heatmaps(engine, views[self.view], list(categories), max_pixels)
            rounding = SAME_IN_FLOAT32 if engine.model.dtype == torch.float32 else SAME_IN_HALF_PRECISION
            is_same = all(float((torch.as_tensor(one.probs) - probs).abs().max()) <= rounding for one in maps)
        if not is_same:
            raise ValueError(
                f"{printable(self.name)}: the picture has changed since it was judged, and a map would explain "
                "another one: judge it again"
            )
        return maps

    # --------------------------------------------------------------------------------------------------------- showing

    def __repr__(self):
        name = printable(self.name)
        if self.error is not None:
            return f"Verdict({name}: not judged: {one_line(self.error)})"
        unsafe = "" if self.unsafe is None else f", unsafe {self.unsafe:.1%}"
        views = f" (the least safe of {len(self.frames)} views)" if len(self.frames) > 1 else ""
        decision = "" if self.decision is None else f"; {self.decision.in_words()}"
        return f"Verdict({name}: {self.label} {self.score:.1%}{unsafe}{views}{decision})"

    def _repr_html_(self):
        from safeqwen.showing.notebook import notebook_html

        return notebook_html(self)

    def __getstate__(self):  # the origin holds the model
        return {**self.__dict__, "origin": None}

    def _judged(self):
        if self.error is not None:
            raise ValueError(f"there is no verdict on {printable(self.name)}: {self.error}")
        return self.probs

    def _row(self):
        """`(categories,)` probabilities of the view that counts."""
        return self._judged()[self.view]


def to_pandas(verdicts):
    """
    Returns a `pandas.DataFrame` with a row for each verdict, in their order, errors among them.

    Its columns are `name`, `label`, `score`, `unsafe`, `action` (of the decision, empty without a policy) and `error`,
    then the probability of each category, which is called `p(label)` if "label" is a category.

    Args:
        verdicts (iterable of [`Verdict`])

    Raises:
        ImportError: if there is no pandas.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ImportError("to_pandas needs pandas: pip install pandas") from error
    rows, columns = [], dict.fromkeys(COLUMNS)
    for verdict in verdicts:
        names = {name: f"p({name})" if name in COLUMNS else name for name in verdict.categories}
        columns |= dict.fromkeys(names.values())
        row = {"name": verdict.name, "error": verdict.error}
        if verdict.error is None:
            row |= {"label": verdict.label, "score": verdict.score, "unsafe": verdict.unsafe}
            row["action"] = verdict.decision and verdict.decision.action
            row |= {names[name]: score for name, score in verdict.scores.items()}
        rows.append(row)
    return pandas.DataFrame(rows, columns=list(columns))


def known_category(name, categories):
    """Returns the `name` if it is one of the `categories` (`list[str]`), or raises a `ValueError` with the nearest."""
    if name not in categories:
        near = difflib.get_close_matches(str(name).lower(), categories, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(categories)}"
        raise ValueError(f"there is no category {name!r}; {hint}")
    return name


def name_of(image):
    """Returns what a picture is called (`str`): its path or URL as given, else "picture"."""
    if isinstance(image, Mapping):
        image = image.get("path")
    elif not isinstance(image, (str, os.PathLike)):
        image = getattr(image, "filename", None) or getattr(image, "name", None)  # of a PIL picture, of a file
    if not image or not isinstance(image, (str, os.PathLike)):
        return NAMELESS
    name = os.fsdecode(image)
    is_url = name[:5].lower() == "http:" or name[:6].lower() == "https:"
    is_data = name[:5].lower() == "data:" or len(name) > 255 and not is_url and not os.path.lexists(name)
    return NAMELESS if is_data else name


def reason_of(error):
    """Returns an `Exception` in words (`str`), with its type where the words alone may say too little."""
    speaks_for_itself = isinstance(error, (UnreadableImage, FloatingPointError, MemoryError))
    return str(error) if speaks_for_itself and str(error) else f"{type(error).__name__}: {error}"


def thumbnail_of(view):
    """Returns the picture (`PIL.Image.Image`, RGB) with a longer side of 320 pixels or less."""
    small = view.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return small
