"""`safeqwen train`: prints the final metrics, or why there are none, and gives the exit code."""

import errno
import json
import sys

from safetensors import SafetensorError
from transformers import HfArgumentParser

from safeqwen.commands.model import DEMO, ask_hub
from safeqwen.provenance import command_line
from safeqwen.training.arguments import SafetyTrainingArguments, read_config
from safeqwen.training.run import train


def run(args):
    """Runs `safeqwen train` with the arguments of `safeqwen_cli`, and returns its exit code."""
    if {"-h", "--help"} & set(args.overrides):
        print(HfArgumentParser(SafetyTrainingArguments, prog="safeqwen train CONFIG.yaml").format_help())
        return 0
    command = command_line(["safeqwen", "train", args.config, *args.overrides])
    try:
        settings = read_config(args.config, args.overrides)
        if settings.distributed_state.is_main_process:
            for name, revision in ((settings.model, settings.model_revision), (settings.processor, None)):
                if name not in (None, DEMO):
                    ask_hub(name, revision=revision)
        metrics = train(settings, command)
    except (ValueError, OSError, ImportError, FloatingPointError, SafetensorError) as error:
        is_full = getattr(error, "errno", None) == errno.ENOSPC
        reason = f"the disk is full ({error}); make room, and start it again with --resume" if is_full else error
        print(f"safeqwen train: {reason}", file=sys.stderr)
        return 2
    if settings.distributed_state.is_main_process:
        print(json.dumps(metrics, indent=2))
    return 0
