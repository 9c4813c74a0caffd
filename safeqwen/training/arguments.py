"""What a run is made of: the settings, from a YAML file and the command line."""

import dataclasses
import difflib
import json
import os
import sys
from dataclasses import dataclass, field

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from safeqwen.data.sources import read_text


# Qwen2.5-VL's vision blocks have layers of these names too, so that the pattern is anchored to the language model.
LANGUAGE_MODEL_LAYERS = r".*\.language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


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
            "help": "of the frozen weights: float32, bfloat16 or float16 (default: as fp16 and bf16 say). Weights "
            "that are trained are float32"
        },
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "e.g. sdpa, flash_attention_2"})
    tuning: str = field(default="lora", metadata={"help": "lora, full or guard_only"})
    frozen: str | None = field(default=None, metadata={"help": "with tuning: full, regex of parameters to freeze"})
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
        default=LANGUAGE_MODEL_LAYERS, metadata={"help": "regex of layers to adapt, over their whole names"}
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
    report_to: list[str] | None = field(
        default=None, metadata={"help": "where losses are logged (default: tensorboard, if it is installed)"}
    )
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
        if self.report_to is None:
            self.report_to = ["tensorboard"]
            if _not_installed(self.report_to):
                self.report_to = []
                print("losses are not logged: to log them, pip install tensorboard", file=sys.stderr)
        if self.gradient_checkpointing and self.gradient_checkpointing_kwargs is None:
            self.gradient_checkpointing_kwargs = {"use_reentrant": False}  # works with frozen embeddings, too
        if self.early_stopping_patience is not None:
            self.load_best_model_at_end = self.restore_callback_states_from_checkpoint = True
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = self.tuning == "full"  # the vision tower, in a batch without pictures
        super().__post_init__()
        if self.tuning == "guard_only":  # too small to gain by it; transformers 5.24 renamed the setting
            self.gradient_checkpointing = self.activation_checkpointing = False
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
                    f"{name} is {getattr(self, name)}, which trains nothing; give it a rate above 0, or train the "
                    "guard alone with tuning: guard_only"
                )
        if self.tuning == "full" and self.dtype not in (None, "float32"):
            raise ValueError(f"with tuning: full all weights are trained, in float32; got dtype {self.dtype}")
        if self.frozen is not None and self.tuning != "full":
            raise ValueError(f"frozen goes with tuning: full; with {self.tuning} the backbone is frozen anyway")
        if self.early_stopping_patience is not None and not self.eval_data:
            raise ValueError("early_stopping_patience needs eval_data to see when to stop")
        strategy = getattr(self.eval_strategy, "value", self.eval_strategy)
        if self.early_stopping_patience is not None and strategy == "no":
            raise ValueError("early_stopping_patience needs eval_strategy and save_strategy, both epoch or both steps")
        if missing := _not_installed([self.report_to] if isinstance(self.report_to, str) else self.report_to or []):
            raise ValueError(
                f"report_to names {missing[0]}, which is not installed: pip install {missing[0]}, or report_to: none"
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


def read_config(path, overrides=(), arguments_class=SafetyTrainingArguments):
    """
    Returns the settings of a YAML file and of command-line words like `--learning_rate 1e-4`.

    Args:
        path (`str` or `os.PathLike`)
        overrides (`list[str]`): words that count more than the file.
        arguments_class: [`SafetyTrainingArguments`], or a subclass with settings of its own.

    Raises:
        ValueError: if a key is none of them (with the nearest that is), or a value is not of its kind.
        OSError: if the file cannot be read.
    """
    try:
        values = yaml.safe_load(read_text(path)) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a mapping of settings, got {type(values).__name__}")
    fields = [f.name for f in dataclasses.fields(arguments_class) if f.init]
    given = [word.removeprefix("--").split("=")[0].replace("-", "_") for word in overrides if word.startswith("--")]
    for key in [*values, *given]:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            raise ValueError(f"unknown setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    parser = HfArgumentParser(arguments_class, allow_abbrev=False)
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


def _not_installed(loggers):
    available = {"all", "none", *get_available_reporting_integrations()}
    return [name for name in loggers if name not in available]


def _refuse(message):
    raise ValueError(f"{message}; see safeqwen train --help")
