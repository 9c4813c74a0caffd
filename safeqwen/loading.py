"""`load`: a model and its processor with sensible settings; `load_base`: a model to train."""

import hashlib
import json
from pathlib import Path

import torch
from transformers import AutoProcessor

from safeqwen.fingerprint import weights_fingerprint as weights_fingerprint
from safeqwen.hub.guard_safeqwen import GUARD
from safeqwen.hub.modeling_safeqwen import SafeQwen2_5_VLForConditionalGeneration
from safeqwen.judging.policy import load_policy


# A tiny SafeQwen that knows drawn pictograms: for trying things out, not for moderation.
DEMO_CHECKPOINT = Path(__file__).parent / "demo"
GUARD_FILE = f"{GUARD}.safetensors"  # of a run that trained the guard alone


def load(
    path_or_repo=None,
    *,
    dtype=None,
    device=None,
    device_map=None,
    revision=None,
    token=None,
    cache_dir=None,
    local_files_only=False,
    max_pixels=None,
    **kwargs,
):
    """Returns a SafeQwen in evaluation mode, and its processor.

    The package's own classes are used: no code of the repository is run. `model.safety_policy` is the
    [`SafetyPolicy`] of its safety_policy.json, or `None` if it has none.

    Args:
        path_or_repo (`str` or `os.PathLike`, *optional*):
            A folder or a Hub repository. Without one it is `safeqwen.DEMO_CHECKPOINT`, which knows drawn pictograms
            only and is not for moderation.
        dtype (`torch.dtype` or `str`, *optional*):
            Of the weights. By default float32 on a CPU, where half precision is slow and less exact, and bfloat16 on
            an accelerator, whatever they were saved in; "auto" is as saved.
        device (`str` or `torch.device`, *optional*):
            Where the model runs. By default an accelerator if there is one.
        device_map (*optional*):
            As `from_pretrained` takes it, in place of `device`: `"auto"` spreads the model over several devices.
        revision, token, cache_dir, local_files_only:
            As `from_pretrained` takes them.
        max_pixels (`int`, *optional*):
            Pictures of more pixels are reduced to this. By default the processor's bound, which is 12.8 million
            (16,384 tokens a picture) for Qwen2.5-VL.
        kwargs:
            Further arguments of the model's `from_pretrained`, e.g. `quantization_config`, or `attn_implementation`
            (by default the library's choice, scaled dot product attention).

    Returns:
        `tuple`: ([`SafeQwen2_5_VLForConditionalGeneration`], `Qwen2_5_VLProcessor`)

    Raises:
        ValueError: if both `device` and `device_map` are given, the folder holds the weights of two saves, or a policy
            for other weights or categories.
        RuntimeError: if weights and configuration do not fit together.
        OSError: if there is no such folder or repository, or it lacks files.
    """
    if device is not None and device_map is not None:
        raise ValueError(f"give device or device_map, not both; got {device!r} and {device_map!r}")
    if device_map is None:
        if device is None:  # a CUDA build names its accelerator even where there is none
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        device = torch.device(device)
        if device.type != "cpu":
            device_map = {"": device}
    if dtype is None:
        is_accelerated = device_map is not None and torch.accelerator.is_available()
        dtype = default_dtype(torch.accelerator.current_accelerator() if is_accelerated else "cpu")
    path_or_repo = DEMO_CHECKPOINT if path_or_repo is None else path_or_repo
    refuse_two_saves(path_or_repo)
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    hub = {name: value for name, value in hub.items() if value}  # revision=None is not "main" to every version
    processor = load_processor(path_or_repo, max_pixels=max_pixels, **hub)
    model = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(
        path_or_repo, dtype=dtype, device_map=device_map, **hub, **kwargs
    )
    model.safety_policy = load_policy(path_or_repo, model.config.safety_categories, **hub)
    return model.eval(), processor


def default_dtype(device):
    """Returns the `torch.dtype` to judge in on a device: float32 on a CPU, bfloat16 on an accelerator."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16


def load_processor(path_or_repo, *, min_pixels=None, max_pixels=None, **hub):
    """Returns the processor of a folder or repository, with other bounds on a picture's pixels if they are given.

    Args:
        min_pixels, max_pixels (`int`, *optional*): smaller pictures are enlarged, larger ones reduced to these.
        hub: as `from_pretrained` takes it.

    Raises:
        ValueError: unless 0 < `min_pixels` <= `max_pixels`, be they given or the processor's own.
    """
    processor = AutoProcessor.from_pretrained(path_or_repo, **hub)
    given = {"shortest_edge": min_pixels, "longest_edge": max_pixels}  # the library's names for them
    if any(value is not None for value in given.values()):
        usual = processor.image_processor.size
        size = {edge: usual[edge] if value is None else value for edge, value in given.items()}
        if not 0 < size["shortest_edge"] <= size["longest_edge"]:
            raise ValueError(
                f"min_pixels {size['shortest_edge']} must be above 0 and not above max_pixels {size['longest_edge']}"
            )
        # By both names: of a folder that has the older ones the library would heed neither alone.
        pixels = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        processor = AutoProcessor.from_pretrained(path_or_repo, size=size, **pixels, **hub)
    return processor


def refuse_two_saves(folder):
    """Raises `ValueError` if the folder's weights are not those of one save: transformers would load one in silence.

    A save is model.safetensors alone, or the shards that model.safetensors.index.json names.
    """
    found = {file.name for file in Path(folder).glob("model*.safetensors")}
    index = Path(folder) / "model.safetensors.index.json"
    if not index.exists():
        expected = {"model.safetensors"}
    else:
        expected = {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    if surplus := sorted(found - expected):
        raise ValueError(
            f"{folder} holds the weights of two saves: {', '.join(surplus)} beside "
            f"{index.name if index.exists() else 'model.safetensors'}; remove those of the older one"
        )


def load_base(path_or_repo, *, safety_categories=None, **kwargs):
    """Returns the weights that a fine-tuning starts from, in evaluation mode: a SafeQwen or a plain Qwen2.5-VL.

    Args:
        path_or_repo (`str` or `os.PathLike`): folder or Hub repository.
        safety_categories (`list[str]`, *optional*):
            The taxonomy to train. If the checkpoint's guard has another one, be it of as many categories, the guard's
            last layer starts anew, drawn by torch's generator, and the guard does not judge until it is trained.
        kwargs: further arguments of the model's `from_pretrained`, e.g. `dtype` and `revision`.
    """
    if safety_categories is not None:
        kwargs |= {"safety_categories": list(safety_categories), "ignore_mismatched_sizes": True}
    refuse_two_saves(path_or_repo)
    return SafeQwen2_5_VLForConditionalGeneration.from_pretrained(path_or_repo, **kwargs).eval()


def folder_digest(folder):
    """Returns the sha256 (`str`) of a folder's weights: the names and bytes of its safetensors files."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).glob("*.safetensors")):
        digest.update(file.name.encode())
        with file.open("rb") as weights:
            while block := weights.read(2**24):
                digest.update(block)
    return digest.hexdigest()
