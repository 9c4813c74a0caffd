"""`pipeline("image-safety")`: verdicts on pictures from wherever they come."""

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from safeqwen.fingerprint import weights_fingerprint
from safeqwen.hub.modeling_safeqwen import SafeQwen2_5_VLForConditionalGeneration
from safeqwen.judging.ahead import items_of
from safeqwen.judging.engine import MAX_BATCH_TOKENS, MEMORY_BUDGET, Engine
from safeqwen.judging.load import default_dtype, load_policy
from safeqwen.judging.policy import SafetyPolicy
from safeqwen.loading import hub_of
from safeqwen.pictures import UnreadableImage, read_image
from safeqwen.processor import save_processor


TASK = "image-safety"
OWN = "own"  # the policy that lies beside the weights
ONE_PICTURE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray, torch.Tensor, Mapping)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How a call reads, judges and returns; [`SafetyPipeline.__call__`] documents each.

    Raises:
        ValueError: on a setting out of range.
    """

    top_k: int | None = 5
    threshold: float = 0.0
    policy: SafetyPolicy | str | os.PathLike | None = None
    timeout: float = 10.0
    private_networks: bool = False
    max_pixels: int | None = None
    max_batch_tokens: int = MAX_BATCH_TOKENS
    memory_budget: int = MEMORY_BUDGET

    def __post_init__(self):
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ValueError(f"top_k must be a whole number from 1, or None for all, got {self.top_k!r}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be a probability in [0, 1], got {self.threshold!r}")
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout must be a finite number of seconds above 0, got {self.timeout!r}")
        for name in ("max_batch_tokens", "memory_budget"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)!r}")


class SafetyPipeline(Pipeline):
    """
    Judges pictures, with `model.guard` and a prompt without text.

    `pipeline("image-safety", model=path)` judges in float32 on a CPU and in bfloat16 on an accelerator, whatever the
    weights were saved as, like [`safeqwen.load`]; another `dtype=` (but "auto", which is the default) and quantised
    weights are respected, and a model that was passed as an object stays as it is.

    Args:
        model ([`SafeQwen2_5_VLForConditionalGeneration`]): in evaluation mode.
        processor (`Qwen2_5_VLProcessor`): of the model.
        kwargs: as transformers' pipelines take them (`device`, `batch_size`, `num_workers`), and the arguments of a
            call, which then hold for every call.

    Example:

    ```python
    judge = pipeline("image-safety", model=path)  # after `import safeqwen`; or SafetyPipeline(*safeqwen.load())
    judge("picture.png")
    # [{"label": "weapon_related_violence", "score": 0.98}, {"label": "safe", "score": 0.01}, ...]
    judge("picture.png", policy="safety_policy.json")["decision"].action
    # "block"
    ```

    Raises:
        ValueError: if the model has no guard, there is no processor, a setting is out of range, or the policy is
            broken or for another model.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(self, model, processor=None, **kwargs):
        if not hasattr(model, "guard"):
            raise ValueError(
                f"{TASK} needs a SafeQwen model, got {type(model).__name__}, which has no guard: pass the path, or "
                "load the model with safeqwen.load"
            )
        if processor is None:
            raise ValueError(f"{TASK} needs the model's processor: pass processor=, as safeqwen.load returns it")
        super().__init__(model=model, processor=processor, **kwargs)
        if vars(model).pop("dtype_was_not_asked_for", False):
            _cast(model, default_dtype(self.device))
        self.engine = Engine(model, processor)
        self.engine.image_settings(self.settings.max_pixels)  # raises now if it is out of range
        self.settings = replace(self.settings, policy=self._policy(self.settings.policy))

    def verdict(self, image, **kwargs):
        """
        Returns the [`Verdict`] on one picture.

        Args:
            image: as in a call of the pipeline.
            kwargs: `policy`, `timeout`, `private_networks`, `max_pixels` and `max_batch_tokens` as in a call. Without
                a policy here or of the pipeline the decision is by the one that lies beside the weights, if there is
                one; with `policy=None` there is none.

        Raises:
            As a call does.
        """
        settings = self._settings(kwargs, of_verdicts=True)
        return self._forward(self.preprocess(image, settings, thumbnails=True), settings)

    def verdicts(self, images, *, batch_size=None, num_workers=None, **kwargs):
        """
        The [`Verdict`] on each of many pictures: a list for a list, else an iterator.

        One that cannot be judged has an `error` in its place. A verdict takes up to 0.3 MB, for its thumbnail, beside
        what it was made of: go through many pictures with an iterator, as of a generator.

        Args:
            images, batch_size, num_workers: as in a call of the pipeline, but not one picture alone.
            kwargs: as in `verdict`, and `memory_budget` as in a call.

        Raises:
            ValueError: on one picture alone, and as a call does.
            RuntimeError, OSError: as a call does.
        """
        if _is_one(images):
            raise ValueError("verdicts takes a list, generator or dataset of pictures; verdict takes one")
        batching = self._batching(batch_size, num_workers)
        verdicts = self._judge_each(images, batching, self._settings(kwargs, of_verdicts=True))
        return list(verdicts) if isinstance(images, (list, tuple)) else verdicts

    def __call__(self, images, *, batch_size=None, num_workers=None, **kwargs):
        """
        The verdict on each picture.

        Args:
            images: one picture, or a list, generator, column or dataset of them. What can be iterated is iterated; a
                map-style dataset is indexed from 0. A picture is what [`safeqwen.read_image`] takes: a path, a URL,
                bytes, base64, a PIL image, an array. A dataset's row is a picture, or a dictionary with one under
                "image". A picture of several frames is judged frame by frame; the verdict is that of the frame least
                likely to be safe.
            batch_size (`int`, *optional*, defaults to 1): pictures, or frames of one, a forward, at most.
            num_workers (`int`, *optional*, defaults to 0): threads that read pictures ahead, whatever the batch_size.
            top_k (`int` or `None`, *optional*, defaults to 5): number of categories returned, the likeliest first;
                `None` returns all.
            threshold (`float` in [0, 1], *optional*, defaults to 0): categories below it are left out, but for the
                likeliest.
            policy ([`SafetyPolicy`], `str` or `os.PathLike`, *optional*): makes a decision of each verdict. The path
                of a policy's file or folder, or "own" for the one that lies beside the weights
                (`model.safety_policy`). By default there is no decision, whatever lies there.
            timeout (`float`, *optional*, defaults to 10): seconds for the download of one URL.
            private_networks (`bool`, *optional*, defaults to `False`): as in [`safeqwen.read_image`].
            max_pixels (`int`, *optional*): width x height to which larger pictures are shrunk before they are judged,
                784 pixels a token. By default the processor's own bound, which is 12.8 megapixels, 16,384 tokens, for
                Qwen2.5-VL.
            max_batch_tokens (`int`, *optional*, defaults to 8192): a batch holds fewer pictures if it would have more
                tokens than this, padding included. A larger picture goes alone.
            memory_budget (`int`, *optional*, defaults to 2 GiB): bytes of pictures that are prepared and not judged
                yet, at most; each worker may exceed it by one picture. A prepared picture takes 24 bytes a pixel.

        Returns:
            For one picture a list of `{"label": str, "score": float}`, the model's probabilities. With a `policy` it
            is `{"decision": Decision, "scores": list}`: the [`Decision`], and that list. For a list of pictures a
            list, and for a generator or dataset an iterator of those. There a picture that could not be judged is
            `{"error": str}` in its place, and the others are judged all the same: one that cannot be read, a row
            that the dataset cannot give, one that does not fit into memory alone. A generator that fails has no more
            pictures: its error is raised after the verdicts on those before.

        Raises:
            UnreadableImage: if the one picture could not be read.
            FloatingPointError: if the one picture's features are not finite.
            MemoryError: if the one picture is too large for the memory.
            RuntimeError: if the model may not judge: its guard is untrained, or it is in training mode.
            ValueError: on arguments out of range; if the policy is broken, for another model, or "own" and there is
                none.
            OSError: if the policy cannot be read.
        """
        batching, settings = self._batching(batch_size, num_workers), self._settings(kwargs)
        if _is_one(images):
            return self.postprocess(self._forward(self.preprocess(images, settings), settings), settings)
        verdicts = self._judge_each(images, batching, settings, thumbnails=False)
        verdicts = (self.postprocess(verdict, settings) for verdict in verdicts)
        return list(verdicts) if isinstance(images, (list, tuple)) else verdicts

    def _settings(self, kwargs, of_verdicts=False):
        """The [`Settings`] of a call, or of one that returns verdicts, which go by the model's own policy, too."""
        if of_verdicts and (chosen := kwargs.keys() & {"top_k", "threshold"}):
            raise ValueError(f"a verdict holds every category and goes by its policy: leave out {min(chosen)}")
        if "policy" in kwargs:
            kwargs["policy"] = self._policy(kwargs["policy"])
        elif of_verdicts and self.settings.policy is None:
            kwargs["policy"] = getattr(self.model, "safety_policy", None)
        settings = replace(self.settings, **kwargs)
        self.engine.image_settings(settings.max_pixels)  # raises now if it is out of range
        return settings

    def _batching(self, batch_size, num_workers):
        """The two (`dict`) as the engine takes them."""
        batch_size = (self._batch_size or 1) if batch_size is None else batch_size
        num_workers = (self._num_workers or 0) if num_workers is None else num_workers
        if batch_size < 1 or num_workers < 0:
            raise ValueError(
                f"batch_size must be 1 or more and num_workers 0 or more, got {batch_size}, {num_workers}"
            )
        return {"batch_size": batch_size, "num_workers": num_workers}

    def _judge_each(self, images, batching, settings, thumbnails=True):
        """An iterator of the [`Verdict`] on each picture, in their order."""
        return self.engine.judge_each(
            map(_picture_in, items_of(_undecoded(images))),
            _reader(settings),
            **batching,
            max_pixels=settings.max_pixels,
            max_batch_tokens=settings.max_batch_tokens,
            memory_budget=settings.memory_budget,
            policy=settings.policy,
            thumbnails=thumbnails,
        )

    def _policy(self, policy):
        """The [`SafetyPolicy`] that a user names, if it is for this model."""
        if policy is None:
            return None
        own = getattr(self.model, "safety_policy", None)
        if policy == OWN:
            if own is None:
                raise ValueError("there is no policy beside these weights: pass one, or its path")
            policy = own
        elif not isinstance(policy, SafetyPolicy):
            policy = SafetyPolicy.load(policy)
        policy.check(self.model.config.safety_categories)
        if policy.model is not None and policy != own:
            policy.check(fingerprint=_fingerprint_of(self.model))
        return policy

    # The four steps that transformers wants of a pipeline.

    def _sanitize_parameters(self, **kwargs):
        self.settings = Settings(**kwargs)
        return {}, {}, {}

    def preprocess(self, image, settings=None, thumbnails=False):
        """A picture -> the engine's [`Picture`] of it, prepared."""
        settings = settings or self.settings
        image = _picture_in(image)
        if isinstance(image, Exception):
            raise image
        read, max_pixels = _reader(settings), settings.max_pixels
        picture = self.engine.open(image, read, policy=settings.policy, max_pixels=max_pixels, thumbnails=thumbnails)
        picture.prepared = self.engine.prepare(picture.views, max_pixels)
        return picture

    def _forward(self, picture, settings=None):
        """`preprocess`'s output -> its [`Verdict`]."""
        started = time.perf_counter()
        judged = self.engine.judge(picture.prepared, max_batch_tokens=(settings or self.settings).max_batch_tokens)
        for error in judged:
            if isinstance(error, Exception):
                raise error
        return picture.verdict(judged, time.perf_counter() - started)

    def postprocess(self, verdict, settings=None):
        """
        A [`Verdict`] -> `[{"label", "score"}, ...]`, the likeliest first; with a policy `{"decision", "scores"}`; if
        it has an error `{"error"}`.
        """
        settings = settings or self.settings
        if verdict.error is not None:
            return {"error": verdict.error}
        scores = sorted(verdict.scores.items(), key=lambda one: one[1], reverse=True)[: settings.top_k]
        scores = [{"label": name, "score": score} for name, score in scores]
        scores = scores[:1] + [one for one in scores[1:] if one["score"] >= settings.threshold]
        return scores if verdict.decision is None else {"decision": verdict.decision, "scores": scores}

    def save_pretrained(self, save_directory, **kwargs):
        """
        Saves model and processor, and beside them the policy: the pipeline's, else the model's own, if there is one.

        A policy that names its weights then names those that were written, which differ in their bytes by dtype. The
        library's copy of this file is left out: loading it takes the package anyway.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        save_processor(self.processor, save_directory)
        policy = self.settings.policy or getattr(self.model, "safety_policy", None)
        if policy is not None:
            if policy.model is not None:
                policy = replace(policy, model=weights_fingerprint(save_directory))
            policy.save(save_directory)


class LoadedByPath:
    """What `pipeline(model=path)` loads by: with its policy, and a note if nobody asked for the dtype of the file."""

    @classmethod
    def from_pretrained(cls, path_or_repo, *args, dtype="auto", **kwargs):
        """Returns a [`SafeQwen2_5_VLForConditionalGeneration`]."""
        model = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(path_or_repo, *args, dtype=dtype, **kwargs)
        model.dtype_was_not_asked_for = dtype == "auto"
        model.safety_policy = load_policy(path_or_repo, model.config.safety_categories, **hub_of(kwargs))
        return model


def _fingerprint_of(model):
    """The fingerprint of the files that a model was loaded from, without asking the Hub."""
    path = model.config._name_or_path
    revision = getattr(model.config, "_commit_hash", None)
    try:
        return weights_fingerprint(path, **({"revision": revision} if revision else {}), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the policy was fitted to certain weights, but whether the model has them cannot be told ({error}): load "
            "it from their folder, or take dataclasses.replace(policy, model=None) if you know that it has"
        ) from error


def _cast(model, dtype):
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    if getattr(model, "is_quantized", False) or any(parameter.is_meta for parameter in parameters):
        return  # its own configuration, or accelerate's offloading, decides
    if any(parameter.dtype != dtype for parameter in parameters):
        logger.info("judging in %s, not in %s as saved; another dtype= is respected", dtype, model.dtype)
    for parameter in parameters:  # not the buffers: rotary frequencies stay in float32
        parameter.data = parameter.data.to(dtype)


def _is_one(images):
    """Whether this is one picture (`bool`), not several."""
    return isinstance(images, ONE_PICTURE) or hasattr(images, "read")


def _picture_in(item):
    """The picture in a row that has one under "image", or the error that there is none; any other item as it is."""
    if not isinstance(item, Mapping):
        return item
    try:
        if "image" in item:
            return item["image"]
    except Exception as error:  # of a row that decodes its columns when they are asked for
        return error
    if item.keys() & {"bytes", "path"}:
        return item
    return UnreadableImage(
        f'a row has no "image", but the columns {", ".join(map(str, item))}: rename the column that holds the '
        'pictures to "image", or pass that column alone'
    )


def _reader(settings):
    """`read_image` with the settings of a call."""
    private_networks = {"private_networks": True} if settings.private_networks else {}
    return partial(read_image, timeout_s=settings.timeout, **private_networks)


def _undecoded(images):
    """A Hugging Face dataset that gives its pictures as bytes: decoding one of them cannot end the dataset then."""
    feature = (getattr(images, "features", None) or {}).get("image")
    if not getattr(feature, "decode", False) or getattr(images, "format", {}).get("type") is not None:
        return images
    return images.cast_column("image", replace(feature, decode=False))


PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=SafetyPipeline, pt_model=LoadedByPath, type="image")
