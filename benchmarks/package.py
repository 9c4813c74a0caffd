"""The figures around the model: a folder of pictures, a training step, start-up."""

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks.measure import interleave, process_seconds, summarize, timed
from benchmarks.models import build_inputs, build_models, build_processor
from safeqwen import SafetyPipeline, read_image
from safeqwen.prompt import chat_prompt


BATCH_SIZE, NUM_WORKERS, MAX_PICTURE_TOKENS = 4, 2, 256
STOCK_IMPORT = "from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration"


def write_pictures(folder, num_pictures, longest=1600):
    """
    Writes pictures of mixed size, shape and format, as smooth and as noisy as photographs, and returns their paths.

    Of ten, seven are JPEG, two PNG and one WebP; the longer side is between 160 and `longest` pixels.
    """
    import numpy as np
    from PIL import Image

    draw, noise = random.Random(0), np.random.default_rng(0)
    paths = []
    for i in range(num_pictures):
        side = round(160 * (longest / 160) ** draw.random())
        other = round(side * draw.uniform(0.5, 1))
        size = (side, other) if i % 2 else (other, side)
        coarse = noise.integers(0, 256, (max(2, size[1] // 32), max(2, size[0] // 32), 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
        grain = noise.integers(-6, 7, smooth.shape, dtype=np.int16)
        extension = ("jpg", "jpg", "png", "jpg", "jpg", "webp", "jpg", "png", "jpg", "jpg")[i % 10]
        paths.append(str(Path(folder, f"{i}.{extension}")))
        Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(paths[-1])
    return paths


def measure_pipeline(shape, paths, num_chunks=15):
    """
    Pictures a second of `pipeline("image-safety")` from files, over those of `guard()` on tensors made of them before.

    Both take the pictures chunk by chunk in turns, each chunk in batches of similar size: every file is judged once by
    each, and a ratio compares the same pictures.
    """
    model, processor = build_models(shape).guarded, build_processor(MAX_PICTURE_TOKENS)
    judge = SafetyPipeline(model=model, processor=processor)
    chunks = [paths[i::num_chunks] for i in range(num_chunks)]

    def judge_files(i):
        verdicts = judge(chunks[i], batch_size=BATCH_SIZE, num_workers=NUM_WORKERS)
        assert not any("error" in verdict for verdict in verdicts)

    def judge_tensors(i):
        batches = _ready_batches(processor, chunks[i])
        return timed(lambda _: [model.guard(**batch) for batch in batches])

    with torch.no_grad():
        pairs = interleave(judge_tensors, judge_files, num_pairs=num_chunks, seconds=0, num_warmups=1)
    files_s, tensors_s = sum(files for _, files in pairs), sum(tensors for tensors, _ in pairs)
    summary = summarize(pairs)  # a ratio of speeds is the other way round than that of times
    summary["ours"], summary["theirs"] = summary["theirs"], summary["ours"]
    return {**summary, "pictures_per_s": len(paths) / files_s, "guard_pictures_per_s": len(paths) / tensors_s}


def _ready_batches(processor, paths):
    """What `guard` takes, for pictures of similar size together."""
    pictures = sorted((read_image(path)[0] for path in paths), key=lambda picture: picture.width * picture.height)
    batches = []
    for i in range(0, len(pictures), BATCH_SIZE):
        batch = pictures[i : i + BATCH_SIZE]
        prompts = [chat_prompt(processor, num_images=1)] * len(batch)
        settings = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
        batches.append(dict(processor(text=prompts, images=batch, **settings)))
    return batches


def measure_training(shape, workload, **settings):
    """A step of LoRA and guard with both losses, and one of the same LoRA on stock with the language model's alone."""
    from peft import LoraConfig, get_peft_model

    from safeqwen.training.arguments import LANGUAGE_MODEL_LAYERS
    from safeqwen.training.run import add_lora

    lora = {"lora_rank": 64, "lora_alpha": 64, "lora_dropout": 0.0, "lora_targets": LANGUAGE_MODEL_LAYERS}
    ours = add_lora(build_models(shape).guarded, SimpleNamespace(**lora))
    config = LoraConfig(r=64, lora_alpha=64, target_modules=LANGUAGE_MODEL_LAYERS)
    theirs = get_peft_model(build_models(shape).stock, config)

    inputs = build_inputs(workload)
    labels = inputs["input_ids"].clone()
    labels[:, : -workload.words_after] = -100
    labels = {"labels": labels, "use_cache": False}
    safety_labels = torch.arange(workload.prompts)
    steps = (
        _training_step(ours, {**inputs, **labels, "safety_labels": safety_labels}),
        _training_step(theirs, {**inputs, **labels}),
    )
    return summarize(interleave(*steps, **settings))


def _training_step(model, inputs):
    model.train()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-5)

    def step(_):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_import(**settings):
    """CPU seconds of a process that imports safeqwen, and of one that imports what it is built on."""
    ours, theirs = ([sys.executable, "-c", code] for code in ("import safeqwen", STOCK_IMPORT))
    return summarize(interleave(lambda _: process_seconds(ours), lambda _: process_seconds(theirs), **settings))


def measure_help(num_runs=15):
    """Seconds of `safeqwen --help`."""
    command = [sys.executable, "-c", "from safeqwen_cli import main; main(['--help'])"]
    measured = summarize([(process_seconds(command, wall=True), 1.0) for _ in range(num_runs)])
    del measured["theirs"]  # against nothing
    return measured
