"""A Qwen2.5-VL of 100,000 random parameters, with and without guard, batches made by hand, and ways to load it."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from safeqwen import SafeQwen2_5_VLConfig, SafeQwen2_5_VLForConditionalGeneration
from safeqwen.hub.configuration_safeqwen import AUTO_MAP, HOLISAFE_CATEGORIES


ROOT = Path(__file__).parents[1]
CODE_FILES = sorted(path.name for path in ROOT.glob("*_safeqwen.py"))
DIGEST = "img_safety_head.categories_digest"

PAD, BOS, EOS = 0, 1, 2
IMAGE, VIDEO, VISION_START, VISION_END = 110, 111, 112, 113
VERSION_4 = transformers.__version__.startswith("4.")

TEXT_CONFIG = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
VISION_CONFIG = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 2,
    "out_hidden_size": 64,
    "fullatt_block_indexes": [1],
    "window_size": 56,
}
TOKEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}


def nested_config(config_class=SafeQwen2_5_VLConfig, **kwargs):
    return config_class(
        **{"text_config": dict(TEXT_CONFIG), "vision_config": dict(VISION_CONFIG), **TOKEN_IDS, **kwargs}
    )


def random_state_dict(seed=0, **kwargs):
    """Weights large enough that tokens and verdicts differ from picture to picture: 1/sqrt(fan_in), the guard x 4."""
    model = SafeQwen2_5_VLForConditionalGeneration(nested_config(**kwargs))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            gain = 4.0 if name.startswith("img_safety_head") else 1.0
            std = gain * parameter[0].numel() ** -0.5 if "embed_tokens" not in name else 1.0
            nn.init.normal_(parameter, std=std, generator=generator)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def build_guarded(state_dict, **kwargs):
    model = SafeQwen2_5_VLForConditionalGeneration(nested_config(**kwargs)).eval()
    model.load_state_dict(state_dict)
    return model


def build_stock(state_dict):
    model = Qwen2_5_VLForConditionalGeneration(nested_config(Qwen2_5_VLConfig)).eval()
    model.load_state_dict({name: t for name, t in state_dict.items() if not name.startswith("img_safety_head.")})
    return model


class Pic(NamedTuple):
    """A still picture of `height` x `width` patches, or a video if it has `frames`; `seed` draws its pixels."""

    height: int
    width: int
    seed: int = 0
    frames: int = 0

    @property
    def grid(self):
        return [max(self.frames, 1), self.height, self.width]

    @property
    def num_tokens(self):
        return max(self.frames, 1) * (self.height // 2) * (self.width // 2)

    @property
    def pixels(self):
        generator = torch.Generator().manual_seed(self.seed)
        base = torch.randn(1, 1176, generator=generator)  # pictures differ as a whole, not only from patch to patch
        return base + torch.randn(max(self.frames, 1) * self.height * self.width, 1176, generator=generator)


def tokens(*prompt):
    """`tokens(5, Pic(4, 6), 7)` -> ids with the picture's placeholders in their place."""
    ids = []
    for part in prompt:
        if isinstance(part, Pic):
            ids += [VISION_START] + [VIDEO if part.frames else IMAGE] * part.num_tokens + [VISION_END]
        else:
            ids.append(part)
    return ids


def batch(*prompts, padding_side="left"):
    """What a processor returns for prompts of ids and pictures: `batch([5, Pic(4, 6), 7], [8, 9])`."""
    ids = [tokens(*prompt) for prompt in prompts]
    length = max(map(len, ids))
    rows, masks = [], []
    for row in ids:
        padding = [PAD] * (length - len(row))
        left = padding_side == "left"
        rows.append(padding + row if left else row + padding)
        masks.append([0] * len(padding) + [1] * len(row) if left else [1] * len(row) + [0] * len(padding))
    inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
    pictures = [part for prompt in prompts for part in prompt if isinstance(part, Pic)]
    stills, videos = [p for p in pictures if not p.frames], [p for p in pictures if p.frames]
    if stills:
        inputs["pixel_values"] = torch.cat([p.pixels for p in stills])
        inputs["image_grid_thw"] = torch.tensor([p.grid for p in stills])
    if videos:
        inputs["pixel_values_videos"] = torch.cat([p.pixels for p in videos])
        inputs["video_grid_thw"] = torch.tensor([p.grid for p in videos])
        inputs["second_per_grid_ts"] = torch.ones(len(videos))
    return inputs


def for_stock(inputs):
    """Stock Qwen2.5-VL on transformers 5.x wants the token types that its processor makes."""
    if VERSION_4 or "input_ids" not in inputs:
        return inputs
    ids = inputs["input_ids"]
    return {**inputs, "mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


def stock_hidden_states(stock, inputs):
    """Stock's last hidden state after the final norm, `(batch, sequence, hidden)`."""
    with torch.no_grad():
        return stock.model(**for_stock(inputs)).last_hidden_state


def head_by_hand(state_dict, pooled):
    """The guard's algebra as DESIGN fixes it, without our module."""
    hidden = pooled @ state_dict["img_safety_head.mlp.0.weight"].T + state_dict["img_safety_head.mlp.0.bias"]
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    return hidden @ state_dict["img_safety_head.mlp.3.weight"].T + state_dict["img_safety_head.mlp.3.bias"]


def digest_of(names, prefix=b""):
    """The 32 bytes (`list[int]`) that stand in a guard trained for these names, as DESIGN fixes them."""
    return list(hashlib.sha256(prefix + "\0".join(names).encode()).digest())


def released_tensors(state_dict):
    """Our tensors under the names of the released checkpoint, which knows no digest."""
    renames = (("model.language_model.", "model."), ("model.visual.", "visual."))
    released = {}
    for name, tensor in state_dict.items():
        if name == DIGEST:
            continue
        old = next((new + name.removeprefix(long) for long, new in renames if name.startswith(long)), name)
        released[old] = tensor
    return released


def write_released_folder(folder, state_dict, dtype=torch.float32, num_shards=1, **config):
    """A folder as released: flat config, old tensor names; with our code files beside them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    categories = HOLISAFE_CATEGORIES
    flat = {
        "architectures": ["SafeQwen2_5_VLForConditionalGeneration"],
        "auto_map": AUTO_MAP,
        "model_type": "qwen2_5_vl",
        "torch_dtype": str(dtype).removeprefix("torch."),
        "tie_word_embeddings": False,
        **TEXT_CONFIG,
        **TOKEN_IDS,
        "vision_config": VISION_CONFIG,
        "safety_categories": list(categories),
        "num_safety_categories": len(categories),
        "safety_head_hidden_scale": 0.5,
        "safety_num_hidden_layers": 1,
        "safety_loss_lambda": 1.0,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(flat))
    tensors = {name: tensor.to(dtype) for name, tensor in released_tensors(state_dict).items()}
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map = {}
        for shard in range(num_shards):
            name = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
            part = {key: tensors[key] for key in sorted(tensors)[shard::num_shards]}
            save_file(part, folder / name, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(part, name))
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in CODE_FILES:
        shutil.copy(ROOT / name, folder)
    return folder


def rewrite(folder, drop=(), **changes):
    """Leaves out the tensors whose names hold one of `drop`, and writes `changes` over the others."""
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in drop)}
    assert not drop or len(kept) < len(tensors)
    save_file({**kept, **changes}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def edit_config(folder, **fields):
    """Writes `fields` into a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


# ------------------------------------------------------------------------------------------------- loading and judging


def by_auto_class(auto_class):
    return lambda *args, **kwargs: auto_class.from_pretrained(*args, trust_remote_code=True, **kwargs)


INPUTS = batch([5, Pic(4, 6, seed=1), 7, 8], [Pic(4, 4, seed=2), 9])
ROUTES = {
    "AutoModelForImageTextToText": by_auto_class(AutoModelForImageTextToText),
    "AutoModel": by_auto_class(AutoModel),
    "AutoModelForCausalLM": by_auto_class(transformers.AutoModelForCausalLM),
    "class": SafeQwen2_5_VLForConditionalGeneration.from_pretrained,
}
if VERSION_4:
    ROUTES["AutoModelForVision2Seq"] = by_auto_class(transformers.AutoModelForVision2Seq)
else:
    ROUTES["AutoModelForMultimodalLM"] = by_auto_class(transformers.AutoModelForMultimodalLM)


def load_plainly(folder, **kwargs):
    return SafeQwen2_5_VLForConditionalGeneration.from_pretrained(folder, **{"dtype": torch.float32, **kwargs})


def verdict(model):
    return model(**INPUTS, do_safety=True).img_safety_probs


def assert_same_tensors(model, state_dict, dtype=torch.float32):
    """All but the digest of the categories, which loading writes."""
    loaded = model.state_dict()
    assert set(loaded) == set(state_dict)
    for name in set(state_dict) - {DIGEST}:
        assert loaded[name].dtype == dtype, name
        assert torch.equal(loaded[name], state_dict[name].to(dtype)), name


def assert_refuses(model, message):
    """No entry gives a verdict, and the model still answers."""
    for call in (
        lambda: model(**INPUTS, do_safety=True),
        lambda: model.guard(**INPUTS),
        lambda: model.generate(**INPUTS, do_safety=True, max_new_tokens=1),
        lambda: model.generate(**INPUTS, safety_threshold=0.5, max_new_tokens=1),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
    assert model(**INPUTS).logits.isfinite().all()
    assert model.generate(**INPUTS, max_new_tokens=2).shape[1] > INPUTS["input_ids"].shape[1]
