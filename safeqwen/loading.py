"""`load`: a model and its processor with sensible settings; `load_base`: a model to train."""

import hashlib
from pathlib import Path

import torch
from transformers import AutoProcessor

from safeqwen.hub.modeling_safeqwen import SafeQwen2_5_VLForConditionalGeneration


# A tiny SafeQwen that knows drawn pictograms: for trying things out, not for moderation.
DEMO_CHECKPOINT = Path(__file__).parent / "demo"


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
    **kwargs,
):
    """Returns a SafeQwen in evaluation mode, and its processor.

    The package's own classes are used: no code of the repository is run.

    Args:
        path_or_repo (`str` or `os.PathLike`, *optional*):
            A folder or a Hub repository. Without one it is `safeqwen.DEMO_CHECKPOINT`, which knows drawn pictograms
            only and is not for moderation.
        dtype (`torch.dtype` or `str`, *optional*):
            Of the weights. By default float32 on a CPU, where half precision is slow and less exact, and elsewhere as
            saved.
        device (`str` or `torch.device`, *optional*):
            Where the model runs. By default an accelerator if there is one.
        device_map (*optional*):
            As `from_pretrained` takes it, in place of `device`: `"auto"` spreads the model over several devices.
        revision, token, cache_dir, local_files_only:
            As `from_pretrained` takes them.
        kwargs:
            Further arguments of the model's `from_pretrained`, e.g. `quantization_config`, or `attn_implementation`
            (by default the library's choice, scaled dot product attention).

    Returns:
        `tuple`: ([`SafeQwen2_5_VLForConditionalGeneration`], `Qwen2_5_VLProcessor`)

    Raises:
        ValueError: if both `device` and `device_map` are given.
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
        dtype = "auto" if device_map is not None else torch.float32
    path_or_repo = DEMO_CHECKPOINT if path_or_repo is None else path_or_repo
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    hub = {name: value for name, value in hub.items() if value}  # revision=None is not "main" to every version
    processor = AutoProcessor.from_pretrained(path_or_repo, **hub)
    model = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(
        path_or_repo, dtype=dtype, device_map=device_map, **hub, **kwargs
    )
    return model.eval(), processor


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
        kwargs |= {
            "safety_categories": list(safety_categories),
            "num_safety_categories": len(safety_categories),
            "ignore_mismatched_sizes": True,
        }
    model = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(path_or_repo, **kwargs).eval()
    if not model.img_safety_head.is_trained():
        # Columns of as many other categories have been loaded: they would go on meaning the old ones.
        last = model.img_safety_head.mlp[-1]
        torch.nn.init.normal_(last.weight, std=model.config.text_config.initializer_range)
        torch.nn.init.zeros_(last.bias)
    return model


def folder_digest(folder):
    """Returns the sha256 (`str`) of a folder's weights: the names and bytes of its safetensors files."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).glob("*.safetensors")):
        digest.update(file.name.encode())
        with file.open("rb") as weights:
            while block := weights.read(2**24):
                digest.update(block)
    return digest.hexdigest()
