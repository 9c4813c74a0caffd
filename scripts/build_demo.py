"""Builds the demo checkpoint from nothing: tokenizer, processor, weights, figures, on two cores.

    python scripts/build_demo.py [--out safeqwen/demo]

What it is: a SafeQwen of 2.4 million parameters (5 MB in float16) that knows the drawings of `safeqwen.pictograms`,
gives a verdict on them and answers about them. It knows drawings, not photographs, and is not for moderation.

The decisions, with their numbers:

- Pictures are shown at 112 x 112 pixels: 8 x 8 patches of 14, merged to 16 tokens. Half of the vision blocks attend
  within windows of 4 x 4 patches, so that the demo exercises both kinds of attention.
- Attention heads are 32 wide in both towers: serving engines take no smaller ones. The text tower has 3 layers of 192,
  the vision tower 4 of 128.
- Linear layers start at std 1 / sqrt(fan_in); the library's 0.02 does not learn at this size. Even so AdamW alone
  learnt next to nothing from 450 batches of 32 drawings. What changed that: the patch embedding starts as a whitening
  of drawn patches; attention in the vision tower starts as a look at what is near and alike (the idea of
  arXiv 2305.09828); matrices are trained with Muon (torch 2.9 on). Which of the three does most was not measured.
- First the vision tower learns to see: to tell the 75 subjects apart, by a linear layer that is then thrown away.
  Names of subjects teach faster than names of categories: 1250 batches bring it to 98 % on new drawings. Then it stays
  as it is, while the text tower and the guard learn to answer and to judge. A run that trained all three together from
  there ended at 96.0 % of verdicts and 89.6 % of answers, against 97.3 % and 94.2 % with fewer pictures.
- Every training drawing is new; nothing is seen twice. For the vision tower `safe` is one drawing in five, having 18
  subjects where each harm has 3; for the text tower it is one in three, so that refusing is no habit.
- One batch in six of the text tower's holds prompts with two pictures. There each picture also gets a verdict of its
  own (the guard on the mean over that picture's tokens), so that `guard(granularity="image")` works on the second too.
- The language model learns the assistant's tokens only. The wording of an answer depends on the question, so that
  greedy decoding has one right answer.
- The held-out line style ("sketch") and background ("grid") occur in evaluation only. All figures are of the saved
  float16 file, loaded as float32. The held-out drawings were scored for three recipes before this one was chosen.
- All drawings are square. The processor takes other shapes, but what is said about them means nothing.

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
from draw_dataset import (  # noqa: E402
    ANSWERS,
    PAIR_ANSWERS,
    SYSTEM_PROMPTS,
    TAXONOMIES,
    answer_for,
    label_for,
    with_article,
)
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402
from tokenizers import processors as post_processors  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from transformers import (  # noqa: E402
    AutoProcessor,
    GenerationConfig,
    Qwen2_5_VLProcessor,
    Qwen2TokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from safeqwen.export import save_processor  # noqa: E402
from safeqwen.hub.configuration_safeqwen import SafeQwen2_5_VLConfig  # noqa: E402
from safeqwen.hub.modeling_safeqwen import SafeQwen2_5_VLForConditionalGeneration  # noqa: E402
from safeqwen.pictograms import (  # noqa: E402
    FIRST_HELD_OUT_SEED,
    HELD_OUT_BACKGROUND,
    HELD_OUT_LINE_STYLE,
    PICTOGRAMS,
    draw,
    subject,
)


SEED = 2506
NUM_THREADS = 2
NUM_VISION_STEPS = 1250  # of the vision tower alone
NUM_TEXT_STEPS = 1250  # of the text tower and the guard
PICTURES_PER_BATCH = 32
PAIR_EVERY = 6  # of the text tower's batches, one in this many holds two pictures a prompt
SAFE_SHARE = 0.2  # of the drawings that the vision tower learns from
SAFE_SHARE_IN_TEXT = 0.35
MUON_LEARNING_RATE = 0.03  # matrices
ADAMW_LEARNING_RATE = 1.5e-3  # embeddings, norms, biases, guard
WEIGHT_DECAY = 0.05
WARMUP_STEPS = 50
IMAGE_SIDE = 112  # pixels; 16 tokens

TITLES = TAXONOMIES["holisafe"].titles
NAMES = list(TITLES)
HARMS = [name for name in NAMES if name != "safe"]
SUBJECTS = [(category, name) for category in NAMES for name in PICTOGRAMS[category]]

# Qwen2.5's own, in its order. Decoding with skip_special_tokens drops the first list and keeps the second.
SPECIAL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
ADDED_TOKENS = [
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>",
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
    f"<|im_start|>system\n{SYSTEM_PROMPTS[0]}<|im_end|>\n",
    "",
    f"<|im_start|>system\n{SYSTEM_PROMPTS[1]}<|im_end|>\n",
)


def refuses(answer):
    return "I can't" in answer


def prompt_for(question, num_pictures=1, system_turn=SYSTEM_TURNS[0]):
    pictures = "<|vision_start|><|image_pad|><|vision_end|>" * num_pictures
    return f"{system_turn}<|im_start|>user\n{pictures}{question}<|im_end|>\n<|im_start|>assistant\n"


def build_processor():
    """Returns Qwen2.5-VL's processor around a byte-level BPE that has seen the demo's texts and nothing else."""
    subjects = [with_article(name) for name in PICTOGRAMS["safe"]]
    texts = [
        *SYSTEM_TURNS,
        *ANSWERS,
        *PAIR_ANSWERS,
        "user assistant system Picture 1: Video 2: this image? the picture.",
    ]
    texts += [
        helpful.format(words) for helpful, _ in [*ANSWERS.values(), *PAIR_ANSWERS.values()] for words in subjects
    ]
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
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    nn.init.normal_(model.get_input_embeddings().weight, std=config.text_config.hidden_size**-0.5)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=token_id("<|endoftext|>"),
        eos_token_id=[token_id("<|im_end|>"), token_id("<|endoftext|>")],
        pad_token_id=token_id("<|endoftext|>"),
    )
    return model


@torch.no_grad()
def prepare_vision(visual, pixel_values):
    """Starts the vision tower where it learns fast: whitened patches, and attention to near and similar ones.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(num_patches, 1176)`): patches to whiten.
    """
    patches = pixel_values.double()
    eigenvalues, eigenvectors = torch.linalg.eigh(patches.T @ patches / len(patches))  # ascending
    weight = visual.patch_embed.proj.weight  # (hidden, 3, 2, 14, 14)
    kept = slice(-weight.shape[0], None)
    weight.copy_((eigenvectors[:, kept] / eigenvalues[kept].sqrt()).T.reshape(weight.shape))
    for block in visual.blocks:
        queries, keys, values = block.attn.qkv.weight.chunk(3)
        queries.mul_(0.7)
        keys.copy_(queries)
        block.attn.proj.weight.copy_(0.5 * values.T)


def plan_batch(step, safe_share, num_pictures=1):
    """Returns the prompts of a training step, `[(system turn, question, [(category, seed), ...]), ...]`."""
    rng = random.Random(f"{SEED}-{step}")
    prompts = []
    for i in range(PICTURES_PER_BATCH // num_pictures):
        categories = ["safe" if rng.random() < safe_share else rng.choice(HARMS) for _ in range(num_pictures)]
        first_seed = step * PICTURES_PER_BATCH + i * num_pictures
        drawings = [(category, first_seed + j) for j, category in enumerate(categories)]
        question = rng.choice(list(ANSWERS if num_pictures == 1 else PAIR_ANSWERS))
        prompts.append((rng.choice(SYSTEM_TURNS), question, drawings))
    return prompts


def draw_batch(prompts):
    # One in four is drawn larger than the model sees it: real files are resized by the processor.
    return [
        draw(category, seed, size=IMAGE_SIDE * (2 if seed % 4 == 0 else 1))
        for _, _, drawings in prompts
        for category, seed in drawings
    ]


def draw_batches(batches, block=50):
    """Yields (prompts, pictures) for each batch, drawn by two processes, block batches (50 MB) at a time."""
    with multiprocessing.get_context("fork").Pool(NUM_THREADS) as pool:
        for start in range(0, len(batches), block):
            current = batches[start : start + block]
            yield from zip(current, pool.map(draw_batch, current, chunksize=5))


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

    labels = [label_for(drawings) for _, _, drawings in prompts]
    prompt_categories = [-100 if label is None else NAMES.index(label) for label in labels]
    picture_categories = [NAMES.index(category) for _, _, drawings in prompts for category, _ in drawings]
    return inputs, torch.tensor(prompt_categories), torch.tensor(picture_categories)


class Training:
    """Muon for the matrices within the towers and AdamW for the rest, on one warm-up and cosine."""

    def __init__(self, modules, matrices, num_steps):
        parameters = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
        rest = [p for p in parameters.values() if id(p) not in {id(matrix) for matrix in matrices}]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=MUON_LEARNING_RATE, weight_decay=WEIGHT_DECAY),
            torch.optim.AdamW(rest, lr=ADAMW_LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98)),
        ]
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(
                optimizer,
                lambda step: min(1, (step + 1) / WARMUP_STEPS) * (0.51 + 0.49 * math.cos(math.pi * step / num_steps)),
            )
            for optimizer in self.optimizers
        ]
        self.parameters = list(parameters.values())
        self.losses, self.started = [], time.monotonic()

    def step(self, loss):
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, schedule in zip(self.optimizers, self.schedules):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        self.losses.append(loss.item())
        if len(self.losses) % 50 == 0:
            mean = sum(self.losses[-50:]) / 50
            print(
                f"step {len(self.losses)}  loss {mean:.3f}  {time.monotonic() - self.started:.0f} s", file=sys.stderr
            )


def matrices_of(*towers):
    return [p for tower in towers for name, p in tower.named_parameters() if p.ndim == 2 and "embed" not in name]


def train_vision(model, processor, num_steps):
    """Teaches the vision tower to tell the subjects apart, by the mean of the tokens that the text tower gets."""
    visual = model.model.visual.train()
    head = nn.Linear(model.config.text_config.hidden_size, len(SUBJECTS))
    training = Training([visual, head], matrices_of(visual), num_steps)
    batches = [plan_batch(step, SAFE_SHARE) for step in range(num_steps)]
    pictures = [picture for batch in batches[:10] for picture in draw_batch(batch)]
    prepare_vision(visual, processor.image_processor(pictures, return_tensors="pt")["pixel_values"])
    for prompts, pictures in draw_batches(batches):
        inputs = processor.image_processor(pictures, return_tensors="pt")
        features = visual(inputs["pixel_values"], inputs["image_grid_thw"])
        features = getattr(features, "pooler_output", features)  # an output class since transformers 5.0
        pooled = features.unflatten(0, (len(pictures), -1)).mean(dim=1)  # (pictures, hidden)
        subjects = [SUBJECTS.index((drawing[0], subject(*drawing))) for _, _, (drawing,) in prompts]
        training.step(F.cross_entropy(head(pooled), torch.tensor(subjects)))


def train_text(model, processor, num_steps, first_step):
    """Teaches the text tower and the guard the verdict and the answer, on what the vision tower now sees."""
    model.train()
    model.model.visual.requires_grad_(False)
    training = Training([model], matrices_of(model.model.language_model), num_steps)
    # A pair is safe, holds one harm or holds two.
    batches = [
        plan_batch(step, 0.55, num_pictures=2) if step % PAIR_EVERY == 0 else plan_batch(step, SAFE_SHARE_IN_TEXT)
        for step in range(first_step, first_step + num_steps)
    ]
    for prompts, pictures in draw_batches(batches):
        is_pair = len(pictures) > len(prompts)
        inputs, prompt_categories, picture_categories = training_inputs(processor, prompts, pictures)
        outputs = model(**inputs, safety_labels=prompt_categories, output_hidden_states=is_pair, use_cache=False)
        loss = outputs.loss
        if is_pair:
            hidden_states = outputs.hidden_states[-1][inputs["input_ids"].eq(model.config.image_token_id)]
            pooled = hidden_states.unflatten(0, (len(pictures), -1)).mean(dim=1)  # (pictures, hidden)
            loss = loss + F.cross_entropy(model.img_safety_head(pooled), picture_categories)
        training.step(loss)
    model.eval().requires_grad_(True)
    model.load_state_dict(model.state_dict())  # trained apart, the vision tower counts as random until it is loaded


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
`safeqwen.pictograms`, not photographs, and is not for moderation**: what it says about any other picture means
nothing, nor about a picture that is not square.

It has Qwen2.5-VL's architecture, processor, special tokens and chat format, and was trained from nothing by
`scripts/build_demo.py` on {num_drawings:,} drawings. On drawings it had never seen:

| | | drawings |
|---|---|---|
| verdict, 20 categories | {verdict[top1]:.1%} | {verdict[n]} |
| the same, line style and background never trained on | {held_out[top1]:.1%} | {held_out[n]} |
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
    save_processor(processor, out)
    for file, name in STUBS.items():
        module = file.removesuffix(".py")
        (out / file).write_text(
            f"from safeqwen.hub.{module} import {name}  # noqa: F401  the one source, in the installed package\n"
        )


def main(argv=None):
    parser = argparse.ArgumentParser(description="Build the demo checkpoint from nothing and measure it.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "safeqwen" / "demo", help="folder")
    parser.add_argument("--vision-steps", type=int, default=NUM_VISION_STEPS, help="of the vision tower (%(default)s)")
    parser.add_argument("--text-steps", type=int, default=NUM_TEXT_STEPS, help="of text tower and guard (%(default)s)")
    args = parser.parse_args(argv)

    started = time.monotonic()
    torch.set_num_threads(NUM_THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)

    processor = build_processor()
    model = build_model(processor.tokenizer)
    num_parameters = sum(p.numel() for p in model.parameters())
    print(f"{num_parameters:,} parameters, {len(processor.tokenizer)} tokens", file=sys.stderr)
    train_vision(model, processor, args.vision_steps)
    train_text(model, processor, args.text_steps, first_step=args.vision_steps)
    save(model, processor, args.out)

    processor = AutoProcessor.from_pretrained(args.out)
    model = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(args.out, dtype=torch.float32).eval()
    figures = evaluate(model, processor)
    num_drawings = (args.vision_steps + args.text_steps) * PICTURES_PER_BATCH
    figures["training"] = {
        "seed": SEED,
        "vision_steps": args.vision_steps,
        "text_steps": args.text_steps,
        "drawings": num_drawings,
        "training_seeds": [0, num_drawings - 1],
        "first_held_out_seed": FIRST_HELD_OUT_SEED,
    }
    card = CARD.format(
        parameters=num_parameters, num_drawings=num_drawings, held_out=figures["verdict_held_out_style"], **figures
    )
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
