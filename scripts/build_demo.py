"""Builds the demo checkpoint from nothing: tokenizer, processor, weights, figures, on two cores.

    python scripts/build_demo.py [--out safeqwen/demo]

What it is: a SafeQwen of 2.4 million parameters (5 MB in float16) that knows the drawings of `safeqwen.pictograms`,
gives a verdict on them and answers about them. It knows drawings, not photographs, and is not for moderation.

The decisions, with their numbers:

- Pictures are shown at 112 x 112 pixels: 8 x 8 patches of 14, merged to 16 tokens. Half of the vision blocks attend
  within windows of 4 x 4 patches, so that the demo exercises both kinds of attention.
- Attention heads are 32 wide in both towers: serving engines take no smaller ones. The text tower has 3 layers of 192,
  the vision tower 4 of 128.
- Linear layers start at std 1 / sqrt(fan_in); the library's 0.02 does not learn at this size. The patch embedding
  starts as a whitening of drawn patches, attention in the vision tower as a look at what is near and alike (the idea
  of arXiv 2305.09828), and matrices are trained with Muon: after 250 batches of 32 drawings it told 45 % of the
  subjects apart, AdamW at 2e-3 about 13 %.
- First the vision tower learns to see: to tell the 75 subjects apart, as the categories of a guard that stands right
  behind it, in a model without layers of text (configs/demo_vision.yaml). Names of subjects teach faster than names of
  categories. Then it stays as it is, while the text tower and the guard learn to answer and to judge
  (configs/demo_text.yaml). A run that trained all three together from there ended at 96.0 % of verdicts and 89.6 % of
  answers, against 97.3 % and 94.2 % with fewer pictures. Last, all three learn together at a third of the rates
  (configs/demo_joint.yaml): 96.5 % of verdicts in the unseen style, where without that there were 95.2 %, and 95.0 %
  with as many more drawings at half the rates and the vision tower as it was.
- Every training drawing is new; nothing is seen twice. For the vision tower `safe` is one drawing in five, having 18
  subjects where each harm has 3; for the text tower it is one in three, so that refusing is no habit.
- One prompt in eight of the text tower's holds two pictures, with the label of its only harm and one for each picture.
  Without the latter 88.8 % of verdicts on the second picture were right (`guard(granularity="image")`).
- The language model learns the assistant's tokens only. The wording of an answer depends on the question, so that
  greedy decoding has one right answer.
- The held-out line style ("sketch") and background ("grid") occur in evaluation only. All figures are of the saved
  float16 file, loaded as float32. The held-out drawings were scored for six recipes before this one was chosen.
- All drawings are square. The processor takes other shapes, but what is said about them means nothing.

Same machine, same versions, same bytes.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import shutil
import subprocess
import sys
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
    plan_prompts,
    row_for,
    with_article,
    write_dataset,
)
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402
from tokenizers import processors as post_processors  # noqa: E402
from torch import nn  # noqa: E402
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


ROOT = Path(__file__).parents[1]
HOLISAFE = TAXONOMIES["holisafe"]
SEED = 2506
WORK = ROOT / "build" / "demo"  # where configs/demo_*.yaml read
NUM_THREADS = 2
NUM_VISION_DRAWINGS = 40_000
NUM_TEXT_DRAWINGS = 34_000
NUM_TEXT_PAIRS = 5_000
NUM_JOINT_DRAWINGS = 16_000
NUM_JOINT_PAIRS = 2_500
SAFE_SHARE = 0.2  # of the drawings that the vision tower learns from
SAFE_SHARE_IN_TEXT = 0.35
IMAGE_SIDE = 112  # pixels; 16 tokens
# One in four is drawn larger than the model sees it, since real files are resized. With all sides from 112 to 224, so
# that resizing blurred most of them, 96.0 % of verdicts were right.
SIDES = (IMAGE_SIDE, IMAGE_SIDE, IMAGE_SIDE, 2 * IMAGE_SIDE)

TITLES = HOLISAFE.titles
NAMES = list(TITLES)
HARMS = [name for name in NAMES if name != "safe"]
SUBJECTS = [name for category in NAMES for name in PICTOGRAMS[category]]

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


def build_model(tokenizer, num_layers=3, rms_norm_eps=1e-6, **kwargs):
    """Returns the model with random weights: `num_layers` of text, and what else the config is to hold."""

    def token_id(token):
        return tokenizer.convert_tokens_to_ids(token)

    config = SafeQwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 192,
            "intermediate_size": 448,
            "num_hidden_layers": num_layers,
            "rms_norm_eps": rms_norm_eps,
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
        **kwargs,
    )
    torch.manual_seed(SEED)
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


def run(stage, work):
    """Runs `safeqwen train` on a stage's configuration and returns the folder of the trained model."""
    command = [sys.executable, "-m", "safeqwen", "train", f"configs/demo_{stage}.yaml"]
    # With one thread sums come out the same on any number of cores; the next batch is prepared by another process.
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--output_dir", str(work / "runs" / stage)], check=True, cwd=ROOT, env=one_thread)
    return work / "runs" / stage / "final"


def train_vision(processor, work):
    """Teaches a vision tower to tell the subjects apart; returns its weights.

    The model around it has no layers of text, and a norm that scales all tokens alike: the guard sees the mean of what
    the vision tower hands over, as the text tower will. Behind a norm as usual empty tokens weigh as much as others,
    and in steps 250 to 300 29 % of subjects were told apart, where now 47 % are.
    """
    prompts = plan_prompts(HOLISAFE, NUM_VISION_DRAWINGS, 0, SAFE_SHARE)
    write_dataset(work / "vision", HOLISAFE, prompts, sides=SIDES)
    with (work / "vision" / "data.jsonl").open("w") as file:  # the subject as label, and no answer
        for prompt in prompts:
            row = {"images": row_for(prompt, HOLISAFE)["images"], "safety_label": subject(*prompt[2][0])}
            file.write(json.dumps(row) + "\n")
    model = build_model(
        processor.tokenizer,
        num_layers=0,
        rms_norm_eps=1e4,  # x * rsqrt(mean(x^2) + 1e4) is x / 100
        safety_categories=SUBJECTS,
        safety_num_hidden_layers=0,
    )
    nn.init.constant_(model.model.language_model.norm.weight, 100)
    pictures = [draw(*drawings[0], size=IMAGE_SIDE) for _, _, drawings in prompts[:320]]
    prepare_vision(model.model.visual, processor.image_processor(pictures, return_tensors="pt")["pixel_values"])
    model.save_pretrained(work / "vision_base")
    processor.save_pretrained(work / "vision_base")
    trained = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(run("vision", work), dtype=torch.float32)
    return {f"model.visual.{name}": tensor for name, tensor in trained.model.visual.state_dict().items()}


def draw_prompts(work, stage, first_seed, num_drawings, num_pairs):
    """Writes what the text tower learns from in a stage; returns the first seed that is left over."""
    singles = plan_prompts(HOLISAFE, num_drawings, first_seed, SAFE_SHARE_IN_TEXT)
    write_dataset(work / stage, HOLISAFE, singles, sides=SIDES)
    first_pair = first_seed + num_drawings
    # A pair is safe, holds one harm or holds two.
    pairs = plan_prompts(HOLISAFE, num_pairs, first_pair, 0.55, num_pictures=2)
    write_dataset(work / f"{stage}_pairs", HOLISAFE, pairs, sides=SIDES)
    return first_pair + 2 * num_pairs


def train_text(processor, vision, work):
    """Teaches text tower and guard the answer and the verdict, at first on what the vision tower sees already."""
    model = build_model(processor.tokenizer)
    model.load_state_dict(vision, strict=False)
    model.save_pretrained(work / "text_base")
    processor.save_pretrained(work / "text_base")
    first_seed = draw_prompts(work, "text", NUM_VISION_DRAWINGS, NUM_TEXT_DRAWINGS, NUM_TEXT_PAIRS)
    run("text", work)
    draw_prompts(work, "joint", first_seed, NUM_JOINT_DRAWINGS, NUM_JOINT_PAIRS)
    return SafeQwen2_5_VLForConditionalGeneration.from_pretrained(run("joint", work), dtype=torch.float32)


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
    args = parser.parse_args(argv)

    torch.set_num_threads(NUM_THREADS)

    processor = build_processor()
    shutil.rmtree(WORK, ignore_errors=True)
    vision = train_vision(processor, WORK)
    model = train_text(processor, vision, WORK)
    save(model, processor, args.out)

    processor = AutoProcessor.from_pretrained(args.out)
    model = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(args.out, dtype=torch.float32).eval()
    figures = evaluate(model, processor)
    num_parameters = sum(p.numel() for p in model.parameters())
    num_drawings = {
        "vision": NUM_VISION_DRAWINGS,
        "text": NUM_TEXT_DRAWINGS + 2 * NUM_TEXT_PAIRS,
        "joint": NUM_JOINT_DRAWINGS + 2 * NUM_JOINT_PAIRS,
    }
    figures["training"] = {
        "drawings": num_drawings,
        "training_seeds": [0, sum(num_drawings.values()) - 1],
        "first_held_out_seed": FIRST_HELD_OUT_SEED,
    }
    card = CARD.format(
        parameters=num_parameters,
        num_drawings=sum(num_drawings.values()),
        held_out=figures["verdict_held_out_style"],
        **figures,
    )
    (args.out / "README.md").write_text(card)
    figures["build"] = {
        "parameters": num_parameters,
        "weights_bytes": (args.out / "model.safetensors").stat().st_size,
        "folder_bytes_without_this_file": sum(file.stat().st_size for file in args.out.iterdir()),
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
