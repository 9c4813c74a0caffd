"""`safeqwen train`: prints the final metrics, or why there are none, and gives the exit code."""

import json
import re
import shlex
import sys

from safetensors import SafetensorError
from transformers import HfArgumentParser


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
