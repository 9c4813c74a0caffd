"""Pictures in, verdicts out: what the command, the pipeline and every evaluation judge pictures with.

Every frame is judged by itself, with the chat prompt around one picture and no text. The engine decides which frames
share a forward, how much is prepared ahead, and what an error costs:

- **Batches** hold frames of similar size, at most `batch_size`, and at most `max_batch_tokens` tokens with padding.
- **Memory**: a prepared frame takes 24 bytes a pixel (float32, three channels, twice because the vision tower takes
  pairs of frames): 72 MB for 3 megapixels. `memory_budget` bounds the sum of what is prepared and not judged yet.
- **Errors** belong to one picture: unreadable, not finite, too large for the memory. The other pictures are judged all
  the same. An error of the whole, such as an untrained guard, is raised.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from safeqwen.judging.ahead import Budget, SourceFailed, items_of, prepare_ahead, take_window, without_tensors
from safeqwen.judging.policy import SafetyPolicy
from safeqwen.judging.verdict import NAMELESS, Verdict, name_of, reason_of, thumbnail_of, worst_frame
from safeqwen.pictures import frame_numbers, read_image, read_stream
from safeqwen.prompt import prompt_ids


WINDOW = 4  # batches' worth of pictures that are looked at together, to batch those of similar size
MAX_BATCH_TOKENS = 8192
MEMORY_BUDGET = 2 * 2**30
# torch raises a plain RuntimeError where no accelerator is involved.
OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator")


@dataclass(eq=False)
class Frame:
    """
    One frame as the vision tower takes it.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(patches, 1176)`, *optional*): `None` once it was judged.
        grid (`torch.LongTensor` of shape `(1, 3)`): frames (1), rows and columns of patches.
        num_tokens (`int`): of the picture in the prompt.
    """

    pixel_values: torch.Tensor | None
    grid: torch.Tensor
    num_tokens: int

    @property
    def num_bytes(self):
        return 0 if self.pixel_values is None else self.pixel_values.nbytes


@dataclass(frozen=True)
class Origin:
    """
    How a picture was judged, to judge it again.

    Args:
        engine ([`Engine`])
        read (callable): picture -> its views (`list[PIL.Image.Image]`).
        max_pixels (`int`, *optional*): as in `Engine.image_settings`.
    """

    engine: "Engine"
    read: Callable
    max_pixels: int | None


@dataclass(eq=False)
class Picture:
    """
    A picture that was read and is not judged yet: all of its verdict but the probabilities.

    Args:
        image: as in [`Verdict`], like `policy` and `origin`.
        views (`list[PIL.Image.Image]`): what `origin.read` returned.
        frames (`list[int]`): the number of the frame that each view shows.
        thumbnails (`list[PIL.Image.Image]`, *optional*): one a view.
    """

    image: object
    views: list
    frames: list
    thumbnails: list | None
    policy: SafetyPolicy | None
    origin: Origin
    prepared: list = ()  # of `judge_each`, which drops the views for it

    @property
    def num_bytes(self):
        return sum(frame.num_bytes for frame in self.prepared)

    def verdict(self, judged, seconds=0.0):
        """Returns the [`Verdict`], of what `Engine.judge` returned for the views, and the model's time for them."""
        categories = self.origin.engine.categories
        about = {
            "categories": categories,
            "frames": self.frames,
            "image": self.image,
            "policy": self.policy,
            "seconds": seconds,
            "origin": self.origin,
        }
        for error in judged:
            if isinstance(error, Exception):
                return Verdict(error=reason_of(error), **about)
        probs = torch.stack([*judged])
        thumbnail = self.thumbnails[worst_frame(probs, categories)] if self.thumbnails else None
        return Verdict(probs=probs, thumbnail=thumbnail, **about)


class Engine:
    """
    Judges frames with a model's guard.

    Args:
        model ([`SafeQwen2_5_VLForConditionalGeneration`]): in evaluation mode, on its device.
        processor (`Qwen2_5_VLProcessor`): of the model.
    """

    def __init__(self, model, processor):
        self.model, self.processor = model, processor
        self._before, self._after = prompt_ids(processor).values()

    def image_settings(self, max_pixels=None):
        """Returns the arguments (`dict`) of the image processor that bound a picture to `max_pixels`.

        Args:
            max_pixels (`int`, *optional*): width x height to which a larger picture is shrunk. By default the
                processor's own bound.

        Raises:
            ValueError: if `max_pixels` is less than the pixels of one token (784).
        """
        if max_pixels is None:
            return {}
        processor = self.processor.image_processor
        one_token = (processor.patch_size * processor.merge_size) ** 2
        if max_pixels < one_token:
            raise ValueError(f"max_pixels must be {one_token} or more, the pixels of one token; got {max_pixels}")
        return {
            "size": {"shortest_edge": min(processor.size["shortest_edge"], max_pixels), "longest_edge": max_pixels}
        }

    @property
    def categories(self):
        """The model's categories (`list[str]`), in its order."""
        return list(self.model.config.safety_categories)

    def open(self, image, read=read_image, *, policy=None, max_pixels=None, thumbnails=True):
        """
        Returns the [`Picture`] that is read from an image, for a verdict that names it and can draw its maps.

        Args:
            image: what `read` takes. A binary stream becomes its bytes, `{"bytes", "path"}`, which can be read again.
            read (callable): image -> views (`list[PIL.Image.Image]`), as [`safeqwen.read_image`] returns them.
            policy ([`SafetyPolicy`], *optional*): for these categories.
            max_pixels (`int`, *optional*): as in `image_settings`.
            thumbnails (`bool`): whether the verdict has one.

        Raises:
            UnreadableImage: or whatever else `read` raises.
            ValueError: if `read` returned no view, or several that do not say which frame they show.
        """
        if hasattr(image, "read"):
            name = name_of(image)
            image = {"bytes": read_stream(image)[0], "path": name if name != NAMELESS else None}
        views = read(image)
        if not views:
            raise ValueError("the picture has no view to judge")
        frames = [0] if len(views) == 1 else frame_numbers(views)
        small = [thumbnail_of(view) for view in views] if thumbnails else None
        return Picture(image, views, frames, small, policy, Origin(self, read, max_pixels))

    def prepare(self, frames, max_pixels=None):
        """Returns a list of [`Frame`], one for each of the `frames` (`list[PIL.Image.Image]`)."""
        settings = self.image_settings(max_pixels)
        merge = self.processor.image_processor.merge_size
        prepared = []
        for frame in frames:
            inputs = self.processor.image_processor(images=[frame], return_tensors="pt", **settings)
            grid = inputs["image_grid_thw"]
            prepared.append(Frame(inputs["pixel_values"], grid, int(grid.prod()) // merge**2))
        return prepared

    def judge(self, frames, batch_size=None, max_batch_tokens=MAX_BATCH_TOKENS):
        """
        The probabilities of each frame.

        Args:
            frames (`list[Frame]`)
            batch_size (`int`, *optional*): frames a forward, at most. By default as many as `max_batch_tokens` allows.
            max_batch_tokens (`int`): tokens a forward, padding included, at most. A larger frame goes alone.

        Returns:
            `list`: for each frame probabilities (`torch.FloatTensor` of shape `(categories,)`, float32, on the CPU),
            or why there are none: a `FloatingPointError` if its features are not finite, a `MemoryError` if it is too
            large to be judged alone.

        Raises:
            RuntimeError: if the model may not judge: its guard is untrained, or it is in training mode.
        """
        verdicts = [None] * len(frames)
        for batch in self._batches(frames, batch_size or len(frames), max_batch_tokens):
            for i, verdict in zip(batch, self._judge_batch([frames[i] for i in batch])):
                verdicts[i] = verdict
        return verdicts

    def judge_each(
        self,
        items,
        read=read_image,
        *,
        batch_size=1,
        num_workers=0,
        max_pixels=None,
        max_batch_tokens=MAX_BATCH_TOKENS,
        memory_budget=MEMORY_BUDGET,
        policy=None,
        thumbnails=True,
    ):
        """
        Yields a [`Verdict`] on each of many pictures, in their order.

        One that cannot be judged is a verdict with an error: what the source or `read` raised for it, or one of those
        of `judge`.

        Args:
            items: anything that can be iterated, or a map-style dataset. It is read only as far as verdicts are asked
                for, and always by the thread that asks.
            read, policy, max_pixels, thumbnails: as in `open`. `read` is called by the workers, several at a time.
            batch_size, max_batch_tokens (`int`): as in `judge`.
            num_workers (`int`): threads that read and prepare pictures ahead, while others are judged. With 0 the
                calling thread does.
            memory_budget (`int`): bytes of pictures that are prepared and not judged yet, at most. Each worker may go
                over it by the picture that it is at. Half of it is for the pictures that are batched together. What
                items themselves take is not counted.

        Raises:
            Exception: the error of a source that cannot go on after it, such as a generator. The verdicts on the
                pictures before it are yielded first.
            RuntimeError: as `judge`.
        """
        window_size = window_of(batch_size)
        budget = Budget(memory_budget)

        def refused(error, image=None):
            return Verdict(categories=self.categories, image=image, policy=policy, error=reason_of(error))

        def prepare(item):
            if isinstance(item, SourceFailed):
                return item
            if isinstance(item, Exception):
                return refused(item)
            try:
                picture = self.open(item, read, policy=policy, max_pixels=max_pixels, thumbnails=thumbnails)
                picture.prepared, picture.views = self.prepare(picture.views, max_pixels), None
            except Exception as error:  # whatever a reader raises for one picture
                return refused(error, item)
            return picture

        prepared = prepare_ahead(items_of(items), prepare, budget, num_workers, max(window_size, 2 * num_workers))
        try:
            while window := take_window(prepared, window_size, memory_budget / 2):
                failed = window.pop() if isinstance(window[-1], SourceFailed) else None
                yield from self._judge_window(window, batch_size, max_batch_tokens, budget)
                if failed is not None:
                    raise failed.error
        finally:
            prepared.close()

    def _judge_window(self, window, batch_size, max_batch_tokens, budget):
        """`judge_each` for a few entries, each a [`Picture`], or the [`Verdict`] that it could not be read."""
        frames = [frame for entry in window if isinstance(entry, Picture) for frame in entry.prepared]
        judged, seconds = {}, {}
        for batch in self._batches(frames, batch_size, max_batch_tokens):
            batch = [frames[i] for i in batch]
            started = time.perf_counter()
            judged |= zip(batch, self._judge_batch(batch))
            seconds |= dict.fromkeys(batch, (time.perf_counter() - started) / len(batch))
            budget.give_back(sum(frame.num_bytes for frame in batch))
            for frame in batch:
                frame.pixel_values = None
        for entry in window:
            if isinstance(entry, Picture):
                entry = entry.verdict(
                    [judged[frame] for frame in entry.prepared], sum(map(seconds.get, entry.prepared))
                )
            yield entry

    def _batches(self, frames, batch_size, max_batch_tokens):
        """Lists of indices of frames that go through the model together, those of similar size."""
        batches, prompt = [], len(self._before) + len(self._after)
        for i in sorted(range(len(frames)), key=lambda i: frames[i].num_tokens):  # the last is the longest
            last = batches[-1] if batches else []
            if 0 < len(last) < batch_size and (len(last) + 1) * (frames[i].num_tokens + prompt) <= max_batch_tokens:
                last.append(i)
            else:
                batches.append([i])
        return batches

    def _judge_batch(self, frames):
        """Probabilities of each frame or why there are none."""

        def judge(frames):
            return list(self._forward(frames).cpu())

        return in_halves(judge, frames, lambda frame: f"picture of {frame.num_tokens} tokens")

    def inputs_of(self, frames):
        """Returns the model's inputs (`dict` of tensors, on its device) for frames that are judged together."""
        image_token = self.model.config.image_token_id
        rows = [self._before + [image_token] * frame.num_tokens + self._after for frame in frames]
        length = max(map(len, rows))
        input_ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        attention_mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "pixel_values": torch.cat([frame.pixel_values for frame in frames]),
            "image_grid_thw": torch.cat([frame.grid for frame in frames]),
        }
        return self.place(inputs)

    def _forward(self, frames):
        """`(frames, categories)` probabilities, float32, on the model's device."""
        return self.model.guard(**self.inputs_of(frames)).img_safety_probs

    def place(self, inputs):
        """Returns the model's inputs (`dict` of tensors) on the device where it takes them."""
        device = self.model.get_input_embeddings().weight.device
        if device.type == "meta":  # of a model that accelerate has offloaded, which moves its inputs by itself
            return dict(inputs)
        return {name: tensor.to(device) for name, tensor in inputs.items()}


def window_of(batch_size):
    """Returns how many pictures (`int`) `judge_each` looks at together, to batch those of similar size."""
    return WINDOW * batch_size if batch_size > 1 else 1


def in_halves(call, items, describe):
    """
    What a call returns for each item, or why it has nothing for it. What one batch cannot do is tried in two halves.

    Args:
        call (callable): `list` of items -> `list` of what came of each.
        items (`list`)
        describe (callable): item -> what it is (`str`), for the error of one that does not fit into memory alone.

    Returns:
        `list`: for each item what `call` returned, or a `FloatingPointError` or `MemoryError`.
    """
    try:
        return call(items)
    except (FloatingPointError, RuntimeError, MemoryError) as error:
        out_of_memory = is_out_of_memory(error)
        if not out_of_memory and not isinstance(error, FloatingPointError):
            raise
        if len(items) == 1:
            reason = f"there is not enough memory for a {describe(items[0])}; lower max_pixels"
            return [MemoryError(reason) if out_of_memory else without_tensors(error)]
    # Outside of the except block: there the error would keep the failed call's tensors alive.
    middle = len(items) // 2
    return in_halves(call, items[:middle], describe) + in_halves(call, items[middle:], describe)


def is_out_of_memory(error):
    """`bool`: whether memory, of an accelerator or of the machine, could not be had."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    )
