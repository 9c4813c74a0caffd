"""The run, from settings to a folder with its result."""

import re
import sys
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import EarlyStoppingCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils.hub import cached_file, extract_commit_hash

import safeqwen
from safeqwen.data.collator import SafetyCollator
from safeqwen.data.rows import IGNORED, has_answer, has_label, read_rows
from safeqwen.data.taxonomy import Taxonomy, read_taxonomy
from safeqwen.hub.configuration_safeqwen import SafeQwen2_5_VLConfig
from safeqwen.hub.guard_safeqwen import GUARD
from safeqwen.loading import load_base, load_processor
from safeqwen.prompt import prompt_ids
from safeqwen.training.arguments import LANGUAGE_MODEL_LAYERS
from safeqwen.training.checkpoints import begins_anew, checkpoint_to_resume, claim, describe, record, save_final
from safeqwen.training.features import FeatureRows, FrozenBackbone, feature_rows, weights_digest
from safeqwen.training.trainer import SafetyTrainer, WholeSteps, class_weights, sample_weights


def train(args, command=None, trainer_class=SafetyTrainer):
    """
    Trains as the arguments say, and writes the run's folder.

    Args:
        args ([`SafetyTrainingArguments`])
        command (`str`, *optional*): the command line, for the record.
        trainer_class: [`SafetyTrainer`], or a subclass, say with an optimizer of your own.

    Returns:
        `dict`: the final metrics: of the evaluation data, or, without any, the last that training logged.

    Raises:
        BadData: if rows cannot be trained on.
        ValueError: if the folder holds another run, settings do not fit the model, or there is one class only.
    """
    state = args.distributed_state
    demo = {"demo": str(safeqwen.DEMO_CHECKPOINT)}
    base, processor = demo.get(args.model, args.model), demo.get(args.processor, args.processor)
    hub = {"revision": args.model_revision} if args.model_revision else {}
    pixels = {"min_pixels": args.min_pixels, "max_pixels": args.max_pixels}
    processor = load_processor(processor or base, **pixels, **({} if processor else hub))
    collator = SafetyCollator(processor, args.max_length, args.video_fps, args.max_video_frames)
    config = SafeQwen2_5_VLConfig.from_pretrained(base, **hub)
    taxonomy = read_categories(args.categories, config)
    is_new = _from_main_process(state, lambda: begins_anew(args))
    rows, eval_rows = _from_main_process(state, lambda: _read(args, taxonomy, collator))
    # The commit, where the base comes from the Hub: a branch may be another model tomorrow.
    revision = None if Path(base).exists() else extract_commit_hash(cached_file(base, "config.json", **hub), None)
    run = _from_main_process(state, lambda: describe(args, base, revision, taxonomy, rows, eval_rows, command))
    checkpoint = None if is_new else _from_main_process(state, lambda: checkpoint_to_resume(args, run))

    model = load_model(args, base, taxonomy, hub)
    if checkpoint is None and model.refusal() and state.is_main_process:
        print(f"the guard starts anew: it learns {len(taxonomy.names)} categories", file=sys.stderr)
    model.config.safety_prompt_ids = prompt_ids(processor)
    if args.tuning == "guard_only":
        model.to(args.device)
        weights = weights_digest(model)
        rows = feature_rows(model, weights, rows, collator, args)
        eval_rows = feature_rows(model, weights, eval_rows, collator, args) if eval_rows else None
        trained, collator = FrozenBackbone(model), None
    else:
        trained = add_lora(model, args) if args.tuning == "lora" else model
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # half-precision weights would lose small steps

    steps, patience = WholeSteps(rows, args.rows_per_step), args.early_stopping_patience
    is_weighted = args.class_weights == "balanced"
    trainer = trainer_class(
        model=trained,
        args=args,
        data_collator=collator,
        train_dataset=steps,
        eval_dataset=eval_rows,
        callbacks=[] if patience is None else [EarlyStoppingCallback(patience)],
        class_weights=class_weights(rows.verdict_labels, len(taxonomy.names)) if is_weighted else None,
        sample_weights=sample_weights(rows.labels) + [0.0] * steps.num_blank if args.balanced_sampling else None,
        safety_loss_lambda=model.config.safety_loss_lambda,
    )
    _refuse_uneven_pictures(trainer, rows)  # before the folder is this run's
    if is_new:
        _from_main_process(state, lambda: claim(args.output_dir, run))
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    save_final(trainer, model, processor)  # before an evaluation in half precision casts the weights
    if eval_rows is not None:
        metrics = trainer.evaluate()
    else:
        logs = [log for log in trainer.state.log_history if "loss" in log]
        metrics = {f"last_{name}": value for name, value in (logs[-1] if logs else {}).items()}
    # Not train_loss: it is the main process's alone, and after --resume too small.
    metrics["train_runtime_s"] = result.metrics["train_runtime"]
    if state.is_main_process:
        record(args.output_dir, metrics=metrics)
    return metrics


def read_categories(categories, config):
    """The [`Taxonomy`] of a list of names, of the one YAML file in it, or, without a list, of the model."""
    if categories is not None and len(categories) == 1:
        return read_taxonomy(categories[0])
    return Taxonomy(categories or config.safety_categories)


def load_model(args, base, taxonomy, hub):
    """
    Returns the model to train, in the precision and with the frozen parameters that the settings ask for.

    Raises:
        ValueError: if `frozen` matches no parameter.
    """
    options = {"attn_implementation": args.attn_implementation} if args.attn_implementation else {}
    half = "float16" if args.fp16 else "bfloat16" if args.bf16 else "float32"
    dtype = args.dtype or ("float32" if args.tuning == "full" else half)
    torch.manual_seed(args.seed)  # of a guard that starts anew
    model = load_base(base, safety_categories=taxonomy.names, dtype=getattr(torch, dtype), **options, **hub)
    if args.safety_loss_lambda is not None:
        model.config.safety_loss_lambda = args.safety_loss_lambda
    for module in model.img_safety_head.modules():
        if isinstance(module, nn.Dropout):
            module.p = args.guard_dropout
    if args.frozen is not None:
        names = [name for name, _ in model.named_parameters() if re.search(args.frozen, name)]
        if not names:
            raise ValueError(
                f"frozen {args.frozen!r} matches no parameter; expected a pattern of names like "
                f"{next(name for name, _ in model.named_parameters())}"
            )
        for name in names:
            model.get_parameter(name).requires_grad_(False)
    return model


def _read(args, taxonomy, collator):
    options = {"image_root": args.image_root, "on_bad_row": args.on_bad_row}
    parts = {"data": read_rows(args.data, taxonomy, collator, split=args.data_split, **options)}
    if args.eval_data:
        parts["eval_data"] = read_rows(args.eval_data, taxonomy, collator, split=args.eval_split, **options)
    for name, part in parts.items():
        if args.tuning == "guard_only" and any(has_label(example.picture_categories) for example in part.examples):
            raise ValueError(f"{name} has picture_categories, which guard_only cannot learn; take lora or full")
        for problem in part.problems:
            print(f"skipped: {problem}", file=sys.stderr)
        cut = f", {part.num_cut} cut at max_length {args.max_length}" if part.num_cut else ""
        print(f"{name}: {len(part)} rows, {len(part.problems)} skipped{cut}", file=sys.stderr)
    rows = parts["data"]
    if args.tuning == "guard_only" and not has_label(rows.labels):
        raise ValueError("tuning: guard_only learns from verdict labels, but no row has one; add safety_label to rows")
    _name_missing_categories(args, taxonomy, rows)
    return rows, parts.get("eval_data")


def _name_missing_categories(args, taxonomy, rows):
    """Says which categories have no row; raises if there is but one, and nothing else to learn."""
    seen = {taxonomy.names[label] for label in rows.verdict_labels if label != IGNORED}
    if not seen:
        return
    missing = ", ".join(name for name in taxonomy.names if name not in seen)
    if len(seen) == 1:
        told = f"all labels are {seen.pop()!r}, so the guard would learn to say that of every picture"
        if args.tuning == "guard_only" or not any(has_answer(example.messages) for example in rows.examples):
            raise ValueError(f"{told}; add rows of other categories ({missing})")
        print(f"warning: {told}; leave the labels out to train the answers alone", file=sys.stderr)
    elif missing:
        print(f"warning: no row has one of these categories, so they are not learnt: {missing}", file=sys.stderr)


def _refuse_uneven_pictures(trainer, rows):
    """Raises if some rows have pictures and some not where each pass must gather all weights in all processes."""
    engine = trainer.accelerator.distributed_type.value
    if not (engine == "FSDP" or is_deepspeed_zero3_enabled()) or isinstance(rows, FeatureRows):
        return
    kinds = {(bool(example.images), bool(example.videos)) for example in rows.examples}
    if len(kinds) > 1:
        raise ValueError(
            f"with {engine} all rows need the same kinds of pictures, or the processes would wait for each other for "
            "ever; these have some with images and some without, or videos beside images: train them by DDP or apart"
        )


def add_lora(model, args):
    """
    Returns the model under PEFT's wrapper: LoRA on the language model, and the whole guard.

    Raises:
        ValueError: if `lora_targets` matches no layer, or one of the vision tower or guard.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=args.lora_rank,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_targets,
        modules_to_save=[GUARD],
    )
    remedy = f"expected layers of the language model; the default is {LANGUAGE_MODEL_LAYERS}"
    try:
        wrapped = get_peft_model(model, config)
    except ValueError as error:
        raise ValueError(f"lora_targets {args.lora_targets!r} matches no layer ({error}); {remedy}") from error
    adapted = [name for name, module in wrapped.named_modules() if hasattr(module, "lora_A")]
    if wrong := [name for name in adapted if ".language_model." not in name]:
        raise ValueError(
            f"lora_targets {args.lora_targets!r} matches {wrong[0].split('base_model.model.')[-1]}; {remedy}"
        )
    return wrapped


def _from_main_process(state, function):
    """What `function` returns in the main process, in all of them; what it raises there is raised in all."""
    result = [None, None]
    if state.is_main_process:
        try:
            result[0] = function()
        except Exception as error:
            result[1] = error
    if state.num_processes > 1:
        broadcast_object_list(result)
    if result[1] is not None:
        raise result[1]
    return result[0]
