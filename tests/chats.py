"""Rows, chats and files to make batches of, and what a batch says is learnt."""

import copy
import itertools
import json

import av
import numpy as np
from PIL import Image

from safeqwen.data.rows import IGNORED, Example
from safeqwen.data.taxonomy import Taxonomy
from safeqwen.hub.configuration_safeqwen import HOLISAFE_CATEGORIES


TAXONOMY = Taxonomy(HOLISAFE_CATEGORIES)
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"  # what the template puts in of itself
PICTURE, CLIP = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"


def noise(seed, width=112, height=112):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def with_template(processor, template):
    """The processor with another chat template, written for contents that are lists of parts."""
    other = copy.deepcopy(processor)
    other.chat_template = (
        "{%- macro said(m) -%}{%- for p in m.content -%}{{ '"
        + PICTURE
        + "' if p.type == 'image' else p.text }}{%- endfor -%}{%- endmacro -%}"
        + template
    )
    return other


def user(*content):
    return {"role": "user", "content": [_part(part) for part in content]}


def assistant(*content):
    return {"role": "assistant", "content": [_part(part) for part in content]}


def _part(part):
    return {"type": "image"} if part is PICTURE else {"type": "video"} if part is CLIP else text_part(part)


def text_part(text):
    return {"type": "text", "text": text}


def chat(*messages, images=(), videos=(), label=IGNORED):
    return Example(list(messages), list(images), list(videos), label, "", 1)


def pieces(processor, batch, row=0):
    """`[(whether it is learnt, text), ...]` of a row; pictures as one placeholder each."""
    ids, labels = batch["input_ids"][row], batch["labels"][row]
    shown = batch["attention_mask"][row].bool()
    pairs = list(zip(ids[shown].tolist(), labels[shown].tolist()))
    assert all(label in (token, IGNORED) for token, label in pairs)
    pictures = (processor.image_token_id, processor.video_token_id)
    result = []
    for learnt, group in itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        tokens = [token for token, _ in group]
        kept = [t for i, t in enumerate(tokens) if t not in pictures or i == 0 or tokens[i - 1] != t]
        result.append((learnt, processor.tokenizer.decode(kept, skip_special_tokens=False)))
    return result


def write_rows(folder, rows, name="rows.jsonl"):
    folder.mkdir(exist_ok=True)
    for seed in (1, 2):
        if not (folder / f"{seed}.png").exists():
            noise(seed).save(folder / f"{seed}.png")
    file = folder / name
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")
    return str(file)


def write_video(path, num_frames, rate=8, **options):
    """Frames of 64 x 48 pixels, each a little lighter than the one before."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(num_frames):
            frame = np.full((48, 64, 3), 5 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


GOOD = {"image": "1.png", "safety_label": "safe"}


ASKED, ANSWERED = user(PICTURE, "What is this?"), assistant("A cat.")


def messages_with(*messages, **fields):
    return {"messages": list(messages), **fields}


SAID = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


CLIP_FRAMES = [noise(seed, 112, 84) for seed in range(4)]
