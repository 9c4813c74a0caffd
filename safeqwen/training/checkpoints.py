"""A run's folder: its record, its checkpoints, its result, and what a run can be resumed from."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file, save

import safeqwen
from safeqwen.files import write_json
from safeqwen.hub.guard_safeqwen import GUARD
from safeqwen.loading import GUARD_FILE, folder_digest
from safeqwen.processor import save_processor
from safeqwen.provenance import git_commit, package_versions


BASE = ("base_model", "base_revision", "base_sha256", "safety_categories")
COMPLETE = "complete"  # a file that stands in a checkpoint once all of it is written
PACKAGES = ("safeqwen", "torch", "transformers", "peft", "accelerate", "safetensors", "pillow", "datasets")
# Settings that a resumed run may change: they do not change what is learnt.
FREE_ON_RESUME = set(
    """
    activation_checkpointing dataloader_num_workers ddp_find_unused_parameters deepspeed disable_tqdm
    eval_on_start feature_cache fsdp fsdp_config gradient_accumulation_steps gradient_checkpointing log_level
    logging_dir logging_steps output_dir per_device_eval_batch_size report_to resume run_name save_total_limit
    torch_compile use_cpu
    """.split()
)


@contextmanager
def written_whole(folder, args):
    """Removes a folder that could not be written to its end, say because the disk is full, and says what to do."""
    try:
        yield
    except Exception as error:  # each library has its own
        if args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        last = last_checkpoint(args.output_dir) or "the beginning"
        raise OSError(
            f"{folder} could not be written ({error}); make room, and --resume goes on from {last}"
        ) from error


def last_checkpoint(output_dir):
    """The newest checkpoint in a run's folder that was written to its end (`Path`), or `None`."""
    whole = [marker.parent for marker in Path(output_dir).glob(f"checkpoint-*/{COMPLETE}")]
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def begins_anew(args):
    """
    Returns whether a run is to begin in the output folder (`bool`); else one that is there is to go on.

    Raises:
        ValueError: if the folder holds a run and `resume` is not set, or checkpoints or a result without a run.
    """
    output = Path(args.output_dir)
    if (output / "run.json").exists():
        if not args.resume:
            raise ValueError(f"{output} already holds a run; go on with it by --resume, or choose another output_dir")
        return False
    if (output / "final").exists() or any(output.glob("checkpoint-*")):
        raise ValueError(f"{output} holds checkpoints or a result of something else; choose another output_dir")
    return True


def claim(output_dir, run):
    """
    Makes the folder this run's, by writing its record where there is none.

    Raises:
        ValueError: if another run has claimed it since this one was started.
    """
    file = Path(output_dir, "run.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file.open("x", encoding="utf-8") as out:  # of two runs that come here at once only one makes the file
            json.dump(run, out, indent=2, ensure_ascii=False)
    except FileExistsError:
        raise ValueError(
            f"{output_dir} now holds a run that was started at the same time; choose another output_dir"
        ) from None
    except OSError:
        file.unlink(missing_ok=True)
        raise


def describe(args, base, revision, taxonomy, rows, eval_rows, command):
    """The run's record, as run.json holds it."""
    return {
        "safeqwen": safeqwen.__version__,
        "command": command,
        "tuning": args.tuning,
        "base_model": str(Path(base).resolve()) if Path(base).exists() else base,
        "base_revision": revision,
        "base_sha256": folder_digest(base) if Path(base).exists() else None,
        "safety_categories": taxonomy.names,
        "config": {**args.given, "rows_per_step": args.rows_per_step},
        "versions": package_versions(PACKAGES),
        "git_commit": git_commit(),
        "data": {
            "train": rows.summary(taxonomy.names),
            "eval": eval_rows.summary(taxonomy.names) if eval_rows else None,
        },
        "metrics": None,
    }


def checkpoint_to_resume(args, run):
    """
    Returns the last whole checkpoint (`Path`) of the run in the output folder, or `None` if it has none yet.

    Raises:
        ValueError: if the folder holds a run that has ended, or was made of other settings or data.
    """
    output = Path(args.output_dir)
    saved = json.loads((output / "run.json").read_text(encoding="utf-8"))
    if saved["metrics"] is not None:
        raise ValueError(f"{output} holds a run that has ended; choose another output_dir")
    differences = [
        f"{name} (was {saved['config'].get(name)!r}, is {run['config'].get(name)!r})"
        for name in sorted({*saved["config"], *run["config"]} - FREE_ON_RESUME)
        if saved["config"].get(name) != run["config"].get(name)
    ]
    differences += [name for name in BASE if saved.get(name) != run[name]]
    differences += [
        f"the rows of the {name} data"
        for name in ("train", "eval")
        if (saved["data"][name] or {}).get("sha256") != (run["data"][name] or {}).get("sha256")
    ]
    if differences:
        raise ValueError(
            f"{output} holds another run, which differs in {', '.join(differences)}; choose another output_dir"
        )
    for folder in output.glob("checkpoint-*"):
        if not (folder / COMPLETE).exists():  # the process was killed while it wrote it
            shutil.rmtree(folder)
    return last_checkpoint(output)


def save_final(trainer, model, processor):
    """
    Writes the result of a run: what was trained, and the processor.

    An adapter and a guard alone name their categories (JSON) in the metadata of their safetensors file, as
    "safety_categories": a whole model does in its configuration.
    """
    args, final = trainer.args, Path(trainer.args.output_dir, "final")
    with written_whole(final, args):
        if args.tuning != "guard_only":
            trainer.save_model(str(final))  # by all processes
        if not args.should_save:
            return
        if args.tuning == "guard_only":
            final.mkdir(exist_ok=True)
            head = {f"{GUARD}.{name}": tensor.cpu() for name, tensor in model.img_safety_head.state_dict().items()}
            _save_with_categories(head, final / GUARD_FILE, model.config)
        elif args.tuning == "lora":
            file = final / "adapter_model.safetensors"
            _save_with_categories(load_file(file), file, model.config)
        (final / "training_args.bin").unlink(missing_ok=True)  # a pickle: run.json says it better
        save_processor(processor, final)


def _save_with_categories(tensors, file, config):
    # As bytes first: tensors that were loaded from this very file may still be read from it.
    data = save(tensors, {"format": "pt", "safety_categories": json.dumps(config.safety_categories)})
    file.write_bytes(data)


def record(output_dir, **entries):
    file = Path(output_dir, "run.json")
    write_json(file, {**json.loads(file.read_text(encoding="utf-8")), **entries})
