"""How often a promised false-positive rate is exceeded: `python -m benchmarks.calibration`.

The demo checkpoint judges 6,000 drawings that it finds hard: 4,000 safe ones and 2,000 of the 19 harms in turn, all in
the held-out line style on the held-out background, shrunk to 16 to 32 pixels a side, and noised. They are the
population. A calibration set is drawn from it with replacement, and then the rate on fresh rows is known exactly: it
is the share of the whole population that a threshold flags. 200 sets of each size are drawn anew, the same for all:

- argmax, 0.5: the likeliest category is not "safe"; 1 - p(safe) is at least 0.5. Neither looks at the set.
- quantile: of the set's safe scores, at 1 - the target.
- promised: `safeqwen calibrate --max-fpr`, confidence 0.9.
- MAPIE: `BinaryClassificationController` by default, which is Bonferroni-Holm over 100 thresholds, and with
  `fwer_method="fixed_sequence"` over the thresholds between the set's scores, from high to low.

"exceeded" is the share of sets whose threshold flags more of the safe population than the target; "refused" of sets
for which there was none. Rates and recall are means over the other sets. `--judged FILE` keeps the verdicts.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from mapie.risk_control import BinaryClassificationController
from PIL import Image

import safeqwen
from safeqwen.judging.engine import Engine
from safeqwen.judging.thresholds import promised_threshold
from safeqwen.judging.verdict import SAFE, unsafe_probability
from tools.demo.pictograms import FIRST_HELD_OUT_SEED, HELD_OUT_BACKGROUND, HELD_OUT_LINE_STYLE, draw


NUM_SAFE, NUM_UNSAFE, SIDE = 4_000, 2_000, 112
NUM_SETS, SIZES, TARGETS, CONFIDENCE = 200, (30, 100, 300, 1_000), (0.05, 0.1), 0.9
REDUCED = (32, 24, 20, 16)  # pixels a side, in turn
NOISE = 16  # standard deviation of each channel, of 255


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judged", type=Path, metavar="FILE", help="read the verdicts, or write them if it is new")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = args.judged or Path(folder) / "judged.npz"
        if not file.exists():
            np.savez(file, **judge_population())
        print_table(**np.load(file))


def judge_population():
    """`{"scores", "argmax", "unsafe"}`, each `(drawings,)`: 1 - p(safe), is the likeliest a harm, and the label."""
    categories = [category.name for category in safeqwen.CATEGORIES]
    harms = [name for name in categories if name != SAFE]
    names = [SAFE] * NUM_SAFE + [harms[i % len(harms)] for i in range(NUM_UNSAFE)]
    engine = Engine(*safeqwen.load(device="cpu"))
    verdicts = []
    for start in range(0, len(names), 100):
        drawings = [hard_drawing(names[i], i) for i in range(start, min(start + 100, len(names)))]
        verdicts += engine.judge(engine.prepare(drawings), batch_size=16)
    probs = torch.stack(verdicts)
    return {
        "scores": unsafe_probability(probs, categories).numpy().astype(np.float64),
        "argmax": (probs.argmax(dim=1) != categories.index(SAFE)).numpy(),
        "unsafe": np.array([name != SAFE for name in names]),
    }


def hard_drawing(category, number):
    seed = FIRST_HELD_OUT_SEED + 9_000_000 + number
    drawing = draw(category, seed, SIDE, HELD_OUT_LINE_STYLE, HELD_OUT_BACKGROUND)
    side = REDUCED[number % len(REDUCED)]
    pixels = np.asarray(drawing.resize((side, side)).resize((SIDE, SIDE)), dtype=np.float64)
    noise = np.random.default_rng(seed).normal(scale=NOISE, size=pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def print_table(scores, argmax, unsafe):
    safe_scores, unsafe_scores = scores[~unsafe], scores[unsafe]
    print("| safe rows | target | rule | exceeded | refused | false-positive rate | recall |")
    print("|---|---|---|---|---|---|---|")
    for title, flagged in (("argmax", argmax), ("0.5", scores >= 0.5)):
        print(f"| any | | {title} | | | {flagged[~unsafe].mean():.2%} | {flagged[unsafe].mean():.1%} |")
    rules = {
        "quantile": lambda safe, _, target: np.quantile(safe, 1 - target),
        "promised": promised,
        "MAPIE, default": mapie_default,
        "MAPIE, fixed sequence": mapie_fixed_sequence,
    }
    for size in SIZES:
        for target in TARGETS:
            rng = np.random.default_rng([size, round(1000 * target)])
            sets = [(rng.choice(safe_scores, size), rng.choice(unsafe_scores, size // 2)) for _ in range(NUM_SETS)]
            for title, rule in rules.items():
                found = [threshold for one in sets if (threshold := rule(*one, target)) is not None]
                rates = np.array([(safe_scores >= threshold).mean() for threshold in found])
                recalls = np.array([(unsafe_scores >= threshold).mean() for threshold in found])
                means = f"{rates.mean():.2%} | {recalls.mean():.1%}" if found else "- | -"
                exceeded, refused = (rates > target).sum() / NUM_SETS, 1 - len(found) / NUM_SETS
                print(f"| {size:,} | {target:.0%} | {title} | {exceeded:.1%} | {refused:.0%} | {means} |")


def promised(safe, unsafe, target):
    try:
        return promised_threshold(safe, unsafe, target, CONFIDENCE)
    except ValueError:
        return None


def mapie_default(safe, unsafe, target):
    return mapie_threshold(safe, unsafe, target)


def mapie_fixed_sequence(safe, unsafe, target):
    scores = np.unique(safe)[::-1]
    between = (scores + np.concatenate([[1.0], scores[:-1]])) / 2  # above each safe score, from high to low
    return mapie_threshold(safe, unsafe, target, list_predict_params=between, fwer_method="fixed_sequence")


def mapie_threshold(safe, unsafe, target, **settings):
    controller = BinaryClassificationController(
        lambda scores: np.stack([1 - scores, scores], axis=1), "fpr", target, CONFIDENCE, **settings
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no threshold is valid, which its answer says, too
        controller.calibrate(np.concatenate([safe, unsafe]), np.repeat([0, 1], [len(safe), len(unsafe)]))
    return controller.best_predict_param


if __name__ == "__main__":
    main()
