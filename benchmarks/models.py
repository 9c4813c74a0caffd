"""The models that are measured, with and without guard on the same weights, and prompts for them made by hand."""

from dataclasses import dataclass, replace

import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from safeqwen import DEMO_CHECKPOINT, SafeQwen2_5_VLConfig, SafeQwen2_5_VLForConditionalGeneration, load
from safeqwen.hub.compat_safeqwen import TAKES_TOKEN_TYPES


# All models have the demo's special tokens, so that its processor serves them all.
DEMO = SafeQwen2_5_VLConfig.from_pretrained(DEMO_CHECKPOINT)
TOKENS = {
    name: getattr(DEMO, name)
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
}
BOS, EOS, PAD = DEMO.text_config.bos_token_id, DEMO.text_config.eos_token_id, DEMO.text_config.pad_token_id
NUM_WORDS = min(BOS, EOS, PAD, *TOKENS.values())  # special tokens stand behind the words

# Widths of whole 64s, which nf4 wants on CPUs that compute in bfloat16.
TINY = {
    "text_config": {
        "vocab_size": 640,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
    },
    "vision_config": {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    },
}
MID = {
    "text_config": {
        "vocab_size": 32_000,
        "hidden_size": 512,
        "intermediate_size": 1_408,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
    },
    "vision_config": {
        "depth": 4,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_heads": 8,
        "out_hidden_size": 512,
        "fullatt_block_indexes": [3],
    },
}
# config.json of Qwen/Qwen2.5-VL-7B-Instruct
FULL = {
    "text_config": {
        "vocab_size": 152_064,
        "hidden_size": 3_584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1_280,
        "intermediate_size": 3_420,
        "num_heads": 16,
        "out_hidden_size": 3_584,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}
SHAPES = {"tiny": TINY, "mid": MID, "7b": FULL}


@dataclass
class Models:
    """Models that share their weights."""

    guarded: SafeQwen2_5_VLForConditionalGeneration
    stock: Qwen2_5_VLForConditionalGeneration | None = None
    # Guarded too: output_hidden_states leaves transformers' hooks on a model for good, which slow down all its steps.
    card: SafeQwen2_5_VLForConditionalGeneration | None = None

    @property
    def device(self):
        return self.guarded.device


def build_models(shape, *, device="cpu", dtype=torch.float32, attention="sdpa"):
    """
    Returns the [`Models`] of a shape: "tiny", "mid" and "7b" with random weights, "demo" as published.

    Verdicts and answers of random weights mean nothing, and cost what those of trained ones do.
    """
    if shape == "demo":
        guarded, _ = load(device=device, dtype=dtype, attn_implementation=attention)
    else:
        guarded = build_random(shape, device, dtype, attention)
    twins = [share_weights(guarded, cls) for cls in (Qwen2_5_VLForConditionalGeneration, type(guarded))]
    return Models(guarded, *twins)


def build_random(shape, device="cpu", dtype=torch.float32, attention="sdpa"):
    """A SafeQwen with random weights that judges all the same."""
    text_config = {**SHAPES[shape]["text_config"], "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    config = SafeQwen2_5_VLConfig(**{**SHAPES[shape], "text_config": text_config}, **TOKENS)
    config._attn_implementation = attention
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = SafeQwen2_5_VLForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(default)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, PAD
    # Weights that were loaded count as trained, but for a guard whose last bias is 0.
    torch.nn.init.normal_(model.img_safety_head.mlp[-1].bias)
    model.load_state_dict(model.state_dict())
    return model


def share_weights(guarded, cls):
    """A model of the class around the tensors of a guarded model."""
    with torch.device("meta"):
        twin = cls(guarded.config).eval()
    names = twin.state_dict().keys()
    twin.load_state_dict({name: t for name, t in guarded.state_dict().items() if name in names}, assign=True)
    for name in [name for name, _ in twin.named_buffers() if name not in names]:  # rotary frequencies
        buffer = guarded.get_buffer(name)
        parent, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(parent), leaf, buffer)
    twin.tie_weights()
    twin.generation_config = guarded.generation_config
    return twin


def build_processor(max_picture_tokens):
    """The demo's processor, for pictures of 4 to `max_picture_tokens` tokens of 28 x 28 pixels."""
    processor = AutoProcessor.from_pretrained(DEMO_CHECKPOINT)
    size = {"shortest_edge": 4 * 28**2, "longest_edge": max_picture_tokens * 28**2}
    processor.image_processor.size = size
    processor.image_processor.min_pixels, processor.image_processor.max_pixels = size.values()
    return processor


@dataclass(frozen=True)
class Workload:
    """
    What a figure is measured on.

    Args:
        prompts (`int`): batch size.
        pictures (`int`): a prompt.
        picture_tokens (`int`): a picture; a power of 2 from 4.
        words_after (`int`): tokens of text after the last picture; ten stand before the first.
        new_tokens (`int`): of an answer.
    """

    prompts: int = 1
    pictures: int = 1
    picture_tokens: int = 256
    words_after: int = 20
    new_tokens: int = 0

    def shrunk(self):
        """The same kind of work in no time, to try out that it runs."""
        return replace(
            self,
            prompts=min(self.prompts, 2),
            pictures=min(self.pictures, 2),
            picture_tokens=min(self.picture_tokens, 16),
            words_after=min(self.words_after, 20),
            new_tokens=min(self.new_tokens, 4),
        )

    def __str__(self):
        parts = [f"{self.picture_tokens:,} picture tokens"]
        if self.pictures > 1:
            parts[0] = f"{self.pictures} x {parts[0]}"
        if self.prompts > 1:
            parts.insert(0, f"{self.prompts} prompts")
        if self.new_tokens:
            parts.append(f"{self.new_tokens} new tokens")
        return ", ".join(parts)


def build_inputs(workload, device="cpu", dtype=torch.float32):
    """What a processor returns for random pictures and words: a `dict` of tensors."""
    generator = torch.Generator().manual_seed(0)
    rows = 2 ** ((workload.picture_tokens.bit_length() - 1) // 2)  # as square as a power of 2 can be
    columns = workload.picture_tokens // rows
    picture = [
        TOKENS["vision_start_token_id"],
        *[TOKENS["image_token_id"]] * workload.picture_tokens,
        TOKENS["vision_end_token_id"],
    ]
    words = torch.randint(NUM_WORDS, (10 + workload.words_after,), generator=generator).tolist()
    ids = torch.tensor([[*words[:10], *picture * workload.pictures, *words[10:]]] * workload.prompts)
    num_pictures = workload.prompts * workload.pictures
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(num_pictures * 4 * rows * columns, 1176, generator=generator).to(dtype),
        "image_grid_thw": torch.tensor([[1, 2 * rows, 2 * columns]] * num_pictures),
    }
    if TAKES_TOKEN_TYPES:
        inputs["mm_token_type_ids"] = ids.eq(TOKENS["image_token_id"]).int()
    return {name: tensor.to(device) for name, tensor in inputs.items()}
