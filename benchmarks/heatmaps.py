"""Which heat map finds what a verdict comes from: `python -m benchmarks.heatmaps`.

Canvases of four held-out drawings, one of them harmful, of 224 and of 112 pixels a side, as the model's processor
shows them (the demo's makes 64 tokens of both), and the map of the harmful one's category by each method:

- quarter: the map's maximum lies in the quarter of the harmful drawing (by chance 25 %).
- masking: with the hottest tenth of the patches grey (the processor's mean colour) the category's probability is lower
  than with a random tenth grey, drawn once a canvas. Equal is no success.
- drop: by how much the hottest tenth lowers the probability, on average.
- ms: of the map, verdict included, on this machine.

All methods see the same canvases, and those count on which the verdict itself is wrong; "right" figures are of the
others. `--model PATH` measures other weights, `--num N` so many canvases. `--sheet PNG` draws some of the canvases,
and below each what was chosen makes of it, in place of measuring.
"""

import argparse
import random
import time
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from PIL import Image

import safeqwen
from safeqwen.judging.engine import Engine
from safeqwen.judging.heatmap import heatmaps, log_odds
from tools.demo.pictograms import FIRST_HELD_OUT_SEED
from tools.demo.scenes import quarters


SIDES = (224, 112)
FIRST_SEED = FIRST_HELD_OUT_SEED + 9_000_000
STEPS = 8  # of integrated gradients


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=200, metavar="N", help="canvases a size (default: %(default)s)")
    parser.add_argument("--model", metavar="PATH", help="(default: the demo checkpoint)")
    parser.add_argument("--only", nargs="+", metavar="METHOD", choices=[*METHODS], help="these alone")
    parser.add_argument("--sheet", metavar="PNG", help="draw this instead")
    args = parser.parse_args(argv)
    # Eager attention hands out its weights, which attention rollout needs.
    engine = Engine(*safeqwen.load(args.model, device="cpu", attn_implementation="eager"))
    if args.sheet:
        draw_sheet(engine, args.sheet)
        return 0
    for side in SIDES:
        measure(engine, side, args.num, args.only or [*METHODS])
    return 0


def measure(engine, side, num, methods):
    """Prints a table of one size of canvas."""
    rows = {name: [] for name in methods}  # (quarter, masking, drop, seconds) of each canvas
    right = []
    for seed in range(FIRST_SEED, FIRST_SEED + num):
        picture, quarter, category = quarters(seed, side)
        column = engine.categories.index(category)
        (frame,) = engine.prepare([picture])
        inputs = engine.inputs_of([frame])
        tokens = range(frame.num_tokens)
        tenth = max(1, round(len(tokens) / 10))
        probs = engine.model.guard(**inputs).img_safety_probs[0]
        right.append(int(probs.argmax()) == column)
        at_random = probability(engine, masked(inputs, random.Random(seed).sample(tokens, tenth)), column)
        for name in methods:
            start = time.perf_counter()
            values = METHODS[name](engine, picture, inputs, column)
            seconds = time.perf_counter() - start
            row, place = np.unravel_index(values.argmax(), values.shape)
            found = 2 * (row >= values.shape[0] / 2) + (place >= values.shape[1] / 2)
            hottest = np.argsort(-values.ravel(), kind="stable")[:tenth].tolist()
            left = probability(engine, masked(inputs, hottest), column)
            rows[name].append((found == quarter, left < at_random, float(probs[column]) - left, seconds))
    right = np.array(right)
    print(
        f"\n{num} canvases of {side} pixels, {len(tokens)} tokens, {tenth} masked; the verdict is right on "
        f"{right.mean():.1%}\n\n| method | quarter | masking | quarter, right | masking, right | drop | ms |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, found in rows.items():
        found = np.array(found, dtype=float)
        of_right = found[right] if right.any() else np.full((1, 4), np.nan)
        percents = [found[:, 0].mean(), found[:, 1].mean(), of_right[:, 0].mean(), of_right[:, 1].mean()]
        cells = ["-" if np.isnan(value) else f"{value:.1%}" for value in percents]
        print(f"| {name} | {' | '.join(cells)} | {found[:, 2].mean():.3f} | {1000 * np.median(found[:, 3]):.0f} |")


def draw_sheet(engine, file, num=4, side=224, gap=8):
    """Draws the first canvases, whatever the maps look like, and the map of each one's harm below it."""
    sheet = Image.new("RGB", (num * (side + gap) - gap, 2 * side + gap), "white")
    for number in range(num):
        picture, _, category = quarters(FIRST_SEED + number, side)
        (heatmap,) = heatmaps(engine, picture, [category])
        for row, shown in enumerate((picture, heatmap.overlay(0.7))):
            sheet.paste(shown, (number * (side + gap), row * (side + gap)))
        print(f"{category}: {heatmap.probability:.1%}")
    sheet.quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)


def masked(inputs, tokens):
    """The inputs with grey in the place of some tokens' patches: 0, since the processor takes the mean away."""
    pixels = inputs["pixel_values"].clone()
    pixels.view(inputs["image_grid_thw"].prod() // 4, 4, -1)[tokens] = 0
    return inputs | {"pixel_values": pixels}


def probability(engine, inputs, column):
    return float(engine.model.guard(**inputs).img_safety_probs[0, column])


# ------------------------------------------------------------------------------------------------------------- methods
# Each: (engine, picture, inputs, column) -> an array (rows, columns)


def grid_of(inputs, values):
    rows, columns = (inputs["image_grid_thw"][0, 1:] // 2).tolist()
    return torch.as_tensor(values).detach().reshape(rows, columns).numpy()


def ours(engine, picture, inputs, column):
    return heatmaps(engine, picture, [engine.categories[column]])[0].values


def patch_map(of, engine, picture, inputs, column):
    """The guard on each token alone: `guard(granularity="patch")`."""
    verdict = engine.model.guard(**inputs, granularity="patch")
    logits, probs = verdict.img_safety_logits[0], verdict.img_safety_probs[0]
    if of == "probability":
        return probs[..., column].numpy()
    if of == "odds":
        return torch.logit(probs[..., column].double()).numpy()
    return log_odds(logits, column, engine.categories).numpy()


def occlusion(width, engine, picture, inputs, column):
    """How much the log-odds fall with width x width patches grey around each (Zeiler and Fergus 2014, 1311.2901)."""
    rows, columns = (inputs["image_grid_thw"][0, 1:] // 2).tolist()
    reach, scores = width // 2, []
    for row in range(rows):
        for place in range(columns):
            ys = range(max(0, row - reach), min(rows, row + reach + 1))
            xs = range(max(0, place - reach), min(columns, place + reach + 1))
            logits = engine.model.guard(**masked(inputs, [y * columns + x for y in ys for x in xs])).img_safety_logits
            scores.append(-float(log_odds(logits[0], column, engine.categories)))
    return grid_of(inputs, scores)


def score(engine, inputs, column, **kwargs):
    output = engine.model(**inputs, do_safety=True, logits_to_keep=1, use_cache=False, **kwargs)
    return log_odds(output.img_safety_logits[0], column, engine.categories), output


@contextmanager
def leaf_at(layer, change=lambda states: states):
    """Makes what enters the language model, or leaves it, a leaf; yields a list that will hold it."""
    leaves = []

    def enters(module, args, kwargs):
        leaves.append(change(kwargs["inputs_embeds"].detach()).requires_grad_())
        return args, kwargs | {"inputs_embeds": leaves[-1]}

    def leaves_it(module, args, output):
        leaves.append(output[0].detach().requires_grad_())
        output["last_hidden_state"] = leaves[-1]
        return output

    hook = (
        layer.register_forward_hook(leaves_it)
        if change is None
        else layer.register_forward_pre_hook(enters, with_kwargs=True)
    )
    try:
        yield leaves
    finally:
        hook.remove()


def state_and_gradient(engine, inputs, column, change=lambda states: states):
    """`(tokens, hidden)` states of the picture and the gradient of the log-odds there."""
    with torch.enable_grad(), leaf_at(engine.model.model.language_model, change) as leaves:
        (gradient,) = torch.autograd.grad(score(engine, inputs, column)[0], leaves)
    of_picture = inputs["input_ids"][0] == engine.model.config.image_token_id
    return leaves[0].detach()[0, of_picture], gradient[0, of_picture]


def gradient_x_input(place, engine, picture, inputs, column):
    """Gradient x input (Shrikumar et al. 2017, 1704.02685), at the last layer or the vision tower's output."""
    change = None if place == "last" else (lambda states: states)
    states, gradient = state_and_gradient(engine, inputs, column, change)
    return grid_of(inputs, (states * gradient).sum(-1))


def grad_cam(engine, picture, inputs, column):
    """Grad-CAM (Selvaraju et al. 2017, 1610.02391) with the vision tower's output as the feature maps."""
    states, gradient = state_and_gradient(engine, inputs, column)
    return grid_of(inputs, (states * gradient.mean(0)).sum(-1).relu())


def layer_cam(engine, picture, inputs, column):
    """LayerCAM (Jiang et al. 2021), the same with each place's own positive gradients."""
    states, gradient = state_and_gradient(engine, inputs, column)
    return grid_of(inputs, (states * gradient.relu()).sum(-1).relu())


def gradient_x_pixels(engine, picture, inputs, column):
    pixels = inputs["pixel_values"].clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(score(engine, inputs | {"pixel_values": pixels}, column)[0], pixels)
    return grid_of(inputs, (pixels.detach() * gradient).view(len(pixels) // 4, -1).sum(-1))


def integrated_gradients(engine, picture, inputs, column):
    """Sundararajan et al. 2017, 1703.01365, from the vision tower's output of a grey picture to that of this one."""
    grey, _ = state_and_gradient(engine, inputs | {"pixel_values": inputs["pixel_values"] * 0}, column)
    full, _ = state_and_gradient(engine, inputs, column)
    of_picture, total = inputs["input_ids"][0] == engine.model.config.image_token_id, 0

    def between(states, share):
        states = states.clone()
        states[0, of_picture] = grey + share * (full - grey)
        return states

    for step in range(STEPS):
        total += state_and_gradient(engine, inputs, column, partial(between, share=(step + 0.5) / STEPS))[1] / STEPS
    return grid_of(inputs, ((full - grey) * total).sum(-1))


def rollout(with_gradients, engine, picture, inputs, column):
    """Attention rollout (Abnar and Zuidema 2020, 2005.00928), or by gradients (Chefer et al. 2021, 2103.15679)."""
    with torch.set_grad_enabled(with_gradients):
        target, output = score(engine, inputs, column, output_attentions=True)
        gradients = torch.autograd.grad(target, output.attentions) if with_gradients else output.attentions
    one = torch.eye(output.attentions[0].shape[-1])
    flow = one
    for attention, gradient in zip(output.attentions, gradients):
        attention = attention[0].detach()
        if with_gradients:
            flow = flow + (attention * gradient[0]).relu().mean(0) @ flow
        else:
            flow = (attention.mean(0) + one) / 2 @ flow
    of_picture = inputs["input_ids"][0] == engine.model.config.image_token_id
    return grid_of(inputs, flow[of_picture][:, of_picture].mean(0))


METHODS = {
    "AttnLRP from the pixels (chosen)": ours,
    "patch map, probability": partial(patch_map, "probability"),
    "patch map, log-odds": partial(patch_map, "odds"),
    "patch map, logit difference to safe": partial(patch_map, "difference"),
    "gradient x input, last layer": partial(gradient_x_input, "last"),
    "gradient x input, vision tower's output": partial(gradient_x_input, "vision"),
    "gradient x input, pixels": gradient_x_pixels,
    "integrated gradients, vision tower's output": integrated_gradients,
    "Grad-CAM, vision tower's output": grad_cam,
    "LayerCAM, vision tower's output": layer_cam,
    "attention rollout": partial(rollout, False),
    "attention x gradient rollout": partial(rollout, True),
    "occlusion, 1 patch": partial(occlusion, 1),
    "occlusion, 3 x 3 patches": partial(occlusion, 3),
}


if __name__ == "__main__":
    raise SystemExit(main())
