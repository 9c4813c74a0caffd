"""What `max_pixels` costs in accuracy and saves in time: `python -m benchmarks.max_pixels`.

The demo checkpoint judges 400 held-out drawings of 448 x 448 pixels, each shrunk to every bound. Its processor makes
224 x 224 of any square, the size that it was trained on. Time is the engine's, the processor's included, for batches
of 16; bounds take turns, 20 drawings at a time, and the ratio is that of the sums.
"""

import time

import torch

import safeqwen
from safeqwen.judging.engine import Engine
from tools.demo.pictograms import FIRST_HELD_OUT_SEED, draw


SIDES = (56, 84, 112, 140, 168, 224, 336, 448)  # pixels
NUM_DRAWINGS, CHUNK = 400, 20


def main():
    categories = [category.name for category in safeqwen.CATEGORIES]
    engine = Engine(*safeqwen.load(device="cpu"))
    seconds, num_right = dict.fromkeys(SIDES, 0.0), dict.fromkeys(SIDES, 0)
    for start in range(0, NUM_DRAWINGS, CHUNK):
        labels = [i % len(categories) for i in range(start, start + CHUNK)]
        seed = FIRST_HELD_OUT_SEED + 8_000_000 + start
        drawings = [draw(categories[label], seed + i, size=448) for i, label in enumerate(labels)]
        for side in SIDES:
            began = time.perf_counter()
            verdicts = engine.judge(engine.prepare(drawings, max_pixels=side**2), batch_size=16)
            seconds[side] += time.perf_counter() - began
            num_right[side] += int((torch.stack(verdicts).argmax(dim=1) == torch.tensor(labels)).sum())
    print("| max_pixels | tokens a picture | verdict right | time |")
    print("|---|---|---|---|")
    for side in SIDES:
        accuracy, ratio = num_right[side] / NUM_DRAWINGS, seconds[side] / seconds[SIDES[-1]]
        print(f"| {side}² = {side**2:,} | {(side // 28) ** 2} | {accuracy:.2%} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
