"""`safeqwen export`: a training run becomes a folder, or a Hub repository, that anyone can load."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import HfApi
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError

from safeqwen.files import whole_or_nothing, write_json
from safeqwen.fingerprint import weights_fingerprint
from safeqwen.hub import CODE_FILES
from safeqwen.judging.policy import SafetyPolicy
from safeqwen.processor import save_processor
from safeqwen.prompt import prompt_ids
from safeqwen.publishing.evaluations import check_weights_of, read_evaluation
from safeqwen.publishing.model_card import model_card, without_folders
from safeqwen.publishing.record import ADAPTER_FILE, load_run, read_run


DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
RECORD = "safeqwen_run.json"  # run.json, as published


def export(
    run,
    out,
    push=None,
    dtype="float16",
    max_shard_size="5GB",
    private=None,
    adapter_only=False,
    evaluations=(),
    policy=None,
):
    """Returns the folder (`Path`) that a finished run was written to, ready to load and to publish.

    It holds the merged weights, the code files, the configuration, the processor for both generations of
    transformers, a model card, and safeqwen_run.json, which is the run's record without folders of this machine. The
    folder appears as a whole or not at all.

    An evaluation needs a folder to evaluate: export, evaluate and calibrate that folder, then export the run again
    with what came of it. The same run in the same dtype gives the same weights, and other weights are refused.

    Args:
        run (`str` or `os.PathLike`): folder of the run.
        out (`str` or `os.PathLike`): a folder that does not exist yet, or is empty.
        push (`str`, *optional*): Hub repository to upload to, created where there is none.
        dtype (`str`, *optional*): of the weights: "float16", "bfloat16" or "float32".
        max_shard_size (`str`, *optional*): of one weights file.
        private (`bool`, *optional*): of a repository that is created. By default as its owner has set.
        adapter_only (`bool`, *optional*, defaults to `False`):
            Write the adapter of a LoRA run as it was trained, for `PeftModel.from_pretrained` on the base.
        evaluations (`list` of `str` or `os.PathLike`, *optional*):
            Folders that `safeqwen evaluate` wrote, for the card and its `model-index`.
        policy (`str` or `os.PathLike`, *optional*): file of a `SafetyPolicy`, to be written beside the weights.

    Raises:
        ValueError: as `load_run`; if `out` holds something, or another export left it half written; if a weight is
            not finite, or does not fit into `dtype`; if there is no adapter to write; if an evaluation or the policy
            cannot be read, or belongs to other categories or other weights.
        OSError: if `out` cannot be written, e.g. because the disk is full.
        RuntimeError: if the folder was written, but not uploaded.
    """
    out = Path(out).resolve()
    record = read_run(run)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if adapter_only and record["tuning"] != "lora":
        raise ValueError(f"{run} has no adapter, its tuning is {record['tuning']}: leave --adapter-only out")
    if adapter_only and (evaluations or policy is not None):
        raise ValueError("evaluations and policies are of whole weights, not of an adapter: leave --adapter-only out")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty: choose another folder, or remove it")
    if push is not None:
        _refuse_unless_logged_in(push)  # before the work, not after it

    categories = record["safety_categories"]
    evaluations = [read_evaluation(folder, categories) for folder in evaluations]
    if policy is not None:
        try:
            policy = SafetyPolicy.load(policy, categories)
            policy = replace(policy, fitted=without_folders(policy.fitted))
        except OSError as error:
            raise ValueError(f"the policy cannot be read: {error}") from error
    card = model_card(record, push or out.name, None if adapter_only else dtype, evaluations, policy)
    with whole_or_nothing(out) as folder:
        model, processor = load_run(run)
        try:
            if adapter_only:
                _write_adapter(record, Path(run) / "final", folder)
            else:
                model.config.safety_prompt_ids = prompt_ids(processor)
                _write_model(model, DTYPES[dtype], max_shard_size, folder)
            if evaluations or policy is not None:
                _check_fingerprint(weights_fingerprint(folder), evaluations, policy)
            if policy is not None:
                policy.save(folder)
            save_processor(processor, folder)
            evaluated = {"evaluations": evaluations} if evaluations else {}
            write_json(folder / RECORD, without_folders({**record, **evaluated}))
            (folder / "README.md").write_text(card, encoding="utf-8")
            for file in folder.glob("*.safetensors"):  # readable for the owner alone, as safetensors writes them
                file.chmod((folder / "README.md").stat().st_mode)
        except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
            raise OSError(f"{out} could not be written, and nothing was left of it: {error}") from error
    if push is not None:
        _upload(out, push, private, f"SafeQwen, trained from {without_folders(record['base_model'])}")
    return out


def _write_model(model, dtype, max_shard_size, folder):
    merged = _merge(model, dtype) if isinstance(model, PeftModel) else model
    _cast(merged, dtype)
    merged.save_pretrained(folder, max_shard_size=max_shard_size)
    for file in CODE_FILES:
        if (folder / file.name).read_bytes() != file.read_bytes():
            raise RuntimeError(f"save_pretrained wrote another {file.name} than {file}; please report this")


def _merge(model, dtype):
    """A model with LoRA added to its weights in float32, one layer at a time, so that each weight is rounded once."""
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, BaseTunerLayer):
            base = layer.get_base_layer().float()
            layer.merge()
            _cast(base, dtype, f"{name}.")
    return model.unload()


def _cast(module, dtype, prefix=""):
    """Rounds the parameters to dtype, and refuses those that are not finite afterwards."""
    for name, parameter in module.named_parameters():
        cast = parameter.detach().to(dtype)
        if not cast.isfinite().all():
            if not parameter.isfinite().all():
                raise ValueError(f"{prefix}{name} is not finite: the training diverged; lower its learning rate")
            raise ValueError(
                f"{prefix}{name} holds {parameter.abs().max():.6g}, but {str(dtype).removeprefix('torch.')} ends at "
                f"{torch.finfo(dtype).max:.6g}: export with --dtype bfloat16"
            )
        parameter.data = cast


def _check_fingerprint(fingerprint, evaluations, policy):
    """Raises a `ValueError` if an evaluation or the policy (or `None`) belongs to other weights."""
    check_weights_of(evaluations, fingerprint)
    if policy is not None:
        policy.check(fingerprint=fingerprint)


def _write_adapter(record, final, folder):
    shutil.copyfile(final / ADAPTER_FILE, folder / ADAPTER_FILE)
    config = json.loads((final / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = without_folders(record["base_model"])
    write_json(folder / "adapter_config.json", config)


def _refuse_unless_logged_in(repo):
    try:
        HfApi().whoami()
    except Exception as error:  # no token, a wrong one, no network: each its own class
        raise ValueError(f"cannot upload to {repo}: {error}; log in with `hf auth login`, or set HF_TOKEN") from error


def _upload(out, repo, private, commit_message):
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(folder_path=out, repo_id=repo, commit_message=commit_message)
    except Exception as error:  # the work is done and shall not look lost
        raise RuntimeError(f"{out} is written, but was not uploaded: {error}; try `hf upload {repo} {out}`") from error
