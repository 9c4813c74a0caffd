"""Builds the demo checkpoint from nothing: tokenizer, processor, weights, figures, on two cores.

    python -m tools.demo.build_demo [--out safeqwen/demo]

What it is: a SafeQwen of 2.4 million parameters (5 MB in float16) that knows the drawings of `pictograms.py`, alone
and in the scenes of `scenes.py`, gives a verdict on them and answers about them. It knows drawings, not photographs,
and is not for moderation.

The decisions, with their numbers:

- Whatever its size, a picture is shown with about 224 x 224 pixels: 16 x 16 patches of 14, merged to 64 tokens. Half
  of the vision blocks attend within windows of 4 x 4 patches, so that the demo exercises both kinds of attention.
- Attention heads are 32 wide in both towers: serving engines take no smaller ones. The text tower has 3 layers of 192,
  the vision tower 4 of 128.
- Linear layers start at std 1 / sqrt(fan_in); the library's 0.02 does not learn at this size. The patch embedding
  starts as a whitening of drawn patches, attention in the vision tower as a look at what is near and alike (the idea
  of arXiv 2305.09828), and matrices are trained with Muon: after 250 batches of 32 drawings it told 45 % of the
  subjects apart, AdamW at 2e-3 about 13 %.
- First the vision tower learns to see each drawing where it is (`vision.py`). Then it stays as it is, while the text
  tower and the guard learn to answer and to judge (configs/text.yaml). Last, all three learn together at a third of
  the rates (configs/joint.yaml), and the weights are the means of those before and after it (arXiv 2109.01903): on
  validation seeds scenes were right 94, 90 and 94 % before, after and between, the unseen style 92, 97 and 98 %.
- All that training draws is drawn "by hand": most lines thinner than in evaluation, and many of these doubled or
  tripled. Without it the unseen line style cost 10 points and more. A third of the last stage is on ruled paper, since
  the unseen grid alone cost 3.
- A scene's answer names its harm, or its largest thing "and more"; without a largest thing a row has no answer.
- Every training picture is new; nothing is seen twice. For the text tower one drawing in three is safe, so that
  refusing is no habit.
- One prompt in ten of the text tower's holds two pictures, with the label of its only harm and one for each picture,
  for `guard(granularity="image")`.
- The language model learns the assistant's tokens only. The wording of an answer depends on the question, so that
  greedy decoding has one right answer.
- The held-out line style ("sketch") and background ("grid") occur in evaluation only. All figures are of the saved
  float16 file, loaded as float32. Recipes were compared on seeds of their own, from 900,000 on; the held-out
  ones, from 1,000,000 on, were scored once for the checkpoint that is here.

Same machine, same versions, same bytes.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import PIL
import torch
import transformers
from torch import nn
from transformers import AutoProcessor, GenerationConfig

from safeqwen.hub.configuration_safeqwen import SafeQwen2_5_VLConfig
from safeqwen.hub.modeling_safeqwen import SafeQwen2_5_VLForConditionalGeneration
from safeqwen.processor import save_processor
from safeqwen.publishing.export import prompt_ids
from tools.demo import vision
from tools.demo.draw_dataset import TAXONOMIES, plan_prompts, write_dataset
from tools.demo.figures import evaluate
from tools.demo.pictograms import FIRST_HELD_OUT_SEED, RULED_BACKGROUND, draw
from tools.demo.processor import build_processor
from tools.demo.scenes import HARMS, write_scenes


ROOT = Path(__file__).parents[2]
HOLISAFE = TAXONOMIES["holisafe"]
SEED = 2506
WORK = ROOT / "build" / "demo"  # where configs/{text,joint}.yaml read
NUM_THREADS = 1  # sums come out the same on any number of cores; the next batch is prepared by another process
FIRST_VISION_SEED = 200_000
VISION_PASSES = (  # by the mean of each drawing's tokens, then by each of them too
    {"num": 64_000, "rate": 0.03, "each_token": False},
    {"num": 16_000, "rate": 0.02, "each_token": True},
)
NUM_VISION_PICTURES = sum(one["num"] for one in VISION_PASSES)
NUM_TEXT = {"num_drawings": 12_000, "num_pairs": 3_000, "num_scenes": 16_000}
NUM_JOINT = {"num_drawings": 3_500, "num_pairs": 1_000, "num_scenes": 5_500}
NUM_RULED = {"num_drawings": 2_500, "num_pairs": 500, "num_scenes": 2_500}
SAFE_SHARE, SAFE_SHARE_IN_SCENES = 0.35, 0.3


def build_model(tokenizer, num_layers=3, **kwargs):
    """Returns the model with random weights: `num_layers` of text, and what else the config is to hold."""

    def token_id(token):
        return tokenizer.convert_tokens_to_ids(token)

    config = SafeQwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 192,
            "intermediate_size": 448,
            "num_hidden_layers": num_layers,
            "rms_norm_eps": 1e-6,
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
    """Trains as a stage's configuration says, and returns the folder of the trained model."""
    command = [sys.executable, "-m", "tools.demo.muon", f"tools/demo/configs/{stage}.yaml"]
    env = {**os.environ, "OMP_NUM_THREADS": str(NUM_THREADS)}
    subprocess.run([*command, "--output_dir", str(work / "runs" / stage)], check=True, cwd=ROOT, env=env)
    return work / "runs" / stage / "final"


def train_vision(processor):
    """Returns the weights of a vision tower that has learnt to see drawings, by their names in the model."""
    subjects = {"safety_categories": vision.SUBJECTS, "safety_num_hidden_layers": 0}
    visual = build_model(processor.tokenizer, num_layers=0, **subjects).model.visual
    pictures = [draw(HARMS[i % len(HARMS)] if i % 5 else "safe", i, size=112) for i in range(320)]
    small = build_processor(112 * 112).image_processor
    prepare_vision(visual, small(pictures, return_tensors="pt")["pixel_values"])
    head, first_seed = vision.build_head(visual.config.out_hidden_size), FIRST_VISION_SEED
    for one in VISION_PASSES:
        vision.train(visual, head, processor.image_processor, first_seed, **one)
        first_seed += one["num"]
    return {f"model.visual.{name}": tensor for name, tensor in visual.state_dict().items()}


def draw_prompts(work, stage, first_seed, num_drawings, num_pairs, num_scenes, background=None):
    """Writes what the text tower learns from in a stage; returns the first seed that is left over."""
    style = {"by_hand": True, "background": background}
    singles = plan_prompts(HOLISAFE, num_drawings, first_seed, SAFE_SHARE)
    write_dataset(work / stage, HOLISAFE, singles, sides=vision.SIDES, **style)
    first_seed += num_drawings
    # A pair is safe, holds one harm or holds two.
    pairs = plan_prompts(HOLISAFE, num_pairs, first_seed, 0.55, num_pictures=2)
    write_dataset(work / f"{stage}_pairs", HOLISAFE, pairs, sides=vision.SIDES, **style)
    first_seed += 2 * num_pairs
    write_scenes(work / f"{stage}_scenes", num_scenes, first_seed, SAFE_SHARE_IN_SCENES, **style)
    return first_seed + num_scenes


def train_text(processor, vision_weights, work):
    """Teaches text tower and guard the answer and the verdict, at first on what the vision tower sees already.

    Returns:
        `tuple`: (the trained model, the number of seeds that were used)
    """
    model = build_model(processor.tokenizer)
    model.load_state_dict(vision_weights, strict=False)
    model.save_pretrained(work / "text_base")
    processor.save_pretrained(work / "text_base")
    first_seed = draw_prompts(work, "text", 0, **NUM_TEXT)
    before = run("text", work)
    first_seed = draw_prompts(work, "joint", first_seed, **NUM_JOINT)
    num_seeds = draw_prompts(work, "ruled", first_seed, **NUM_RULED, background=RULED_BACKGROUND)
    return mean_of_models(before, run("joint", work)), num_seeds


def mean_of_models(*folders):
    """Returns a model whose parameters are the means of those of two folders of one training."""
    first, second = [
        SafeQwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32) for folder in folders
    ]
    with torch.no_grad():
        for one, other in zip(first.parameters(), second.parameters(), strict=True):
            one.lerp_(other, 0.5)
    return first


CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [safety, guard, demo]
---
# SafeQwen demo checkpoint

A SafeQwen of {parameters:,} parameters, for trying out code and for tests. **It knows the drawings of
`tools/demo/pictograms.py`, not photographs, and is not for moderation**: what it says about any other picture means
nothing. It knows them alone and in scenes of up to four (`tools/demo/scenes.py`), at most one of them harmful, on
pictures of any shape from 1:3 to 3:1. A drawing should take up a fifth of the picture or more.

It has Qwen2.5-VL's architecture, processor, special tokens and chat format, and was trained from nothing by
`tools/demo/build_demo.py` on {num_pictures:,} pictures. On drawings it had never seen:

| | | pictures |
|---|---|---|
| verdict on a drawing, 20 categories | {verdict[top1]:.1%} | {verdict[n]} |
| the same, line style and background never trained on | {held_out[top1]:.1%} | {held_out[n]} |
| answer refuses when it should and helps when it should | {answer[refuses_or_helps_rightly]:.1%} | {answer[n]} |
| refusal names the right harm | {answer[names_the_right_harm]:.1%} | {answer[n_harmful]} |
| verdict on a scene with one harm | {scenes[verdict][top1]:.1%} | {scenes[verdict][n]} |
| verdict on a scene without harm | {scenes[verdict_without_harm][top1]:.1%} | {scenes[verdict_without_harm][n]} |

All figures are in `figures.json`. The code files are SafeQwen's: with `trust_remote_code=True` transformers loads this
folder from wherever it lies, without the package `safeqwen`.
"""


def save(model, processor, out):
    """Writes weights in float16, the code files, and the processor's files for both generations of transformers."""
    out.mkdir(parents=True, exist_ok=True)
    for file in out.iterdir():
        file.unlink()
    model.config.safety_prompt_ids = prompt_ids(processor)
    model.half().save_pretrained(out)
    save_processor(processor, out)


def describe(out, num_pictures):
    """Measures the saved model, writes figures.json and the README beside it, and returns the figures.

    Args:
        num_pictures (`int`): that training has used.
    """
    processor = AutoProcessor.from_pretrained(out)
    model = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()
    figures = evaluate(model, processor)
    num_parameters = sum(p.numel() for p in model.parameters())
    figures["training"] = {
        "pictures": num_pictures,
        "training_seeds": [0, FIRST_VISION_SEED + NUM_VISION_PICTURES - 1],
        "first_held_out_seed": FIRST_HELD_OUT_SEED,
    }
    card = CARD.format(
        parameters=num_parameters,
        num_pictures=num_pictures,
        held_out=figures["verdict_held_out_style"],
        **figures,
    )
    (out / "README.md").write_text(card)
    figures["build"] = {
        "parameters": num_parameters,
        "weights_bytes": (out / "model.safetensors").stat().st_size,
        "folder_bytes_without_this_file": sum(file.stat().st_size for file in out.iterdir() if file.is_file()),
        "threads": NUM_THREADS,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
    }
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def main(argv=None):
    parser = argparse.ArgumentParser(description="Build the demo checkpoint from nothing and measure it.")
    parser.add_argument("--out", type=Path, default=ROOT / "safeqwen" / "demo", help="folder")
    args = parser.parse_args(argv)

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the drawing processes are forked
    torch.set_num_threads(NUM_THREADS)

    shutil.rmtree(WORK, ignore_errors=True)
    processor = build_processor()
    model, num_pictures = train_text(processor, train_vision(processor), WORK)
    save(model, processor, args.out)
    print(json.dumps(describe(args.out, NUM_VISION_PICTURES + num_pictures), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
