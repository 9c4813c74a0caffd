"""
`safeqwen train`: fine-tunes a SafeQwen, or puts a guard on a Qwen2.5-VL, with transformers' Trainer and PEFT.

Read in this order: `SafetyTrainingArguments` (what a configuration file may hold), `SafetyTrainer` (the two losses and
the two learning rates), `train` (the run from start to end).

A run's folder holds `run.json` (settings, versions, git commit, data and their fingerprint, metrics), checkpoints, and
`final/`: an adapter, a whole model, or the guard alone, with the processor. `safeqwen export` makes of it a model that
anyone can load.
"""

import dataclasses
import difflib
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from accelerate.utils import broadcast_object_list, gather
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Sampler
from transformers import (
    AutoProcessor,
    EarlyStoppingCallback,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    trainer_utils,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils.hub import cached_file, extract_commit_hash

import safeqwen
from safeqwen.data import (
    IGNORED,
    SafetyCollator,
    Taxonomy,
    class_weights,
    has_label,
    read_rows,
    read_taxonomy,
    sample_weights,
)
from safeqwen.files import write_json
from safeqwen.hub.configuration_safeqwen import SafeQwen2_5_VLConfig
from safeqwen.hub.modeling_safeqwen import GUARD, SafeQwen2_5_VLVerdict
from safeqwen.loading import folder_digest, load_base
from safeqwen.optimizers import Muon, SeveralOptimizers
from safeqwen.processor import save_processor
from safeqwen.provenance import git_commit, package_versions
from safeqwen.publishing.record import GUARD_FILE


BASE = ("base_model", "base_revision", "base_sha256", "safety_categories")
COMPLETE = "complete"  # a file that stands in a checkpoint once all of it is written
# Qwen2.5-VL's vision blocks have layers of these names too, so that the pattern is anchored to the language model.
LANGUAGE_MODEL_LAYERS = r".*\.language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
PACKAGES = ("safeqwen", "torch", "transformers", "peft", "accelerate", "safetensors", "pillow", "datasets")
# Settings that a resumed run may change: they do not change what is learnt.
FREE_ON_RESUME = {
    "activation_checkpointing",
    "dataloader_num_workers",
    "ddp_find_unused_parameters",
    "deepspeed",
    "disable_tqdm",
    "eval_on_start",
    "feature_cache",
    "fsdp",
    "fsdp_config",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "log_level",
    "logging_dir",
    "logging_steps",
    "output_dir",
    "per_device_eval_batch_size",
    "report_to",
    "resume",
    "run_name",
    "save_total_limit",
    "torch_compile",
    "use_cpu",
}


@dataclass
class SafetyTrainingArguments(TrainingArguments):
    """
    What a run is made of: transformers' own training arguments, under their own names, and these.

    Raises:
        ValueError: if settings contradict each other.
    """

    model: str | None = field(
        default=None, metadata={"help": "folder or repository of a SafeQwen or Qwen2.5-VL; demo"}
    )
    model_revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of the repository"})
    processor: str | None = field(default=None, metadata={"help": "folder or repository (default: the model's)"})
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "of the weights that stay as they are: float32, bfloat16 or float16 (default: as fp16 and bf16 "
            "say). Weights that are trained are float32"
        },
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "e.g. sdpa, flash_attention_2"})
    tuning: str = field(default="lora", metadata={"help": "lora, full or guard_only"})
    frozen: str | None = field(
        default=None, metadata={"help": "with tuning: full, regular expression over the weights that stay as they are"}
    )
    categories: list[str] | None = field(
        default=None, metadata={"help": "names in their order, or a YAML file of them (default: the model's)"}
    )

    data: list[str] | None = field(default=None, metadata={"help": ".json, .jsonl or Hugging Face datasets"})
    eval_data: list[str] | None = field(default=None, metadata={"help": "the same, held out"})
    data_split: str = field(default="train", metadata={"help": "of Hugging Face datasets"})
    eval_split: str = field(default="test", metadata={"help": "of Hugging Face datasets"})
    image_root: str | None = field(default=None, metadata={"help": "for relative paths (default: the data's folder)"})
    on_bad_row: str = field(default="fail", metadata={"help": "fail or skip"})
    max_length: int | None = field(default=None, metadata={"help": "tokens of a row; text behind is cut off"})
    min_pixels: int | None = field(default=None, metadata={"help": "of a picture, which is enlarged to it"})
    max_pixels: int | None = field(default=None, metadata={"help": "of a picture, which is reduced to it"})
    video_fps: float = field(default=2.0, metadata={"help": "frames a second that are taken of a video"})
    max_video_frames: int = field(default=32, metadata={"help": "of a video, at most"})

    guard_learning_rate: float = field(default=1e-5, metadata={"help": "of the guard; learning_rate is the model's"})
    muon_learning_rate: float | None = field(
        default=None,
        metadata={"help": "train matrices within the towers by Muon at this rate, and the rest by what optim says"},
    )
    guard_dropout: float = field(default=0.1, metadata={"help": "probability in [0, 1)"})
    safety_loss_lambda: float | None = field(
        default=None, metadata={"help": "weight of the safety loss (default: the model's, 1.0)"}
    )
    class_weights: str = field(default="none", metadata={"help": "none, or balanced: rare categories weigh more"})
    balanced_sampling: bool = field(default=False, metadata={"help": "draw rows so that labels come up equally often"})
    lora_rank: int = field(default=64, metadata={"help": "of the adapter"})
    lora_alpha: int = field(default=64, metadata={"help": "its scale is lora_alpha / lora_rank"})
    lora_dropout: float = field(default=0.0, metadata={"help": "probability in [0, 1)"})
    lora_targets: str = field(
        default=LANGUAGE_MODEL_LAYERS, metadata={"help": "regular expression over the names of all layers"}
    )
    global_batch_size: int | None = field(
        default=None, metadata={"help": "rows of a step over all processes; sets gradient_accumulation_steps"}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "evaluations without improvement after which training ends"}
    )
    feature_cache: str | None = field(
        default=None, metadata={"help": "folder for guard_only's features (default: beside output_dir)"}
    )
    resume: bool = field(default=False, metadata={"help": "go on from the last whole checkpoint in output_dir"})

    # transformers' own, with other defaults
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"], metadata={"help": "where losses are logged"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "leave at false"})
    logging_steps: float = field(default=10, metadata={"help": "steps between two logs"})
    ddp_timeout: int = field(default=6 * 3600, metadata={"help": "seconds; the main process checks all rows first"})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "a loss that is not finite ends the run"})

    def __post_init__(self):
        self.given = self._non_defaults()  # for the record; the library fills in what it derives
        self._check()
        if self.global_batch_size is not None:
            processes = int(os.environ.get("WORLD_SIZE", 1))
            per_step = self.per_device_train_batch_size * processes
            if self.global_batch_size % per_step:
                raise ValueError(
                    f"global_batch_size {self.global_batch_size} is no multiple of per_device_train_batch_size "
                    f"{self.per_device_train_batch_size} x {processes} processes; change one of them"
                )
            self.gradient_accumulation_steps = self.global_batch_size // per_step
        if self.gradient_checkpointing and self.gradient_checkpointing_kwargs is None:
            self.gradient_checkpointing_kwargs = {"use_reentrant": False}  # works with frozen embeddings, too
        if self.early_stopping_patience is not None:
            self.load_best_model_at_end = self.restore_callback_states_from_checkpoint = True
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = self.tuning == "full"  # the vision tower, in a batch without pictures
        super().__post_init__()
        if self.parallel_mode.name == "NOT_DISTRIBUTED":
            self._n_gpu = min(self._n_gpu, 1)  # Qwen2.5-VL does not run in DataParallel; torchrun uses all GPUs

    def _check(self):
        for name in ("model", "data", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set; name it in the configuration or with --{name}")
        for name, valid in (
            ("tuning", ("lora", "full", "guard_only")),
            ("on_bad_row", ("fail", "skip")),
            ("class_weights", ("none", "balanced")),
            ("dtype", (None, "float32", "bfloat16", "float16")),
        ):
            if getattr(self, name) not in valid:
                expected = ", ".join(map(str, valid))
                raise ValueError(f"{name} must be one of {expected}, got {getattr(self, name)!r}")
        for name in ("per_device_train_batch_size", "global_batch_size", "lora_rank"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("guard_dropout", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        rates = ["guard_learning_rate"] if self.tuning == "guard_only" else ["learning_rate", "guard_learning_rate"]
        for name in rates:
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, so its weights would stay as they are; give it a rate above 0, "
                    "or train the guard alone with tuning: guard_only"
                )
        if self.tuning == "full" and self.dtype not in (None, "float32"):
            raise ValueError(f"with tuning: full all weights are trained, in float32; got dtype {self.dtype}")
        if self.frozen is not None and self.tuning != "full":
            raise ValueError(f"frozen goes with tuning: full; with {self.tuning} the backbone's weights stay anyway")
        if self.early_stopping_patience is not None and not self.eval_data:
            raise ValueError("early_stopping_patience needs eval_data to see when to stop")
        strategy = getattr(self.eval_strategy, "value", self.eval_strategy)
        if self.early_stopping_patience is not None and strategy == "no":
            raise ValueError("early_stopping_patience needs eval_strategy and save_strategy, both epoch or both steps")
        if self.muon_learning_rate is not None and (self.tuning == "guard_only" or not self.muon_learning_rate > 0):
            raise ValueError(
                f"muon_learning_rate must be above 0, and trains the towers' matrices; got {self.muon_learning_rate} "
                f"with tuning: {self.tuning}"
            )
        for name, reason in (
            ("auto_find_batch_size", "would change the rows of a step; lower per_device_train_batch_size"),
            ("save_only_model", "leaves nothing that a run could be resumed from; leave it out"),
            ("push_to_hub", "would upload paths of this machine; use safeqwen export --push"),
        ):
            if getattr(self, name):
                raise ValueError(f"{name} {reason}")
        if getattr(self, "label_smoothing_factor", 0):
            raise ValueError("label_smoothing_factor would replace both losses; leave it out")

    @property
    def device(self):
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device  # torch.load, to resume, knows no "cpu:0"

    @property
    def rows_per_step(self):
        """`int`: over all processes and accumulation steps."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    def _non_defaults(self):
        """`dict`: all that was given otherwise than by default, but for secrets, as JSON takes it."""
        values = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name, None)
            default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            if f.init and value != default and not f.name.endswith("_token"):
                values[f.name] = getattr(value, "value", value)
        return json.loads(json.dumps(values, default=str))


def read_config(path, overrides=()):
    """
    Returns the [`SafetyTrainingArguments`] of a YAML file and of command-line words like `--learning_rate 1e-4`.

    Raises:
        ValueError: if a key is none of them (with the nearest that is), or a value is not of its kind.
        OSError: if the file cannot be read.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a mapping of settings, got {type(values).__name__}")
    fields = [f.name for f in dataclasses.fields(SafetyTrainingArguments) if f.init]
    given = [word.removeprefix("--").split("=")[0].replace("-", "_") for word in overrides if word.startswith("--")]
    for key in [*values, *given]:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            raise ValueError(f"unknown setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    parser = HfArgumentParser(SafetyTrainingArguments, allow_abbrev=False)
    parser.error = _refuse
    words = []  # of the file, as if they stood on the command line: so that they are checked as those are
    for key, value in values.items():
        if isinstance(value, dict) or value == []:
            parser.set_defaults(**{key: value})
        elif value is not None:  # null is as good as absent
            texts = [_text(entry) for entry in (value if isinstance(value, list) else [value])]
            words += [f"--{key}", *texts] if len(texts) > 1 else [f"--{key}={texts[0]}"]
    (args,) = parser.parse_args_into_dataclasses(args=[*words, *overrides])
    return args


def _text(value):
    """A YAML value as it was written: it takes an unquoted no, say of save_strategy, for false."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _refuse(message):
    raise ValueError(f"{message}; see safeqwen train --help")


# -------------------------------------------------------------------------------------------------------- the trainer


class SafetyTrainer(Trainer):
    """
    transformers' Trainer, with both losses normalised over the whole accumulated batch of all processes.

    loss = sum of token losses / labelled tokens + safety_loss_lambda * sum of verdict losses / verdict labels, where
    sums and counts run over all that goes into one step. However the batch is cut into processes and accumulation
    steps, the gradient is the same. Verdict labels are those of rows and of pictures by themselves; with class weights
    they and their losses are weighted.

    Args:
        class_weights (`torch.FloatTensor` of shape `(num_categories,)`, *optional*)
        sample_weights (`list[float]`, *optional*): draws rows with replacement, each this often.
        args, kwargs: as Trainer takes them; `args` is a [`SafetyTrainingArguments`].
    """

    def __init__(self, *args, class_weights=None, sample_weights=None, safety_loss_lambda=1.0, **kwargs):
        super().__init__(*args, compute_metrics=self._metrics, **kwargs)
        # The losses are divided by what the whole step holds: the library is not to divide them again.
        self.model_accepts_loss_kwargs = True
        self.class_weights = class_weights
        self.sample_weights = sample_weights
        self.safety_loss_lambda = safety_loss_lambda
        self._logged = None  # sums since the last log

    def create_optimizer(self, model=None):
        """AdamW or what `optim` says, with the guard's learning rate beside the model's."""
        model = self.model if model is None else model
        if self.optimizer is None:
            matrices = []
            if self.args.muon_learning_rate is not None:
                matrices = [parameter for name, parameter in model.named_parameters() if _is_muons(name, parameter)]
            by_muon, groups = {id(matrix) for matrix in matrices}, []
            for part, rate in (("model", self.args.learning_rate), ("guard", self.args.guard_learning_rate)):
                for decays in (True, False):
                    parameters = [
                        parameter
                        for name, parameter in model.named_parameters()
                        if parameter.requires_grad
                        and id(parameter) not in by_muon
                        and (GUARD in name) == (part == "guard")
                        and (parameter.ndim > 1) == decays  # norms and biases do not decay
                    ]
                    if parameters:
                        decay = self.args.weight_decay if decays else 0.0
                        groups.append({"params": parameters, "lr": rate, "weight_decay": decay})
            optimizer, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer(groups, **kwargs)
            if matrices:
                options = {"lr": self.args.muon_learning_rate, "weight_decay": self.args.weight_decay}
                self.optimizer = SeveralOptimizers([Muon(matrices, **options), self.optimizer])
        return self.optimizer

    def _get_train_sampler(self, train_dataset=None):
        if self.sample_weights is None:
            return super()._get_train_sampler(train_dataset)
        return WeightedSampler(self.sample_weights, self.args.seed)

    def get_train_dataloader(self):
        loader = super().get_train_dataloader()
        if self.sample_weights is not None and hasattr(loader, "set_sampler"):
            loader.set_sampler(WeightedSampler(self.sample_weights, self.args.seed))  # so that it hears of the epoch
        return loader

    def _get_num_items_in_batch(self, batch_samples, device):
        """`(2,)`: labelled tokens and (weighted) verdict labels of the step, over all processes."""
        tokens = sum(int(batch["labels"][:, 1:].ne(IGNORED).sum()) for batch in batch_samples if "labels" in batch)
        verdicts = sum(
            float(self._weights(batch[name]).sum())
            for batch in batch_samples
            for name in ("safety_labels", "picture_categories")
            if name in batch
        )
        counts = torch.tensor([tokens, verdicts], dtype=torch.float32, device=device)
        return self.accelerator.gather(counts[None]).sum(dim=0)

    def _weights(self, safety_labels):
        labelled = safety_labels.ne(IGNORED)
        if self.class_weights is None:
            return labelled.float()
        return self.class_weights.to(safety_labels.device)[safety_labels.clamp(min=0)] * labelled

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        sums = self._sums(model, inputs)
        counts = num_items_in_batch
        if counts is None:
            counts = torch.stack([sums.num_tokens.sum(), sums.label_weights.sum()])
        tokens, verdicts = counts.clamp(min=1e-8).unbind()
        loss = sums.lm_losses.sum() / tokens + self.safety_loss_lambda * sums.safety_losses.sum() / verdicts
        if model.training:
            if not loss.isfinite():  # the library would go on and log the last loss that was
                raise FloatingPointError(
                    f"the loss is {loss.item()} at step {self.state.global_step + 1}: in float16 this is an overflow "
                    "within the model, so train with bf16: true or dtype: float32; else lower the learning rates"
                )
            self._note(sums, inputs["safety_labels"])
            loss = loss * self.accelerator.num_processes  # their gradients are averaged
        return (loss, sums) if return_outputs else loss

    def _sums(self, model, inputs):
        """
        The losses of a batch, row by row.

        Returns:
            [`Losses`]
        """
        inputs = dict(inputs)
        labels, safety_labels = inputs.pop("labels", None), inputs["safety_labels"]
        picture_rows = inputs.pop("picture_rows", None)
        if labels is not None:
            # No logits for what comes before the first answer: pictures are most of a prompt.
            answered = labels.ne(IGNORED).any(dim=0).nonzero()
            first = int(answered[0]) if len(answered) else labels.shape[1]
            kept = labels.shape[1] - first + 1
            inputs |= {"logits_to_keep": kept, "use_cache": False}
        outputs = model(**inputs)
        zeros = safety_labels.new_zeros(len(safety_labels), dtype=torch.float32)
        lm_losses = num_tokens = zeros
        if labels is not None:
            logits, targets = outputs.logits[:, :-1].float(), labels[:, labels.shape[1] - kept + 1 :]
            losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
            lm_losses, num_tokens = losses.sum(dim=1), targets.ne(IGNORED).sum(dim=1).float()
        label_weights = self._weights(safety_labels)
        logits = outputs.img_safety_logits
        if logits is None:  # no pictures: the model's own loss is a zero with a gradient, which DDP wants
            logits = torch.full((len(zeros), self._num_categories), float("nan"), device=zeros.device)
            safety_losses = zeros + outputs.safety_loss
        else:
            losses = F.cross_entropy(logits, safety_labels, ignore_index=IGNORED, reduction="none")
            safety_losses = losses * label_weights
        if outputs.get("picture_safety_logits") is not None:
            targets = inputs["picture_categories"]
            weights = self._weights(targets)
            losses = F.cross_entropy(outputs.picture_safety_logits, targets, ignore_index=IGNORED, reduction="none")
            # To their own rows: of the rows that fill up the last batch of an evaluation nothing is to be counted.
            safety_losses = safety_losses.index_add(0, picture_rows, losses * weights)
            label_weights = label_weights.index_add(0, picture_rows, weights)
        return Losses(lm_losses, num_tokens, safety_losses, label_weights, logits.detach())

    @property
    def _num_categories(self):
        return self.accelerator.unwrap_model(self.model).config.num_safety_categories

    # ------------------------------------------------------------------------------------------------- what is logged

    def _note(self, sums, safety_labels):
        """Adds a training batch to what the next log says."""
        size = self._num_categories
        if self._logged is None:
            self._logged = torch.zeros(size * size + 4, device=safety_labels.device, dtype=torch.float32)
        rows = safety_labels.ne(IGNORED)
        cells = safety_labels[rows] * size + sums.logits[rows].argmax(dim=-1)
        self._logged[: size * size] += torch.bincount(cells, minlength=size * size)
        totals = (sums.lm_losses, sums.num_tokens, sums.safety_losses, sums.label_weights)
        self._logged[size * size :] += torch.stack([total.detach().sum() for total in totals])

    def log(self, logs, *args, **kwargs):
        if "loss" in logs and self._logged is not None:
            sums, self._logged = self.accelerator.reduce(self._logged, "sum"), None
            size = self._num_categories
            *_, lm, tokens, safety, verdicts = sums.tolist()
            confusion = sums[: size * size].view(size, size)
            logs = {**logs, **_metrics(lm, tokens, safety, verdicts, confusion, self.safety_loss_lambda)}
            del logs["total_loss"]  # as Trainer has it
        super().log(logs, *args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            sums = self._sums(model, inputs)
        numbers = torch.stack([sums.lm_losses, sums.num_tokens, sums.safety_losses, sums.label_weights], dim=1)
        return None, torch.cat([sums.logits, numbers], dim=1), inputs["safety_labels"]

    def _metrics(self, predictions):
        """What Trainer gathered of `prediction_step`, as metrics of the whole evaluation set."""
        numbers, labels = torch.from_numpy(predictions.predictions), torch.from_numpy(predictions.label_ids)
        logits, (lm, tokens, safety, verdicts) = numbers[:, :-4], numbers[:, -4:].double().sum(dim=0).tolist()
        size, judged = logits.shape[1], labels.ne(IGNORED)
        if logits[judged].isnan().any():
            raise ValueError(
                "the guard has not been trained yet, so it cannot be evaluated: leave eval_on_start out, or let the "
                "first evaluation come later (eval_steps, eval_delay)"
            )
        cells = labels[judged] * size + logits[judged].argmax(dim=-1)
        confusion = torch.bincount(cells, minlength=size * size).view(size, size)
        metrics = _metrics(lm, tokens, safety, verdicts, confusion, self.safety_loss_lambda)
        metrics["loss"] = metrics.pop("total_loss")
        return metrics

    # ---------------------------------------------------------------------------------------------------- checkpoints

    def _save_checkpoint(self, model, trial):
        """As the library's, but a checkpoint counts only once it is whole, and only then may older ones go."""
        folder = Path(self.args.output_dir, f"{trainer_utils.PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with _written_whole(folder, self.args):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    (folder / COMPLETE).touch()
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            if hasattr(trainer_utils, "rotate_checkpoints"):  # a function since transformers 5.0
                best = self.state.best_model_checkpoint
                trainer_utils.rotate_checkpoints(self.args.output_dir, limit, best)
            else:
                self._rotate_checkpoints(output_dir=self.args.output_dir)


@dataclass
class Losses:
    """Of a batch, row by row, float32 `(batch_size,)`; the logits are `(batch_size, num_categories)`."""

    lm_losses: torch.Tensor  # summed over the row's labelled tokens
    num_tokens: torch.Tensor
    safety_losses: torch.Tensor  # weighted, of rows and their pictures
    label_weights: torch.Tensor  # of rows and their pictures
    logits: torch.Tensor


def _is_muons(name, parameter):
    """Whether Muon is for this weight: a matrix within a tower, not at its ends."""
    at_an_end = "embed" in name or "lm_head" in name or GUARD in name
    return parameter.requires_grad and parameter.ndim == 2 and not at_an_end


class WeightedSampler(Sampler):
    """Draws as many rows as there are, with replacement, each in proportion to its weight; anew each epoch."""

    def __init__(self, weights, seed):
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.weights)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from torch.multinomial(self.weights, len(self), replacement=True, generator=generator).tolist()


def _metrics(lm_loss, num_tokens, safety_loss, verdicts, confusion, safety_loss_lambda):
    """
    Losses per token and per verdict, and how often the guard was right about whole rows.

    Args:
        lm_loss, num_tokens, safety_loss, verdicts (`float`): sums and their counts.
        confusion (`torch.Tensor` of shape `(num_categories, num_categories)`): true labels by row, verdicts by column.
    """
    metrics, total = {}, 0.0
    if num_tokens:
        metrics["lm_loss"] = lm_loss / num_tokens
        total += metrics["lm_loss"]
    if verdicts:
        metrics["safety_loss"] = safety_loss / verdicts
        total += safety_loss_lambda * metrics["safety_loss"]
    if confusion.any():
        confusion = confusion.double()
        right, shown, said = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
        seen = (shown + said) > 0
        metrics["guard_accuracy"] = float(right.sum() / confusion.sum())
        metrics["guard_macro_f1"] = float((2 * right / (shown + said))[seen].mean())
    return {**metrics, "total_loss": total}


@contextmanager
def _written_whole(folder, args):
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


# ----------------------------------------------------------------------------------------------- what is to be trained


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


class FrozenBackbone(nn.Module):
    """The guard of a model whose features were computed before: takes those in place of prompts."""

    def __init__(self, model):
        super().__init__()
        self.img_safety_head = model.img_safety_head
        self.config = model.config

    def forward(self, features, safety_labels):
        """`(batch_size, hidden_size)` features -> the logits, as the whole model's forward has them."""
        return SafeQwen2_5_VLVerdict(img_safety_logits=self.img_safety_head(features))

    def activation_checkpointing_enable(self, *args, **kwargs):
        """Nothing is computed that could be saved."""

    gradient_checkpointing_enable = activation_checkpointing_enable  # its name before transformers 5.24


class WholeSteps(torch.utils.data.Dataset):
    """
    Rows, and blank ones behind them, so that each step of an epoch is whole.

    accelerate would fill up the last step with rows from the beginning, the more of them the more processes there are,
    and they would count twice. Blank rows count in neither loss.
    """

    def __init__(self, rows, rows_per_step):
        self.rows = rows
        self.num_blank = -len(rows) % rows_per_step

    def __len__(self):
        return len(self.rows) + self.num_blank

    def __getitem__(self, index):
        return self.rows[index] if index < len(self.rows) else self.rows.blank()


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
            pooled = model.guard_features(**inputs)
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


# ------------------------------------------------------------------------------------------------------------ the run


def train(args, command=None):
    """
    Trains as the arguments say, and writes the run's folder.

    Args:
        args ([`SafetyTrainingArguments`])
        command (`str`, *optional*): the command line, for the record.

    Returns:
        `dict`: the final metrics: of the evaluation data, or, without any, the last that training logged.

    Raises:
        BadData: if rows cannot be trained on.
        ValueError: if the folder holds another run, or settings do not fit the model.
    """
    state = args.distributed_state
    demo = {"demo": str(safeqwen.DEMO_CHECKPOINT)}
    base, processor = demo.get(args.model, args.model), demo.get(args.processor, args.processor)
    hub = {"revision": args.model_revision} if args.model_revision else {}
    processor = _load_processor(args, processor or base, {} if processor else hub)
    collator = SafetyCollator(processor, args.max_length, args.video_fps, args.max_video_frames)
    config = SafeQwen2_5_VLConfig.from_pretrained(base, **hub)
    taxonomy = read_categories(args.categories, config)
    _from_main_process(state, lambda: _refuse_another_run(args))
    rows, eval_rows = _from_main_process(state, lambda: _read(args, taxonomy, collator))
    # The commit, where the base comes from the Hub: a branch may be another model tomorrow.
    revision = None if Path(base).exists() else extract_commit_hash(cached_file(base, "config.json", **hub), None)
    run = _from_main_process(state, lambda: _describe(args, base, revision, taxonomy, rows, eval_rows, command))
    checkpoint = _from_main_process(state, lambda: _checkpoint_to_resume(args, run))

    model = _load(args, base, taxonomy, hub)
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

    steps = WholeSteps(rows, args.rows_per_step)
    callbacks = []
    if args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    trainer = SafetyTrainer(
        model=trained,
        args=args,
        data_collator=collator,
        train_dataset=steps,
        eval_dataset=eval_rows,
        callbacks=callbacks,
        class_weights=class_weights(rows.verdict_labels, len(taxonomy.names))
        if args.class_weights == "balanced"
        else None,
        sample_weights=sample_weights(rows.labels) + [0.0] * steps.num_blank if args.balanced_sampling else None,
        safety_loss_lambda=model.config.safety_loss_lambda,
    )
    _refuse_uneven_pictures(trainer, rows)  # before the folder is this run's
    _refuse_muon_in_vain(trainer)
    if state.is_main_process and not Path(args.output_dir, "run.json").exists():
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        write_json(Path(args.output_dir, "run.json"), run)
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    _save_final(trainer, model, processor)  # before an evaluation in half precision casts the weights
    if eval_rows is not None:
        metrics = trainer.evaluate()
    else:
        logs = [log for log in trainer.state.log_history if "loss" in log]
        metrics = {f"last_{name}": value for name, value in (logs[-1] if logs else {}).items()}
    # Not train_loss: it is the main process's alone, and after --resume too small.
    metrics["train_runtime_s"] = result.metrics["train_runtime"]
    if state.is_main_process:
        _record(args.output_dir, metrics=metrics)
    return metrics


def _load_processor(args, source, hub):
    processor = AutoProcessor.from_pretrained(source, **hub)
    given = {"shortest_edge": args.min_pixels, "longest_edge": args.max_pixels}  # the library's names for them
    if any(value is not None for value in given.values()):
        usual = processor.image_processor.size
        size = {edge: usual[edge] if value is None else value for edge, value in given.items()}
        if not 0 < size["shortest_edge"] <= size["longest_edge"]:
            raise ValueError(
                f"min_pixels {size['shortest_edge']} must be above 0 and not above max_pixels {size['longest_edge']}"
            )
        # By both names: of a folder that has the older ones the library would heed neither alone.
        pixels = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        processor = AutoProcessor.from_pretrained(source, size=size, **pixels, **hub)
    return processor


def read_categories(categories, config):
    """
    Returns the [`Taxonomy`] that `categories` names, or that of the model's configuration.

    Args:
        categories (`list[str]`, *optional*): names, or one YAML file of them.
        config ([`SafeQwen2_5_VLConfig`])
    """
    if categories is None:
        return Taxonomy(config.safety_categories)
    if len(categories) == 1:
        return read_taxonomy(categories[0])
    return Taxonomy(categories)


def _load(args, base, taxonomy, hub):
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
                f"frozen {args.frozen!r} matches no weight; expected a pattern of names like "
                f"{next(name for name, _ in model.named_parameters())}"
            )
        for name in names:
            model.get_parameter(name).requires_grad_(False)
    return model


def _read(args, taxonomy, collator):
    options = {"image_root": args.image_root, "on_bad_row": args.on_bad_row}
    rows = read_rows(args.data, taxonomy, collator, split=args.data_split, **options)
    eval_rows = None
    if args.eval_data:
        eval_rows = read_rows(args.eval_data, taxonomy, collator, split=args.eval_split, **options)
    for name, part in (("data", rows), ("eval_data", eval_rows)):
        if part is None:
            continue
        if args.tuning == "guard_only" and any(has_label(example.picture_labels) for example in part.examples):
            raise ValueError(f"{name} has picture_safety_labels, which guard_only cannot learn; take lora or full")
        for problem in part.problems:
            print(f"skipped: {problem}", file=sys.stderr)
        cut = f", {part.num_cut} cut at max_length {args.max_length}" if part.num_cut else ""
        print(f"{name}: {len(part)} rows, {len(part.problems)} skipped{cut}", file=sys.stderr)
    if args.tuning == "guard_only" and not has_label(rows.labels):
        raise ValueError("tuning: guard_only learns from verdict labels, but no row has one; add safety_label to rows")
    return rows, eval_rows


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


def _refuse_muon_in_vain(trainer):
    """Raises if there is a rate for Muon, but no whole matrix that it could train."""
    if trainer.args.muon_learning_rate is None:
        return
    engine = trainer.accelerator.distributed_type.value
    if engine in ("FSDP", "DEEPSPEED"):
        raise ValueError(f"Muon needs whole matrices, and {engine} cuts them up: train by DDP, or without Muon")
    if not any(_is_muons(name, parameter) for name, parameter in trainer.model.named_parameters()):
        raise ValueError(
            "muon_learning_rate is set, but no matrix within the towers is trained; leave it out, or freeze less"
        )


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


def _refuse_another_run(args):
    output = Path(args.output_dir)
    if (output / "run.json").exists() and not args.resume:
        raise ValueError(f"{output} already holds a run; go on with it by --resume, or choose another output_dir")
    if not (output / "run.json").exists() and any(output.glob("checkpoint-*")):
        raise ValueError(f"{output} holds checkpoints of something else; choose another output_dir")


def _describe(args, base, revision, taxonomy, rows, eval_rows, command):
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


def _checkpoint_to_resume(args, run):
    """
    Returns the last whole checkpoint (`Path`) of the run in the output folder, or `None` if there is none yet.

    Raises:
        ValueError: if the folder holds a run that has ended, or was made of other settings or data.
    """
    output = Path(args.output_dir)
    if not (output / "run.json").exists():
        return None
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


def _save_final(trainer, model, processor):
    args, final = trainer.args, Path(trainer.args.output_dir, "final")
    with _written_whole(final, args):
        if args.tuning != "guard_only":
            trainer.save_model(str(final))
        elif args.should_save:
            final.mkdir(exist_ok=True)
            head = {f"{GUARD}.{name}": tensor.cpu() for name, tensor in model.img_safety_head.state_dict().items()}
            save_file(head, final / GUARD_FILE)
        if args.should_save:
            (final / "training_args.bin").unlink(missing_ok=True)  # a pickle: run.json says it better
            save_processor(processor, final)


def _record(output_dir, **entries):
    file = Path(output_dir, "run.json")
    write_json(file, {**json.loads(file.read_text(encoding="utf-8")), **entries})


def _without_tokens(words):
    """The words of a command line with secrets blotted out: `--hub_token x` or `--hub-token=x`."""
    blotted = []
    for before, word in zip(["", *words], words):
        name, equals, _ = word.partition("=")
        if re.fullmatch(r"--[\w-]+[-_]token", before):
            word = "***"
        elif equals and re.fullmatch(r"--[\w-]+[-_]token", name):
            word = f"{name}=***"
        blotted.append(word)
    return blotted


def run(args):
    """Runs `safeqwen train` with the arguments of `safeqwen_cli`, and returns its exit code."""
    command = shlex.join(["safeqwen", "train", args.config, *_without_tokens(args.overrides)])
    if {"-h", "--help"} & set(args.overrides):
        print(HfArgumentParser(SafetyTrainingArguments, prog="safeqwen train CONFIG.yaml").format_help())
        return 0
    try:
        settings = read_config(args.config, args.overrides)
        metrics = train(settings, command)
    except (ValueError, OSError, ImportError, FloatingPointError, SafetensorError) as error:
        print(f"safeqwen train: {error}", file=sys.stderr)
        return 2
    if settings.distributed_state.is_main_process:
        print(json.dumps(metrics, indent=2))
    return 0
