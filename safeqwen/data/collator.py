"""Examples become batches: tokens, labels on the assistant's words, and what the processors make of pictures."""

import hashlib
import json
import math
import reprlib

import torch

from safeqwen.data.rows import IGNORED, has_label
from safeqwen.data.sources import BadRow, load_picture
from safeqwen.data.video import load_video
from safeqwen.prompt import plain_text


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
            grids = [pixels[name].tolist() if name in pixels else [] for name in ("image_grid_thw", "video_grid_thw")]
            ids, labels, _ = self.tokenize(example, *grids)
            rows.append(torch.tensor(ids))
            targets.append(torch.tensor(labels))
            for name, tensor in pixels.items():
                batch.setdefault(name, []).append(tensor)
        batch = {name: torch.cat(tensors) for name, tensors in batch.items()}
        pad = torch.nn.utils.rnn.pad_sequence
        batch["input_ids"] = pad(rows, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id)
        batch["attention_mask"] = pad([torch.ones_like(row) for row in rows], batch_first=True)
        batch["labels"] = pad(targets, batch_first=True, padding_value=IGNORED)
        batch["safety_labels"] = torch.tensor([example.label for example in examples])
        if any(has_label(example.picture_categories) for example in examples):
            per_picture = [
                example.picture_categories or [IGNORED] * len(example.images + example.videos) for example in examples
            ]
            batch["picture_categories"] = torch.tensor(sum(per_picture, []))
            batch["picture_rows"] = torch.tensor([i for i, labels in enumerate(per_picture) for _ in labels])
        return batch

    def pixels(self, example):
        """What the processors make of an example's pictures and videos (`dict` of tensors)."""
        inputs = {}
        if example.images:
            pictures = [load_picture(source) for source in example.images]
            inputs.update(self.processor.image_processor(images=pictures, return_tensors="pt"))
        if example.videos:
            clips = [load_video(source, self.video_fps, self.max_video_frames) for source in example.videos]
            inputs.update(self._video_inputs(clips))
        return inputs

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
        digest = hashlib.sha256(json.dumps([example.messages, example.label, example.picture_categories]).encode())
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
        if is_cut and not has_label([example.label, *example.picture_categories, *labels]):
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
