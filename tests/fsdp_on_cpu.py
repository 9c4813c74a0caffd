"""
`safeqwen`, with FSDP on CPUs: `torchrun -m fsdp_on_cpu train CONFIG.yaml`, FSDP's settings in the environment.

accelerate turns its FSDP on for accelerators only, though torch's runs with gloo, too. This sets accelerate's state as
it is on GPUs and changes nothing else.
"""

import os
import sys

from accelerate.state import AcceleratorState, DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin

from safeqwen_cli import main


_init = AcceleratorState.__init__


def _init_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    _init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin or FullyShardedDataParallelPlugin()


if __name__ == "__main__":
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    AcceleratorState.__init__ = _init_with_fsdp
    sys.exit(main())
