"""What a training run leaves, read back: its record, and its model as it was trained.

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
                    The guard's columns are named by config.json, or without one (lora, guard_only) by the metadata of
                    the safetensors file: a list, as JSON under "safety_categories".
"""

import json
import warnings
from pathlib import Path

import transformers
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoProcessor

from safeqwen.hub.guard_safeqwen import GUARD
from safeqwen.loading import GUARD_FILE, folder_digest, load_base


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
ADAPTER_FILE = "adapter_model.safetensors"  # PEFT's name


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
    for names in (guarded.config.safety_categories, _own_categories(final)):
        if names is not None and names != record["safety_categories"]:
            raise ValueError(
                f"{final} has the categories {names}, but run.json says {record['safety_categories']}: do they belong "
                "to one run?"
            )
    if refusal := guarded.refusal():
        raise ValueError(
            f"{run} cannot judge, so it is not worth publishing: {refusal}. Were there rows with a safety label?"
        )
    return model


def _own_categories(final):
    """The category names (`list[str]`) that the result itself tells, or `None` if it does not."""
    for name in (GUARD_FILE, ADAPTER_FILE):
        if (final / name).exists():
            with safe_open(final / name, "pt") as tensors:
                return json.loads((tensors.metadata() or {}).get("safety_categories", "null"))
    if (final / "config.json").exists():
        return json.loads((final / "config.json").read_text(encoding="utf-8")).get("safety_categories")
    return None


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
