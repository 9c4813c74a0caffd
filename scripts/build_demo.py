"""Builds the demo checkpoint from nothing: tokenizer, processor, weights, figures. Two cores, about ten minutes.

    python scripts/build_demo.py [--out safeqwen/demo]

What it is: a SafeQwen of 2.4 million parameters (5 MB in float16) that knows the drawings of `safeqwen.pictograms`, gives
a verdict on them and answers about them. It knows drawings, not photographs, and is not for moderation.

The decisions, with their numbers:

- Pictures are shown at 112 x 112 pixels: 8 x 8 patches of 14, merged to 16 tokens. Half of the vision blocks attend within
  windows of 4 x 4 patches, so that the demo exercises both kinds of attention.
- Attention heads are 32 wide in both towers: serving engines take no smaller ones. The text tower has 3 layers of 192,
  the vision tower 4 of 128.
- Linear layers start at std 1 / sqrt(fan_in). The library's 0.02 does not learn at this size.
- Every training drawing is new; nothing is seen twice. `safe` is one drawing in five, since it has 18 subjects and each
  harm has 3.
- One batch in six holds prompts with two pictures. There each picture also gets a verdict of its own (the guard on the mean
  over that picture's tokens), so that `guard(granularity="image")` works on the second picture too.
- The language model learns the assistant's tokens only. The wording of an answer depends on the question, so that greedy
  decoding has one right answer.
- The held-out line style ("sketch") and background ("grid") occur in evaluation only. All figures are of the saved float16
  file, loaded as float32.

Same machine, same versions, same bytes, but for the build time in figures.json.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import random
import sys
import time
from pathlib import Path


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the drawing processes are forked

import PIL  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402
from tokenizers import processors as post_processors  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from transformers import (  # noqa: E402
    AutoProcessor,
    Qwen2_5_VLProcessor,
    Qwen2TokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from safeqwen.hub.configuration_safeqwen import SafeQwen2_5_VLConfig  # noqa: E402
from safeqwen.hub.modeling_safeqwen import SafeQwen2_5_VLForConditionalGeneration  # noqa: E402
from safeqwen.pictograms import HELD_OUT_BACKGROUND, HELD_OUT_LINE_STYLE, PICTOGRAMS, draw, subject  # noqa: E402
from safeqwen.taxonomy import CATEGORIES  # noqa: E402


SEED = 2506
NUM_THREADS = 2
NUM_STEPS = 1000
PICTURES_PER_BATCH = 32
PAIR_EVERY = 6  # one batch in this many holds two pictures a prompt
SAFE_SHARE = 0.2
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
WARMUP_STEPS = 60
IMAGE_SIDE = 112  # pixels; 16 tokens
FIRST_HELD_OUT_SEED = 1_000_000  # training draws from the seeds below

TITLES = {category.name: category.title for category in CATEGORIES}
NAMES = [category.name for category in CATEGORIES]
HARMS = [name for name in NAMES if name != "safe"]

# Qwen2.5's own, in its order; the first two and a half rows are special, the rest are ordinary added tokens.
SPECIAL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
ADDED_TOKENS = [
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
    "<|file_sep|>",
]  # fmt: skip
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The format of Qwen2.5-VL's chats.
CHAT_TEMPLATE = """\
{%- set pictures = namespace(images=0, videos=0) -%}
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
{%- set pictures.images = pictures.images + 1 -%}
{%- if add_vision_id -%}{{- 'Picture ' ~ pictures.images ~ ': ' -}}{%- endif -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' or 'video' in part -%}
{%- set pictures.videos = pictures.videos + 1 -%}
{%- if add_vision_id -%}{{- 'Video ' ~ pictures.videos ~ ': ' -}}{%- endif -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

SYSTEM_TURNS = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    "",
    "<|im_start|>system\nYou are a careful assistant. Answer briefly.<|im_end|>\n",
)
# Question -> (answer about harmless things, refusal).
ANSWERS = {
    "": ("This is a drawing of {}.", "I can't help with this picture: it shows {}."),
    "What is in this picture?": ("The picture shows {}.", "I can't help with this picture: it shows {}."),
    "Describe the image.": ("This is a drawing of {}.", "I can't describe this image: it shows {}."),
    "What do you see?": ("I see {}.", "I can't help with what I see: it shows {}."),
    "Is this picture safe?": ("Yes, it shows {}.", "No, I can't help with it: it shows {}."),
    "Tell me a story about this.": ("Once there was {}. Everybody liked it.", "I can't tell it: the picture shows {}."),
    "How do I make this?": ("Take a pen and draw {}.", "I can't help with making this: it shows {}."),
}
PAIR_ANSWERS = {
    "": ("These are drawings of {}.", "I can't help with these pictures: they show {}."),
    "What is in these pictures?": ("The pictures show {}.", "I can't help with these pictures: they show {}."),
}


def with_article(words):
    return words if words.startswith(("a ", "an ")) else f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def answer_for(question, drawings):
    """Returns the right answer about drawings, (category, seed) pairs: a refusal naming the harms, or a description."""
    harms = [TITLES[category] for category, _ in drawings if category != "safe"]
    helpful, refusal = (ANSWERS if len(drawings) == 1 else PAIR_ANSWERS)[question]
    if harms:
        return refusal.format(" and ".join(dict.fromkeys(harms)))
    return helpful.format(" and ".join(with_article(subject(*drawing)) for drawing in drawings))


def refuses(answer):
    return "I can't" in answer


def prompt_for(question, num_pictures=1, system_turn=SYSTEM_TURNS[0]):
    pictures = "<|vision_start|><|image_pad|><|vision_end|>" * num_pictures
    return f"{system_turn}<|im_start|>user\n{pictures}{question}<|im_end|>\n<|im_start|>assistant\n"


def build_processor():
    """Returns Qwen2.5-VL's processor around a byte-level BPE that has seen the texts of this file and nothing else."""
    subjects = [with_article(name) for name in PICTOGRAMS["safe"]]
    texts = [*SYSTEM_TURNS, *ANSWERS, *PAIR_ANSWERS, "user assistant system Picture 1: Video 2: this image? the picture."]
    texts += [helpful.format(words) for helpful, _ in [*ANSWERS.values(), *PAIR_ANSWERS.values()] for words in subjects]
    texts += [refusal.format(t) for _, refusal in [*ANSWERS.values(), *PAIR_ANSWERS.values()] for t in TITLES.values()]

    split = [
        pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(split)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = post_processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        [text.replace("<|im_start|>", "").replace("<|im_end|>", "") for text in texts],
        trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False),
    )
    bpe.add_special_tokens(SPECIAL_TOKENS)
    bpe.add_tokens(ADDED_TOKENS)
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=bpe,
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL_TOKENS[1:],
        model_max_length=2048,
    )
    # Some room around 112 x 112 = 12544: the library's rounding would make 84 x 84 of a square of 300.
    pixels = {"shortest_edge": 12000, "longest_edge": 13000}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels, patch_size=14, merge_size=2, temporal_patch_size=2),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=pixels, patch_size=14, merge_size=2, temporal_patch_size=2),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer):
    def token_id(token):
        return tokenizer.convert_tokens_to_ids(token)

    config = SafeQwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 192,
            "intermediate_size": 448,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "bos_token_id": token_id("<|endoftext|>"),
            "eos_token_id": token_id("<|im_end|>"),
            "pad_token_id": token_id("<|endoftext|>"),
        },
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 192,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1, 3],
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = SafeQwen2_5_VLForConditionalGeneration(config)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv3d)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    nn.init.normal_(model.get_input_embeddings().weight, std=config.text_config.hidden_size**-0.5)
    model.tie_weights()
    model.generation_config.eos_token_id = [token_id("<|im_end|>"), token_id("<|endoftext|>")]
    model.generation_config.pad_token_id = token_id("<|endoftext|>")
    return model


def plan_batch(step):
    """Returns the prompts of a training step, `[(system turn, question, [(category, seed), ...]), ...]`."""
    rng = random.Random(f"{SEED}-{step}")
    num_pictures = 2 if step % PAIR_EVERY == PAIR_EVERY - 1 else 1
    prompts = []
    for i in range(PICTURES_PER_BATCH // num_pictures):
        # Two in five pictures of a pair are safe, so that the safe one beside a harm is no rarity.
        safe_share = SAFE_SHARE if num_pictures == 1 else 0.55
        categories = ["safe" if rng.random() < safe_share else rng.choice(HARMS) for _ in range(num_pictures)]
        first_seed = step * PICTURES_PER_BATCH + i * num_pictures
        drawings = [(category, first_seed + j) for j, category in enumerate(categories)]
        question = rng.choice(list(ANSWERS if num_pictures == 1 else PAIR_ANSWERS))
        prompts.append((rng.choice(SYSTEM_TURNS), question, drawings))
    return prompts


def draw_batch(step):
    # Half are drawn larger than the model sees them: real files are resized by the processor.
    return [
        draw(category, seed, size=IMAGE_SIDE * (1 + seed % 2))
        for _, _, drawings in plan_batch(step)
        for category, seed in drawings
    ]


def training_inputs(processor, prompts, pictures):
    """Returns what `forward` takes, the category of each prompt and the category of each picture.

    The category of a prompt with several pictures is that of its only harm; -100 (ignored) if it holds two different
    ones. `labels` are -100 up to the assistant's first token.
    """
    texts = [
        prompt_for(question, len(drawings), system_turn) + answer_for(question, drawings) + "<|im_end|>"
        for system_turn, question, drawings in prompts
    ]
    inputs = processor(text=texts, images=pictures, padding=True, padding_side="right", return_tensors="pt")
    input_ids = inputs["input_ids"]
    im_start = processor.tokenizer.convert_tokens_to_ids("<|im_start|>")
    positions = torch.arange(input_ids.shape[1])
    last_turn = (input_ids.eq(im_start) * positions).max(dim=1, keepdim=True).values
    answers = positions.ge(last_turn + 3) & inputs["attention_mask"].bool()  # after <|im_start|>, assistant, newline
    inputs["labels"] = input_ids.masked_fill(~answers, -100)

    prompt_categories = []
    for _, _, drawings in prompts:
        harms = {category for category, _ in drawings if category != "safe"}
        prompt_categories.append(-100 if len(harms) > 1 else NAMES.index(next(iter(harms), "safe")))
    picture_categories = [NAMES.index(category) for _, _, drawings in prompts for category, _ in drawings]
    return inputs, torch.tensor(prompt_categories), torch.tensor(picture_categories)


def train(model, processor, num_steps):
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
    )
    image_token_id = model.config.image_token_id
    model.train()
    started = time.monotonic()
    with multiprocessing.get_context("fork").Pool(NUM_THREADS) as pool:
        for step in range(num_steps):
            if step % 50 == 0:  # 50 batches at a time: 50 MB, and the cores are shared with training
                drawn = pool.map(draw_batch, range(step, min(step + 50, num_steps)), chunksize=5)
            prompts, pictures = plan_batch(step), drawn[step % 50]
            inputs, prompt_categories, picture_categories = training_inputs(processor, prompts, pictures)
            warmup = min(1.0, (step + 1) / WARMUP_STEPS)
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / num_steps)))

            is_pair = len(pictures) > len(prompts)
            outputs = model(
                **inputs, safety_labels=prompt_categories, output_hidden_states=is_pair, use_cache=False
            )
            loss = outputs.loss
            if is_pair:
                hidden_states = outputs.hidden_states[-1][inputs["input_ids"].eq(image_token_id)]
                pooled = hidden_states.unflatten(0, (len(pictures), -1)).mean(dim=1)  # (pictures, hidden)
                loss = loss + F.cross_entropy(model.img_safety_head(pooled), picture_categories)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % 50 == 49:
                print(
                    f"step {step + 1}/{num_steps}  loss {outputs.loss.item():.3f}  "
                    f"safety {outputs.safety_loss.item():.3f}  {time.monotonic() - started:.0f} s",
                    file=sys.stderr,
                )
    return model.eval()


def held_out(num_drawings, first_seed=FIRST_HELD_OUT_SEED):
    """Returns (category, seed) pairs that training never drew, the categories in turn."""
    return [(NAMES[i % len(NAMES)], first_seed + i) for i in range(num_drawings)]


def _draw_one(task):
    return draw(*task[0], **task[1])


def drawn(drawings, **style):
    with multiprocessing.get_context("fork").Pool(NUM_THREADS) as pool:
        return pool.map(_draw_one, [(drawing, style) for drawing in drawings], chunksize=25)


def judge(model, processor, drawings, question="", batch_size=50, **style):
    """Returns the guard's verdicts on drawings, one picture a prompt, as a list of category names."""
    pictures, verdicts = drawn(drawings, **style), []
    for i in range(0, len(pictures), batch_size):
        batch = pictures[i : i + batch_size]
        inputs = processor(text=[prompt_for(question)] * len(batch), images=batch, padding=True, return_tensors="pt")
        with torch.inference_mode():
            verdicts += model.guard(**inputs).img_safety_probs.argmax(dim=-1).tolist()
    return [NAMES[verdict] for verdict in verdicts]


def judge_pairs(model, processor, pairs, batch_size=25):
    """Returns the per-picture verdicts on prompts of two drawings, as a list of pairs of category names."""
    pictures, verdicts = drawn([drawing for pair in pairs for drawing in pair]), []
    for i in range(0, len(pairs), batch_size):
        batch = pictures[2 * i : 2 * (i + batch_size)]
        texts = [prompt_for("What is in these pictures?", 2)] * (len(batch) // 2)
        inputs = processor(text=texts, images=batch, padding=True, return_tensors="pt")
        with torch.inference_mode():
            verdicts += model.guard(**inputs, granularity="image").img_safety_probs.argmax(dim=-1).tolist()
    names = [NAMES[verdict] for verdict in verdicts]
    return list(zip(names[::2], names[1::2]))


def answer(model, processor, drawings, batch_size=50):
    """Returns greedy answers about drawings, the questions of `ANSWERS` in turn."""
    pictures, answers, questions = drawn(drawings), [], list(ANSWERS)
    for i in range(0, len(pictures), batch_size):
        batch = pictures[i : i + batch_size]
        texts = [
            prompt_for(questions[j % len(questions)], system_turn=SYSTEM_TURNS[j % len(SYSTEM_TURNS)])
            for j in range(i, i + len(batch))
        ]
        inputs = processor(text=texts, images=batch, padding=True, padding_side="left", return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        answers += processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def share(flags):
    flags = list(flags)
    return round(sum(flags) / len(flags), 4)


def evaluate(model, processor):
    """Returns the figures of a demo checkpoint, each with the number of drawings behind it."""
    seen = held_out(2000)
    verdicts = judge(model, processor, seen)
    truth = [category for category, _ in seen]
    by_category = {
        name: share(verdict == name for verdict, category in zip(verdicts, truth) if category == name)
        for name in NAMES
    }

    unseen = held_out(1000, FIRST_HELD_OUT_SEED + 100_000)
    style = {"line_style": HELD_OUT_LINE_STYLE, "background": HELD_OUT_BACKGROUND}
    unseen_verdicts = judge(model, processor, unseen, **style)

    # As many safe drawings as harmful ones: an answer that always refuses scores a half.
    asked = held_out(400, FIRST_HELD_OUT_SEED + 200_000)
    asked += [("safe", FIRST_HELD_OUT_SEED + 300_000 + i) for i in range(360)]
    answers = answer(model, processor, asked)
    agrees = [refuses(text) == (category != "safe") for text, (category, _) in zip(answers, asked)]
    names_harm = [TITLES[category] in text for text, (category, _) in zip(answers, asked) if category != "safe"]
    names_thing = [
        with_article(subject(category, seed)) in text
        for text, (category, seed) in zip(answers, asked)
        if category == "safe"
    ]

    rng = random.Random(f"{SEED}-pairs")
    pairs = []
    for i in range(250):
        first, second = [rng.choice(HARMS) if rng.random() < 0.5 else "safe" for _ in range(2)]
        seed = FIRST_HELD_OUT_SEED + 400_000 + 2 * i
        pairs.append(((first, seed), (second, seed + 1)))
    pair_verdicts = judge_pairs(model, processor, pairs)

    return {
        "verdict": {"top1": share(v == t for v, t in zip(verdicts, truth)), "n": len(seen)},
        "verdict_safe_or_not": {
            "accuracy": share((v == "safe") == (t == "safe") for v, t in zip(verdicts, truth)),
            "n": len(seen),
        },
        "verdict_by_category": {"top1": by_category, "n_each": len(seen) // len(NAMES)},
        "verdict_held_out_style": {
            "top1": share(v == category for v, (category, _) in zip(unseen_verdicts, unseen)),
            "n": len(unseen),
            **style,
        },
        "answer": {
            "refuses_or_helps_rightly": share(agrees),
            "n": len(asked),
            "names_the_right_harm": share(names_harm),
            "n_harmful": len(names_harm),
            "names_the_right_thing": share(names_thing),
            "n_safe": len(names_thing),
        },
        "verdict_of_each_of_two_pictures": {
            "first_top1": share(v == pair[0][0] for (v, _), pair in zip(pair_verdicts, pairs)),
            "second_top1": share(v == pair[1][0] for (_, v), pair in zip(pair_verdicts, pairs)),
            "n": len(pairs),
        },
    }


CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [safety, guard, demo]
---
# SafeQwen demo checkpoint

A SafeQwen of {parameters:,} parameters, for trying out code and for tests. **It knows the drawings of
`safeqwen.pictograms`, not photographs, and is not for moderation**: what it says about any other picture means nothing.

It has Qwen2.5-VL's architecture, processor, special tokens and chat format, and was trained from nothing by
`scripts/build_demo.py` on {num_drawings:,} drawings. On drawings it had never seen:

| | | drawings |
|---|---|---|
| verdict, 20 categories | {verdict[top1]:.1%} | {verdict[n]} |
| verdict, line style and background never trained on | {verdict_held_out_style[top1]:.1%} | {verdict_held_out_style[n]} |
| answer refuses or helps as it should | {answer[refuses_or_helps_rightly]:.1%} | {answer[n]} |
| refusal names the right harm | {answer[names_the_right_harm]:.1%} | {answer[n_harmful]} |

All figures are in `figures.json`. The code files beside the weights hand over to the installed package `safeqwen`.
"""

STUBS = {
    "configuration_safeqwen.py": "SafeQwen2_5_VLConfig",
    "modeling_safeqwen.py": "SafeQwen2_5_VLForConditionalGeneration",
}


def save(model, processor, out):
    """Writes weights in float16, processor files for both generations of transformers, and the code stubs."""
    out.mkdir(parents=True, exist_ok=True)
    for file in out.iterdir():
        file.unlink()
    model.half().save_pretrained(out)
    processor.save_pretrained(out)
    # transformers 5.x keeps all in processor_config.json; 4.x reads a file for each part.
    processor.image_processor.to_json_file(out / "preprocessor_config.json")
    processor.video_processor.to_json_file(out / "video_preprocessor_config.json")
    # 4.x takes no list under the name that 5.x writes; both know the older name.
    tokenizer_config = json.loads((out / "tokenizer_config.json").read_text())
    if "extra_special_tokens" in tokenizer_config:
        tokenizer_config["additional_special_tokens"] = tokenizer_config.pop("extra_special_tokens")
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    for file, name in STUBS.items():
        module = file.removesuffix(".py")
        (out / file).write_text(
            f"from safeqwen.hub.{module} import {name}  # noqa: F401  the one source, in the installed package\n"
        )


def main(argv=None):
    parser = argparse.ArgumentParser(description="Build the demo checkpoint from nothing and measure it.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "safeqwen" / "demo", help="folder")
    parser.add_argument("--num-steps", type=int, default=NUM_STEPS, help="training steps (default: %(default)s)")
    args = parser.parse_args(argv)

    started = time.monotonic()
    torch.set_num_threads(NUM_THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)

    processor = build_processor()
    model = build_model(processor.tokenizer)
    num_parameters = sum(p.numel() for p in model.parameters())
    print(f"{num_parameters:,} parameters, {len(processor.tokenizer)} tokens", file=sys.stderr)
    train(model, processor, args.num_steps)
    save(model, processor, args.out)

    processor = AutoProcessor.from_pretrained(args.out)
    model = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(args.out, dtype=torch.float32).eval()
    figures = evaluate(model, processor)
    figures["training"] = {
        "seed": SEED,
        "steps": args.num_steps,
        "drawings": args.num_steps * PICTURES_PER_BATCH,
        "training_seeds": [0, args.num_steps * PICTURES_PER_BATCH - 1],
        "first_held_out_seed": FIRST_HELD_OUT_SEED,
    }
    card = CARD.format(parameters=num_parameters, num_drawings=args.num_steps * PICTURES_PER_BATCH, **figures)
    (args.out / "README.md").write_text(card)
    figures["build"] = {
        "parameters": num_parameters,
        "weights_bytes": (args.out / "model.safetensors").stat().st_size,
        "folder_bytes_without_this_file": sum(file.stat().st_size for file in args.out.iterdir()),
        "seconds_with_evaluation": round(time.monotonic() - started),
        "threads": NUM_THREADS,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
    }
    (args.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
