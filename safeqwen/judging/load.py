"""Models that are ready to judge, with their processors and policies."""

import torch

from safeqwen.fingerprint import hub_file, weights_fingerprint
from safeqwen.hub.modeling_safeqwen import SafeQwen2_5_VLForConditionalGeneration
from safeqwen.judging.policy import POLICY_FILE, SafetyPolicy
from safeqwen.loading import DEMO_CHECKPOINT, hub_of, load_processor, refuse_two_saves


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
    hub = hub_of({"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only})
    processor = load_processor(path_or_repo, max_pixels=max_pixels, **hub)
    model = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(
        path_or_repo, dtype=dtype, device_map=device_map, **hub, **kwargs
    )
    model.safety_policy = load_policy(path_or_repo, model.config.safety_categories, **hub)
    return model.eval(), processor


def default_dtype(device):
    """Returns the `torch.dtype` to judge in on a device: float32 on a CPU, bfloat16 on an accelerator."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16


def load_policy(path_or_repo, categories, **hub):
    """
    Returns the [`SafetyPolicy`] in a model's folder or Hub repository, or `None` if there is none.

    Args:
        path_or_repo (`str` or `os.PathLike`)
        categories (`list[str]`): of the model.
        hub: `revision`, `token`, `cache_dir`, `local_files_only` as `from_pretrained` takes them.

    Raises:
        ValueError: if the policy is broken, or for other categories or weights.
        OSError: if it cannot be read, or the Hub cannot be asked whether there is one.
    """
    file = hub_file(path_or_repo, POLICY_FILE, **hub)
    if file is None:
        return None
    policy = SafetyPolicy.load(file, categories)
    if policy.model is None:
        return policy
    return SafetyPolicy.load(file, categories, weights_fingerprint(path_or_repo, **hub))
