"""Builds the demo checkpoint from nothing: tokenizer, processor, weights, figures, on two cores.

    python -m tools.demo.build_demo [--out safeqwen/demo]

What it is: a SafeQwen of 2.4 million parameters (5 MB in float16) that knows the drawings of `pictograms.py`, alone
and in the scenes of `scenes.py`, gives a verdict on them and answers about them. It knows drawings, not photographs,
and is not for moderation.

The decisions, with their numbers:

- Whatever its size, a picture is shown with about 168 x 168 pixels: 12 x 12 patches of 14, merged to 36 tokens. Half
  of the vision blocks attend within windows of 4 x 4 patches, so that the demo exercises both kinds of attention.
- Attention heads are 32 wide in both towers: serving engines take no smaller ones. The text tower has 3 layers of 192,
  the vision tower 4 of 128.
- Linear layers start at std 1 / sqrt(fan_in); the library's 0.02 does not learn at this size. The patch embedding
  starts as a whitening of drawn patches, attention in the vision tower as a look at what is near and alike (the idea
  of arXiv 2305.09828), and matrices are trained with Muon: after 250 batches of 32 drawings it told 45 % of the
  subjects apart, AdamW at 2e-3 about 13 %.
- First the vision tower learns to see: to tell the 75 subjects apart, as the categories of a guard that stands right
  behind it, in a model without layers of text (configs/vision.yaml). Names of subjects teach faster than names of
  categories. Then it stays as it is, while the text tower and the guard learn to answer and to judge
  (configs/text.yaml). A run that trained all three together from there ended at 96.0 % of verdicts and 89.6 % of
  answers, against 97.3 % and 94.2 % with fewer pictures. Then all three learn together at a third of the rates
  (configs/joint.yaml): 96.5 % of verdicts in the unseen style, where without that there were 95.2 %, and 95.0 %
  with as many more drawings at half the rates and the vision tower as it was. All this is at 112 x 112 pixels, that
  is 16 tokens, and one drawing a picture; it is what these figures are of.
- From there it learns scenes, in two more stages. The vision tower, again by itself and by subjects, sees drawings of
  all sizes and places, and scenes labelled by their harmful drawing (configs/scales.yaml); then all three learn on
  single drawings, scenes and pairs (configs/scenes.yaml). What started with all three, pictures of up to 224 x 224
  pixels and categories for labels got 54 to 60 % of verdicts right from step 1 to 125 and did not move.
- A scene's answer names its harm, or its largest thing "and more"; without a largest thing a row has no answer.
- Every training drawing is new; nothing is seen twice. For the vision tower `safe` is one drawing in five, having 18
  subjects where each harm has 3; for the text tower it is one in three, so that refusing is no habit.
- One prompt in eight of the text tower's holds two pictures, with the label of its only harm and one for each picture.
  Without the latter 88.8 % of verdicts on the second picture were right (`guard(granularity="image")`).
- The language model learns the assistant's tokens only. The wording of an answer depends on the question, so that
  greedy decoding has one right answer.
- The held-out line style ("sketch") and background ("grid") occur in evaluation only. All figures are of the saved
  float16 file, loaded as float32. The held-out drawings were scored for six recipes of the first three stages before
  one was chosen, and once after the last stage: scenes were tried on seeds of their own, from 900,000 on.

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
from tools.demo.draw_dataset import TAXONOMIES, plan_prompts, write_dataset
from tools.demo.figures import evaluate
from tools.demo.pictograms import FIRST_HELD_OUT_SEED, PICTOGRAMS, draw, subject
from tools.demo.processor import build_processor
from tools.demo.scenes import write_scenes


ROOT = Path(__file__).parents[2]
HOLISAFE = TAXONOMIES["holisafe"]
SEED = 2506
WORK = ROOT / "build" / "demo"  # where configs/{vision,text,joint}.yaml read
NUM_THREADS = 2
NUM_VISION_DRAWINGS = 40_000
NUM_TEXT_DRAWINGS = 34_000
NUM_TEXT_PAIRS = 5_000
NUM_JOINT_DRAWINGS = 16_000
NUM_JOINT_PAIRS = 2_500
NUM_SCALES_DRAWINGS = 12_000
NUM_SCALES_ALONE = 6_000  # one drawing somewhere on a picture
NUM_SCALES_SCENES = 16_000
NUM_SCENES_DRAWINGS = 12_000
NUM_SCENES = 24_000
NUM_SCENES_PAIRS = 1_500
SAFE_SHARE = 0.2  # of the drawings that the vision tower learns from
SAFE_SHARE_IN_TEXT = 0.35
SAFE_SHARE_IN_SCENES = 0.3
IMAGE_SIDE = 112  # pixels, in the first three stages; 16 tokens
# One in four is drawn larger than the model sees it, since real files are resized. With all sides from 112 to 224, so
# that resizing blurred most of them, 96.0 % of verdicts were right.
SIDES = (IMAGE_SIDE, IMAGE_SIDE, IMAGE_SIDE, 2 * IMAGE_SIDE)
SCENE_SIDES = (112, 168, 224, 448)  # of single drawings beside scenes, all seen at 224
PENS = (0.5, 1.1)  # of drawings in scenes: finer lines than usual

SUBJECTS = [name for category in HOLISAFE.titles for name in PICTOGRAMS[category]]


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
    """Trains as a stage's configuration says, and returns the folder of the trained model."""
    command = [sys.executable, "-m", "tools.demo.muon", f"tools/demo/configs/{stage}.yaml"]
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
    label_by_subjects(work / "vision", [subject(*drawing) for *_, [drawing] in prompts])
    model = build_vision_model(processor)
    pictures = [draw(*drawings[0], size=IMAGE_SIDE) for _, _, drawings in prompts[:320]]
    prepare_vision(model.model.visual, processor.image_processor(pictures, return_tensors="pt")["pixel_values"])
    model.save_pretrained(work / "vision_base")
    processor.save_pretrained(work / "vision_base")
    return vision_weights(run("vision", work))


def build_vision_model(processor):
    model = build_model(
        processor.tokenizer,
        num_layers=0,
        rms_norm_eps=1e4,  # x * rsqrt(mean(x^2) + 1e4) is x / 100
        safety_categories=SUBJECTS,
        safety_num_hidden_layers=0,
    )
    nn.init.constant_(model.model.language_model.norm.weight, 100)
    return model


def vision_weights(folder):
    """Returns the weights of a model's vision tower by their names in the model."""
    trained = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return {f"model.visual.{name}": tensor for name, tensor in trained.model.visual.state_dict().items()}


def label_by_subjects(folder, subjects):
    """Makes the subjects the labels of a dataset's rows, which lose their answers."""
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    with (folder / "data.jsonl").open("w") as file:
        for row, name in zip(rows, subjects, strict=True):
            file.write(json.dumps({"images": row["images"], "safety_label": name}) + "\n")


def draw_prompts(work, stage, first_seed, num_drawings, num_pairs, sides=SIDES):
    """Writes what the text tower learns from in a stage; returns the first seed that is left over."""
    singles = plan_prompts(HOLISAFE, num_drawings, first_seed, SAFE_SHARE_IN_TEXT)
    write_dataset(work / stage, HOLISAFE, singles, sides=sides)
    first_pair = first_seed + num_drawings
    # A pair is safe, holds one harm or holds two.
    pairs = plan_prompts(HOLISAFE, num_pairs, first_pair, 0.55, num_pictures=2)
    write_dataset(work / f"{stage}_pairs", HOLISAFE, pairs, sides=sides)
    return first_pair + 2 * num_pairs


def train_text(processor, vision, work):
    """Teaches text tower and guard the answer and the verdict, at first on what the vision tower sees already.

    Returns:
        `tuple`: (the trained model, the first seed that is left over)
    """
    model = build_model(processor.tokenizer)
    model.load_state_dict(vision, strict=False)
    model.save_pretrained(work / "text_base")
    processor.save_pretrained(work / "text_base")
    first_seed = draw_prompts(work, "text", NUM_VISION_DRAWINGS, NUM_TEXT_DRAWINGS, NUM_TEXT_PAIRS)
    run("text", work)
    first_seed = draw_prompts(work, "joint", first_seed, NUM_JOINT_DRAWINGS, NUM_JOINT_PAIRS)
    trained = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(run("joint", work), dtype=torch.float32)
    return trained, first_seed


def draw_scales(work, first_seed):
    """Writes drawings that fill a picture and drawings that do not; returns the first seed that is left over."""
    prompts = plan_prompts(HOLISAFE, NUM_SCALES_DRAWINGS, first_seed, SAFE_SHARE)
    write_dataset(work / "scales", HOLISAFE, prompts, sides=SCENE_SIDES)
    label_by_subjects(work / "scales", [subject(*drawing) for *_, [drawing] in prompts])
    first_seed += NUM_SCALES_DRAWINGS
    rows = write_scenes(work / "scales_alone", NUM_SCALES_ALONE, first_seed, 0.4, num_drawings=1, least_seen=76, pens=PENS)
    label_by_subjects(work / "scales_alone", [drawn for _, drawn in rows])
    first_seed += NUM_SCALES_ALONE
    rows = write_scenes(work / "scales_scenes", NUM_SCALES_SCENES, first_seed, 0.0, least_seen=84, pens=PENS)
    label_by_subjects(work / "scales_scenes", [drawn for _, drawn in rows])
    return first_seed + NUM_SCALES_SCENES


def train_scales(processor, singles, work, first_seed):
    """Teaches the vision tower drawings of all sizes, and to tell the harmful one from those around it.

    Args:
        singles (`Path`): the model that knows single drawings.

    Returns:
        `tuple`: (weights of the vision tower, the first seed that is left over)
    """
    model = build_vision_model(processor)
    model.load_state_dict(vision_weights(singles), strict=False)
    model.save_pretrained(work / "scales_base")
    processor.save_pretrained(work / "scales_base")
    first_seed = draw_scales(work, first_seed)
    return vision_weights(run("scales", work)), first_seed


def train_scenes(processor, singles, vision, work, first_seed):
    """Teaches all parts scenes; returns the trained model, and the first seed that is left over."""
    model = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(singles, dtype=torch.float32)
    model.load_state_dict(vision, strict=False)
    model.save_pretrained(work / "scenes_base")
    processor.save_pretrained(work / "scenes_base")
    sizes = NUM_SCENES_DRAWINGS, NUM_SCENES_PAIRS
    first_seed = draw_prompts(work, "scenes", first_seed, *sizes, sides=SCENE_SIDES)
    write_scenes(work / "scenes_scenes", NUM_SCENES, first_seed, SAFE_SHARE_IN_SCENES, pens=PENS)
    trained = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(run("scenes", work), dtype=torch.float32)
    return trained, first_seed + NUM_SCENES


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
pictures of any shape from 1:3 to 3:1. A drawing should take up a ninth of the picture or more.

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
        num_pictures (`int`): seeds that training has used.
    """
    processor = AutoProcessor.from_pretrained(out)
    model = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()
    figures = evaluate(model, processor)
    num_parameters = sum(p.numel() for p in model.parameters())
    figures["training"] = {
        "pictures": {
            "vision": NUM_VISION_DRAWINGS,
            "text": NUM_TEXT_DRAWINGS + 2 * NUM_TEXT_PAIRS,
            "joint": NUM_JOINT_DRAWINGS + 2 * NUM_JOINT_PAIRS,
            "scales": NUM_SCALES_DRAWINGS + NUM_SCALES_ALONE + NUM_SCALES_SCENES,
            "scenes": NUM_SCENES_DRAWINGS + 2 * NUM_SCENES_PAIRS + NUM_SCENES,
        },
        "training_seeds": [0, num_pictures - 1],
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
    processor = build_processor(IMAGE_SIDE**2)
    vision = train_vision(processor, WORK)
    model, first_seed = train_text(processor, vision, WORK)
    singles = WORK / "singles"
    save(model, processor, singles)
    processor = build_processor()
    vision, first_seed = train_scales(processor, singles, WORK, first_seed)
    model, first_seed = train_scenes(processor, singles, vision, WORK, first_seed)
    save(model, processor, args.out)

    print(json.dumps(describe(args.out, first_seed), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
