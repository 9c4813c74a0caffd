"""
`safeqwen`, several times in one start: `accelerate launch -m in_turn '[[EXIT_CODE, [WORD, ...]], ...]'`.

Two processes take longer to start than to train. The word `cut_off` in place of a command of `safeqwen` calls the
function of this file.

accelerate turns its FSDP on for accelerators only, though torch's runs with gloo, too. Where FSDP is asked for, this
sets accelerate's state as it is on GPUs and changes nothing else.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import distributed

from safeqwen_cli import main


_init = AcceleratorState.__init__


def _init_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    _init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin or FullyShardedDataParallelPlugin()


def cut_off(run, step, out):
    """Copies a run that has ended, but as it was when it had just written its checkpoint of a step."""
    run, out = Path(run), Path(out)
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("final"))
    for folder in out.glob("checkpoint-*"):
        if int(folder.name.partition("-")[2]) > int(step):
            shutil.rmtree(folder)
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, "metrics": None}))


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        AcceleratorState.__init__ = _init_with_fsdp
    for code, words in json.loads(sys.argv[1]):
        if words[0] == "cut_off":
            if distributed.get_rank() == 0:
                cut_off(*words[1:])
            distributed.barrier()
        elif main(words) != code:
            sys.exit(f"{words} did not end with {code}")
