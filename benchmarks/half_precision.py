"""How far a verdict moves with batch and path in half precision: `python -m benchmarks.half_precision`.

Sums in half precision depend on the shapes of the matrices that they are made with, and the shapes on the batch. The
largest change of any probability over 200 drawings, which the demo checkpoint judges on a CPU:

- batch: each alone, against 16 at a time;
- path: `guard()` against `forward(do_safety=True)`, each picture alone;
- float32: each alone, against each alone in float32.

The last columns count the drawings whose likeliest category changed, by batch or path, and against float32.
"""

import torch

import safeqwen
from safeqwen.judging.engine import Engine
from safeqwen.prompt import chat_prompt
from tools.demo.pictograms import FIRST_HELD_OUT_SEED, draw


NUM_DRAWINGS = 200


def main():
    categories = [category.name for category in safeqwen.CATEGORIES]
    seed = FIRST_HELD_OUT_SEED + 7_000_000
    drawings = [draw(categories[i % len(categories)], seed + i, size=224) for i in range(NUM_DRAWINGS)]
    exact = judged(drawings, torch.float32)["alone"]
    print("| dtype | batch 1 or 16 | guard() or forward | from float32 | labels, batch or path | labels, float32 |")
    print("|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        probs = judged(drawings, dtype)
        alone = probs["alone"]
        moves = [float((alone - other).abs().max()) for other in (probs["batched"], probs["forward"], exact)]
        ways = torch.stack([way.argmax(dim=1) for way in probs.values()])  # (3, drawings)
        changed = int((ways != ways[0]).any(dim=0).sum()), int((ways[0] != exact.argmax(dim=1)).sum())
        figures = " | ".join([*(f"{move:.2g}" for move in moves), *map(str, changed)])
        print(f"| {str(dtype).removeprefix('torch.')} | {figures} |")


@torch.no_grad()
def judged(drawings, dtype):
    """`{"alone", "batched", "forward"}`, each `(drawings, categories)` probabilities."""
    model, processor = safeqwen.load(dtype=dtype, device="cpu")
    engine = Engine(model, processor)
    frames = engine.prepare(drawings)
    text = [chat_prompt(processor, num_images=1)]
    outputs = [
        model(**processor(text=text, images=[drawing], return_tensors="pt"), do_safety=True) for drawing in drawings
    ]
    return {
        "alone": torch.stack(engine.judge(frames, batch_size=1)),
        "batched": torch.stack(engine.judge(frames, batch_size=16)),
        "forward": torch.cat([output.img_safety_probs for output in outputs]),
    }


if __name__ == "__main__":
    main()
