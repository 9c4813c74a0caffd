"""What a verdict adds to a forward pass: the ratio of interleaved runs with and without the guard, in one process.

    python benchmarks/forward_overhead.py [--pairs 20]

Stock Qwen2.5-VL on the same weights is the base of the ratio. The model is random: 12 layers of 512, one prompt with a
picture of 1,024 tokens.
"""

import argparse
import json
import statistics
import sys
import time

import torch
import transformers
from transformers import Qwen2_5_VLForConditionalGeneration

from safeqwen import SafeQwen2_5_VLConfig, SafeQwen2_5_VLForConditionalGeneration


IMAGE, VISION_START, VISION_END = 31_997, 31_998, 31_999


def build_models():
    """Returns (guarded, stock) that share their weights."""
    config = SafeQwen2_5_VLConfig(
        text_config={
            "vocab_size": 32_000,
            "hidden_size": 512,
            "intermediate_size": 1_408,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        },
        vision_config={
            "depth": 4,
            "hidden_size": 256,
            "intermediate_size": 688,
            "num_heads": 8,
            "out_hidden_size": 512,
            "fullatt_block_indexes": [3],
        },
        image_token_id=IMAGE,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    torch.manual_seed(0)
    guarded = SafeQwen2_5_VLForConditionalGeneration(config).eval()
    # Random weights, deliberately: loading them declares them trained. A guard whose last bias is 0 is never taken so.
    torch.nn.init.normal_(guarded.img_safety_head.mlp[-1].bias)
    guarded.load_state_dict(guarded.state_dict())
    stock = Qwen2_5_VLForConditionalGeneration(config).eval()
    stock.model, stock.lm_head = guarded.model, guarded.lm_head
    return guarded, stock


def build_inputs(side=64):
    """A prompt with a picture of `side` x `side` patches, a quarter as many tokens, and twenty tokens of text."""
    ids = torch.tensor([[*range(10), VISION_START, *[IMAGE] * (side * side // 4), VISION_END, *range(10)]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(side * side, 1176),
        "image_grid_thw": torch.tensor([[1, side, side]]),
    }


@torch.no_grad()
def seconds(model, inputs, **kwargs):
    start = time.perf_counter()
    model(**inputs, logits_to_keep=1, **kwargs)
    return time.perf_counter() - start


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20, help="interleaved runs of each (default: %(default)s)")
    args = parser.parse_args(argv)
    guarded, stock = build_models()
    inputs = build_inputs()
    for _ in range(3):  # warm-up
        seconds(guarded, inputs, do_safety=True)
        seconds(stock, inputs)
    ratios = [seconds(guarded, inputs, do_safety=True) / seconds(stock, inputs) for _ in range(args.pairs)]
    quartiles = statistics.quantiles(ratios, n=4)
    figures = {
        "forward with guard / stock": round(statistics.median(ratios), 4),
        "interquartile range": [round(quartiles[0], 4), round(quartiles[2], 4)],
        "pairs": args.pairs,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
