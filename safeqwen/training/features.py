"""The guard alone: the features of all rows, computed once and kept, and a model that starts from them."""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from accelerate.utils import gather
from safetensors.torch import load_file, save_file
from torch import nn

from safeqwen.data.rows import IGNORED
from safeqwen.hub.guard_safeqwen import GUARD, pool
from safeqwen.hub.modeling_safeqwen import SafeQwen2_5_VLVerdict


class FrozenBackbone(nn.Module):
    """The guard of a model whose features were computed before: takes those in place of prompts."""

    def __init__(self, model):
        super().__init__()
        self.img_safety_head = model.img_safety_head
        self.config = model.config

    def forward(self, features, safety_labels):
        """`(batch_size, hidden_size)` features -> the logits, as the whole model's forward has them."""
        logits = self.img_safety_head(features, self.config.safety_categories)
        return SafeQwen2_5_VLVerdict(img_safety_logits=logits)


class FeatureRows(torch.utils.data.Dataset):
    """Rows as the guard sees them: `{"features": (hidden_size,) float32, "safety_labels": int}`."""

    def __init__(self, features, labels):
        self.features = features
        self.labels = self.verdict_labels = labels  # no pictures by themselves

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"features": self.features[index], "safety_labels": self.labels[index]}

    def blank(self):
        """A row without a label."""
        return {**self[0], "safety_labels": IGNORED}


def weights_digest(model):
    """sha256 (`str`) of all weights but the guard's: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(GUARD):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def feature_rows(model, weights, rows, collator, args):
    """
    Returns the [`FeatureRows`] of those rows that have a verdict label, from the cache if they are there.

    The cache is one safetensors file, named by all that the features depend on: weights, rows, and the settings of
    the processor.

    Args:
        weights (`str`): the `weights_digest` of the model.
    """
    examples = [example for example in rows.examples if example.label != IGNORED]
    processor = collator.processor
    settings = [processor.image_processor.to_json_string(), processor.video_processor.to_json_string()]
    settings += [processor.chat_template, collator.max_length]
    key = hashlib.sha256(json.dumps([weights, rows.sha256, settings], default=str).encode()).hexdigest()
    folder = Path(args.feature_cache) if args.feature_cache else Path(args.output_dir).parent / "feature_cache"
    file = folder / f"{key[:32]}.safetensors"
    state = args.distributed_state
    if not bool(gather(torch.tensor([file.exists()], device=args.device)).all()):  # on every machine
        size = args.per_device_eval_batch_size
        mine = examples[state.process_index :: state.num_processes]
        share = torch.zeros(-(-len(examples) // state.num_processes), model.config.text_config.hidden_size)
        for i in range(0, len(mine), size):
            batch = collator(mine[i : i + size])
            inputs = {name: value for name, value in batch.items() if name not in ("labels", "safety_labels")}
            pooled = pool(*model.picture_states(**inputs))  # every row has a picture, or it could have no label
            if not pooled.isfinite().all():
                raise FloatingPointError("the features of a picture are not finite: train with bf16, not fp16")
            share[i : i + len(pooled)] = pooled.cpu()
            print(f"\rfeatures of {i + len(pooled)} of {len(mine)} rows", end="", file=sys.stderr)
        print(file=sys.stderr)
        shares = gather(share.to(args.device)).cpu().unflatten(0, (state.num_processes, -1))
        pooled = shares.transpose(0, 1).flatten(0, 1)[: len(examples)]  # back in the order of the rows
        if state.is_local_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{os.getpid()}")
            save_file({"features": pooled.contiguous()}, partial)
            os.replace(partial, file)  # whole or not there
        state.wait_for_everyone()
    features = load_file(file)["features"]
    return FeatureRows(features, [example.label for example in examples])
