"""`pipeline("image-safety")`: verdicts on pictures from wherever they come."""

import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from safeqwen.hub.modeling_safeqwen import SafeQwen2_5_VLForConditionalGeneration
from safeqwen.pictures import UnreadableImage, read_image
from safeqwen.prompt import chat_prompt


TASK = "image-safety"
WINDOW = 4  # batches' worth of pictures that are looked at together, to batch those of similar size
ONE_PICTURE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray, torch.Tensor, Mapping)


def worst_frame(probs, categories):
    """`(frames, categories)` probabilities -> the `int` index of the frame that is least likely to be safe.

    For a taxonomy without "safe" it is the frame with the most certain verdict.
    """
    if "safe" in categories:
        return int(probs[:, categories.index("safe")].argmin())
    return int(probs.amax(dim=1).argmax())


class SafetyPipeline(Pipeline):
    """
    Judges pictures, with `model.guard` and a prompt without text.

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
    ```

    Raises:
        ValueError: if the model has no guard, or there is no processor.
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
        before, after = chat_prompt(processor, num_images=1).split(processor.image_token)
        tokenize = processor.tokenizer
        self._before = tokenize(before, add_special_tokens=False)["input_ids"]
        self._after = tokenize(after, add_special_tokens=False)["input_ids"]

    def __call__(self, images, *, batch_size=None, num_workers=None, **kwargs):
        """
        The verdict on each picture.

        Args:
            images: one picture, or a list, generator or dataset of them. A picture is what
                [`safeqwen.read_image`] takes: a path, a URL, bytes, base64, a PIL image, an array. A dataset's row is
                a picture, or a dictionary with one under "image". An animation is judged by up to 8 of its frames;
                the verdict is that of the frame least likely to be safe.
            batch_size (`int`, *optional*, defaults to 1): pictures a forward, at most.
            num_workers (`int`, *optional*, defaults to 0): threads that read pictures ahead.
            top_k (`int`, *optional*, defaults to 5): number of categories returned, the likeliest first.
            threshold (`float` in [0, 1], *optional*, defaults to 0): categories below it are left out, but for the
                likeliest.
            timeout (`float`, *optional*, defaults to 10): seconds for the download of one URL.
            max_batch_tokens (`int`, *optional*, defaults to 8192): a batch holds fewer pictures if it would have more
                tokens than this, padding included. A larger picture goes alone.

        Returns:
            For one picture a list of `{"label": str, "score": float}`. For a list of pictures a list, and for a
            generator or dataset an iterator of those. There a picture that could not be judged is
            `{"error": str}` in its place, and the others are judged all the same.

        Raises:
            UnreadableImage: if the one picture could not be read.
            FloatingPointError: if the one picture's features are not finite.
            RuntimeError: if the model may not judge: its guard is untrained, or it is in training mode.
            ValueError: on arguments out of range.
        """
        batch_size = (self._batch_size or 1) if batch_size is None else batch_size
        num_workers = (self._num_workers or 0) if num_workers is None else num_workers
        if batch_size < 1 or num_workers < 0:
            raise ValueError(
                f"batch_size must be 1 or more and num_workers 0 or more, got {batch_size}, {num_workers}"
            )
        preprocess, forward, postprocess = self._sanitize_parameters(**kwargs)
        settings = (
            {**self._preprocess_params, **preprocess},
            {**self._forward_params, **forward},
            {**self._postprocess_params, **postprocess},
        )
        if isinstance(images, ONE_PICTURE) or hasattr(images, "read"):
            return self.run_single(images, *settings)
        verdicts = self.get_iterator(images, num_workers, batch_size, *settings)
        return list(verdicts) if isinstance(images, (list, tuple)) else verdicts

    def _sanitize_parameters(self, top_k=None, threshold=None, timeout=None, max_batch_tokens=None):
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k must be a whole number from 1, got {top_k!r}")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be a probability in [0, 1], got {threshold!r}")
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens must be 1 or more, got {max_batch_tokens!r}")
        settings = (
            {"timeout": timeout},
            {"max_batch_tokens": max_batch_tokens},
            {"top_k": top_k, "threshold": threshold},
        )
        return tuple({name: value for name, value in some.items() if value is not None} for some in settings)

    def preprocess(self, image, timeout=10.0):
        """A picture -> `{"pixel_values", "image_grid_thw"}`, with one grid a frame."""
        if isinstance(image, dict) and "image" in image:
            image = image["image"]
        return self.image_inputs(read_image(image, timeout_s=timeout))

    def image_inputs(self, frames):
        """Frames, as `read_image` returns them -> `{"pixel_values", "image_grid_thw"}`."""
        return dict(self.processor.image_processor(images=frames, return_tensors="pt"))

    def _forward(self, model_inputs, max_batch_tokens=8192):
        """`preprocess`'s output -> `(frames, categories)` probabilities, float32."""
        pixel_values, grids = model_inputs["pixel_values"], model_inputs["image_grid_thw"]
        sizes = self._num_tokens(grids)
        at_once = max(1, max_batch_tokens // (max(sizes) + len(self._before) + len(self._after)))
        if at_once < len(sizes):  # more frames, of an animation, than fit
            patches = pixel_values.split([int(size) for size in grids.prod(dim=-1)])
            parts = [
                {"pixel_values": torch.cat(patches[i : i + at_once]), "image_grid_thw": grids[i : i + at_once]}
                for i in range(0, len(sizes), at_once)
            ]
            return torch.cat([self._forward(part, max_batch_tokens) for part in parts])
        rows = [self._before + [self.model.config.image_token_id] * size + self._after for size in sizes]
        length = max(map(len, rows))
        input_ids = torch.zeros(len(rows), length, dtype=torch.long)
        attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
        for i, row in enumerate(rows):
            input_ids[i, : len(row)], attention_mask[i, : len(row)] = torch.tensor(row), 1
        device = pixel_values.device
        return self.model.guard(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            pixel_values=pixel_values,
            image_grid_thw=grids,
        ).img_safety_probs

    def postprocess(self, probs, top_k=5, threshold=0.0):
        """`(frames, categories)` probabilities -> `[{"label", "score"}, ...]` of the frame least likely to be safe."""
        categories = self.model.config.safety_categories
        probs = probs[worst_frame(probs, categories)]
        scores, ids = probs.topk(min(top_k, len(categories)))
        verdict = [{"label": categories[i], "score": score} for i, score in zip(ids.tolist(), scores.tolist())]
        return verdict[:1] + [entry for entry in verdict[1:] if entry["score"] >= threshold]

    def get_iterator(self, images, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        """Yields what `postprocess` returns, or `{"error"}`, for each picture, in their order."""
        if hasattr(images, "__getitem__") and hasattr(images, "__len__"):  # a dataset need not be iterable
            images = map(images.__getitem__, range(len(images)))
        at_once = WINDOW * batch_size if batch_size > 1 else 1
        prepared = self._read_ahead(images, num_workers, at_once, preprocess_params)
        while window := dict(enumerate(islice(prepared, at_once))):
            judged = {i: item for i, item in window.items() if isinstance(item, Exception)}
            # Pictures of one size need no padding.
            by_size = sorted(window.keys() - judged.keys(), key=lambda i: window[i]["image_grid_thw"].prod(-1).max())
            for start in range(0, len(by_size), batch_size):
                batch = by_size[start : start + batch_size]
                judged |= zip(batch, self._judge([window[i] for i in batch], forward_params))
            for i in range(len(window)):
                if isinstance(judged[i], Exception):
                    yield {"error": str(judged[i])}
                else:
                    yield self.postprocess(judged[i], **postprocess_params)

    def _read_ahead(self, images, num_workers, num_ahead, preprocess_params):
        """Yields what `preprocess` returns, or why there is nothing, for each picture."""

        def prepare(image):
            try:
                return self.preprocess(image, **preprocess_params)
            except UnreadableImage as error:
                return error

        if num_workers == 0:
            yield from map(prepare, images)
            return
        with ThreadPoolExecutor(num_workers) as pool:
            pending = deque()
            for image in images:
                pending.append(pool.submit(prepare, image))
                if len(pending) > num_ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _judge(self, batch, forward_params):
        """The `(frames, categories)` probabilities of each of several pictures, or why there are none."""
        joined = {name: torch.cat([inputs[name] for inputs in batch]) for name in ("pixel_values", "image_grid_thw")}
        try:
            return self.forward(joined, **forward_params).split([len(inputs["image_grid_thw"]) for inputs in batch])
        except FloatingPointError as error:  # one picture must not cost the others their verdict
            if len(batch) == 1:
                return [error]
            return [self._judge([inputs], forward_params)[0] for inputs in batch]

    def save_pretrained(self, save_directory, **kwargs):
        """Saves model and processor. Not this file, as the library would: loading it takes the package anyway."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def _num_tokens(self, grids):
        merge = self.model.config.vision_config.spatial_merge_size
        return (grids.prod(dim=-1) // merge**2).tolist()


PIPELINE_REGISTRY.register_pipeline(
    TASK, pipeline_class=SafetyPipeline, pt_model=SafeQwen2_5_VLForConditionalGeneration, type="image"
)
