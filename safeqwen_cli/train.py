"""The arguments of `safeqwen train`."""

import argparse

from safeqwen_cli.arguments import add_command


DESCRIPTION = """\
Fine-tune a SafeQwen or a plain Qwen2.5-VL, or train a guard alone, as a YAML file says.

The settings are transformers' TrainingArguments and this package's: safeqwen train CONFIG.yaml --help lists them. With
several processes: accelerate launch -m safeqwen train CONFIG.yaml
           torchrun --nproc-per-node N -m safeqwen train CONFIG.yaml

exit codes: 0 the run has ended and its folder is whole; 2 wrong settings, data that cannot be trained on, or a full
disk: the reason is on stderr.
"""


def add_parser(commands):
    train = add_command(
        commands,
        "train",
        help="fine-tune a model or train a guard",
        description=DESCRIPTION,
    )
    train.add_argument("config", metavar="CONFIG.yaml", help="the settings of the run; see configs/")
    train.add_argument("overrides", nargs=argparse.REMAINDER, metavar="--key value", help="settings that differ")
