"""`safeqwen export`: a training run becomes a folder, or a Hub repository, that anyone can load.

A run is a folder that `safeqwen train` writes and this module reads:

    RUN/run.json    what was done, as JSON:
        safeqwen            version of this package
        command             the command line that made the run, quoted as by shlex.join
        tuning              "lora", "full" or "guard_only"
        base_model          folder or Hub repository that the training started from
        base_revision       commit, branch or tag of that repository, or null
        base_sha256         of the weights in that folder (`safeqwen.loading.folder_digest`), or null
        safety_categories   the names of the guard's columns, in order
        config              all settings, by name
        versions            {package: version}
        git_commit          of the checkout, or null
        data                {"train": DATA, "eval": DATA or null}; DATA is {"files": [paths], "rows": n, "skipped": n,
                            "sha256": hex, "rows_by_label": {name: n}, "rows_with_answer": n}
        metrics             {name: number}, null until the run has ended
    RUN/final/      the result, whole when the run has ended: the processor's files (`save_processor`), and for
        lora                a PEFT adapter: adapter_config.json, adapter_model.safetensors with LoRA and, through
                            modules_to_save=["img_safety_head"], the guard
        full                all that the model's save_pretrained writes
        guard_only          img_safety_head.safetensors with the keys img_safety_head.mlp.0.weight etc.
"""

import json
import os
import shutil
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from huggingface_hub import HfApi
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoProcessor

from safeqwen.hub import configuration_safeqwen, modeling_safeqwen
from safeqwen.hub.modeling_safeqwen import GUARD
from safeqwen.loading import folder_digest, load_base
from safeqwen.model_card import model_card, without_folders


RUN_FIELDS = (
    "safeqwen",
    "command",
    "tuning",
    "base_model",
    "base_revision",
    "safety_categories",
    "config",
    "versions",
    "git_commit",
    "data",
    "metrics",
)
TUNINGS = ("lora", "full", "guard_only")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
CODE_FILES = [Path(module.__file__) for module in (configuration_safeqwen, modeling_safeqwen)]
RECORD = "safeqwen_run.json"  # run.json, as published
GUARD_FILE = f"{GUARD}.safetensors"


# ------------------------------------------------------------------------------------------------------ reading a run


def read_run(run):
    """Returns what run.json says of a finished run (`dict`).

    Raises:
        ValueError: if the folder is no run, the run is not finished, or its record lacks a field.
    """
    file = Path(run) / "run.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{run} is no training run ({error}): give the folder that safeqwen train wrote") from error
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): was it edited, or cut off?") from error
    missing = [field for field in RUN_FIELDS if field not in record] if isinstance(record, dict) else RUN_FIELDS
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)}: was it written by another version of safeqwen?")
    if record["tuning"] not in TUNINGS:
        raise ValueError(f"{file} has the tuning {record['tuning']!r}, not one of {', '.join(TUNINGS)}")
    if record["metrics"] is None or not (Path(run) / "final").is_dir():
        raise ValueError(f"{run} is not finished; to go on with it: {record['command']} --resume")
    return record


def load_run(run, dtype="auto"):
    """Returns the model of a run as `load_run_model` does, and its processor.

    Raises:
        ValueError: as `load_run_model`, and if the processor cannot be loaded.
    """
    model = load_run_model(run, dtype)
    try:
        return model, AutoProcessor.from_pretrained(Path(run) / "final")
    except Exception as error:  # what the other generation saved without save_processor fails in its own ways
        raise ValueError(
            f"the processor in {run}/final cannot be loaded by transformers {transformers.__version__}: {error}; was "
            f"it saved by transformers {read_run(run)['versions'].get('transformers')}?"
        ) from error


def load_run_model(run, dtype="auto"):
    """Returns the model of a run as it was trained, unmerged, in evaluation mode.

    Args:
        run (`str` or `os.PathLike`): the folder.
        dtype (`torch.dtype` or `str`, *optional*, defaults to as saved):
            Of the base. What was trained beside it, LoRA and the guard, stays float32.

    Returns:
        `PeftModel` for LoRA, else [`SafeQwen2_5_VLForConditionalGeneration`].

    Raises:
        ValueError: as `read_run`, and if base, result and record do not fit together, or the guard was never trained.
    """
    record, final = read_run(run), Path(run) / "final"
    try:
        if record["tuning"] == "full":
            model = load_base(final, dtype=dtype)
        else:
            model = _load_base_of(record, dtype)
            model.img_safety_head.float()  # else the trained guard would be rounded on its way in
        if record["tuning"] == "lora":
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*missing adapter keys")
                model = PeftModel.from_pretrained(model, final).eval()
        elif record["tuning"] == "guard_only":
            guard = load_file(final / GUARD_FILE)
            model.img_safety_head.load_state_dict({k.removeprefix(f"{GUARD}."): t for k, t in guard.items()})
    except (OSError, RuntimeError, UserWarning, SafetensorError) as error:
        raise ValueError(f"the result of {run} cannot be loaded: {error}") from error
    guarded = model.get_base_model() if isinstance(model, PeftModel) else model
    if guarded.config.safety_categories != record["safety_categories"]:
        raise ValueError(
            f"{final} has the categories {guarded.config.safety_categories}, but run.json says "
            f"{record['safety_categories']}: do they belong to one run?"
        )
    if refusal := guarded._refusal():
        raise ValueError(
            f"{run} cannot judge, so it is not worth publishing: {refusal}. Were there rows with a safety label?"
        )
    return model


def _load_base_of(record, dtype):
    options = {"revision": record["base_revision"]} if record["base_revision"] else {}
    expected = record.get("base_sha256")
    if expected and Path(record["base_model"]).exists() and folder_digest(record["base_model"]) != expected:
        raise ValueError(
            f"the weights in {record['base_model']} are no longer those that the training started from; put those back"
        )
    try:
        return load_base(record["base_model"], safety_categories=record["safety_categories"], dtype=dtype, **options)
    except (OSError, ValueError) as error:  # 4.x takes a path that is gone for a repository with an impossible name
        raise ValueError(
            f"the base model {record['base_model']} cannot be loaded; if it has moved, correct base_model in "
            f"run.json. {error}"
        ) from error


# ------------------------------------------------------------------------------------------------------------ writing


def export(
    run,
    out,
    push=None,
    dtype="float16",
    max_shard_size="5GB",
    private=None,
    adapter_only=False,
):
    """Returns the folder (`Path`) that a finished run was written to, ready to load and to publish.

    It holds the merged weights, the two code files, the configuration, the processor for both generations of
    transformers, a model card, and safeqwen_run.json, which is the run's record without folders of this machine. The
    folder appears as a whole or not at all.

    Args:
        run (`str` or `os.PathLike`): folder of the run.
        out (`str` or `os.PathLike`): a folder that does not exist yet, or is empty.
        push (`str`, *optional*): Hub repository to upload to, created where there is none.
        dtype (`str`, *optional*): of the weights: "float16", "bfloat16" or "float32".
        max_shard_size (`str`, *optional*): of one weights file.
        private (`bool`, *optional*): of a repository that is created. By default as its owner has set.
        adapter_only (`bool`, *optional*, defaults to `False`):
            Write the adapter of a LoRA run as it was trained, for `PeftModel.from_pretrained` on the base.

    Raises:
        ValueError: as `load_run`; if `out` holds something; if a weight is not finite, or does not fit into `dtype`;
            if there is no adapter to write.
        RuntimeError: if the folder was written, but not uploaded.
    """
    out = Path(out).resolve()
    record = read_run(run)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if adapter_only and record["tuning"] != "lora":
        raise ValueError(f"{run} has no adapter, its tuning is {record['tuning']}: leave --adapter-only out")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty: choose another folder, or remove it")
    if push is not None:
        _refuse_unless_logged_in(push)  # before the work, not after it

    card = model_card(record, push or out.name, None if adapter_only else dtype)
    model, processor = load_run(run)
    with _whole_or_nothing(out) as folder:
        if adapter_only:
            _write_adapter(record, Path(run) / "final", folder)
        else:
            merged = _merge(model, DTYPES[dtype]) if isinstance(model, PeftModel) else model
            _cast(merged, DTYPES[dtype])
            merged.save_pretrained(folder, max_shard_size=max_shard_size)
            for file in CODE_FILES:
                if (folder / file.name).read_bytes() != file.read_bytes():
                    raise RuntimeError(f"save_pretrained wrote another {file.name} than {file}; please report this")
        save_processor(processor, folder)
        write_json(folder / RECORD, without_folders(record))
        (folder / "README.md").write_text(card, encoding="utf-8")
        for file in folder.glob("*.safetensors"):  # readable for the owner alone, as safetensors writes them
            file.chmod((folder / "README.md").stat().st_mode)
    if push is not None:
        _upload(out, push, private, f"SafeQwen, trained from {without_folders(record['base_model'])}")
    return out


def save_processor(processor, folder):
    """Writes a processor's files so that both generations of transformers can load them.

    Args:
        processor (`Qwen2_5_VLProcessor`)
        folder (`str` or `os.PathLike`): made if there is none.
    """
    folder = Path(folder)
    processor.save_pretrained(folder)
    # transformers 5.x keeps all in processor_config.json; 4.x reads a file for each part.
    processor.image_processor.to_json_file(folder / "preprocessor_config.json")
    processor.video_processor.to_json_file(folder / "video_preprocessor_config.json")
    # 4.x takes no list under the name that 5.x writes; both know the older name.
    file = folder / "tokenizer_config.json"
    tokenizer_config = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(tokenizer_config.get("extra_special_tokens"), list):
        tokenizer_config["additional_special_tokens"] = tokenizer_config.pop("extra_special_tokens")
    for how_it_was_loaded in ("is_local", "local_files_only"):
        tokenizer_config.pop(how_it_was_loaded, None)
    write_json(file, tokenizer_config)


@contextmanager
def _whole_or_nothing(out):
    """Gives a folder to write to, which becomes `out` when all is written, and vanishes if it could not be."""
    folder = out.with_name(f".{out.name}.{os.getpid()}.partial")
    folder.mkdir(parents=True)
    try:
        yield folder
        if out.exists():
            out.rmdir()  # it is empty, and Windows does not rename onto a folder
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


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


def _write_adapter(record, final, folder):
    shutil.copyfile(final / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    config = json.loads((final / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = without_folders(record["base_model"])
    write_json(folder / "adapter_config.json", config)


def write_json(file, fields):
    """Writes a JSON file that is whole whenever it is there."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, file)


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


def run(args):
    """Runs `safeqwen export` with the arguments of `safeqwen_cli`, and returns its exit code."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # between the libraries
    try:
        out = export(
            args.run_folder,
            args.out,
            push=args.push,
            dtype=args.dtype,
            max_shard_size=args.max_shard_size,
            private=args.private or None,
            adapter_only=args.adapter_only,
        )
    except (ValueError, RuntimeError, OSError) as error:
        print(f"safeqwen: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    print(out if args.push is None else f"https://huggingface.co/{args.push}")
    if not args.adapter_only:
        print(f"safeqwen: try it: safeqwen check {args.out} --run {args.run_folder}", file=sys.stderr)
    return 0
