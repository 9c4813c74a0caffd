"""
Trains a stage of the demo checkpoint as `safeqwen train` does, but its matrices by Muon.

    python -m tools.demo.muon CONFIG.yaml [--key value ...]

The settings are those of `safeqwen train`, and `muon_learning_rate`.
"""

import math
import shlex
import sys
from dataclasses import dataclass, field

import torch

from safeqwen.hub.guard_safeqwen import GUARD
from safeqwen.training.arguments import SafetyTrainingArguments, read_config
from safeqwen.training.run import train
from safeqwen.training.trainer import SafetyTrainer


# Of the quintic Newton-Schulz iteration, from Keller Jordan's Muon (https://kellerjordan.github.io/posts/muon/).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """
    Muon for matrices: each step is the momentum with its singular values brought near 1.

    It is torch.optim.Muon, with the iteration in float32. torch's is in bfloat16, which takes 17 times as long on CPUs
    that lack instructions for it, and it came with torch 2.9.

    Args:
        params (iterable of `torch.nn.Parameter` of two dimensions, or groups of them)
        lr (`float`), momentum (`float` in [0, 1), Nesterov's), weight_decay (`float`, decoupled)
    """

    def __init__(self, params, lr=1e-3, momentum=0.95, weight_decay=0.1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(momentum, group["momentum"])
                rows, columns = parameter.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                rate = group["lr"] * math.sqrt(max(1, rows / columns))
                parameter.add_(orthogonalized(update).to(parameter.dtype), alpha=-rate)


def orthogonalized(matrix):
    """`(rows, columns)` -> float32 of the same shape and singular vectors, with singular values near 1."""
    x = matrix.float()
    x = x / x.norm().clamp(min=1e-7)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


class SeveralOptimizers(torch.optim.Optimizer):
    """Optimizers that step as one; each has parameters of its own."""

    def __init__(self, optimizers):
        self.optimizers = optimizers
        self.defaults = {}

    @property
    def param_groups(self):
        """The groups themselves, so that a schedule reaches them."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self):
        return {key: value for optimizer in self.optimizers for key, value in optimizer.state.items()}

    def step(self, closure=None):
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none=True):
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self):
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict):
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)


@dataclass
class MuonTrainingArguments(SafetyTrainingArguments):
    """The settings of `safeqwen train`, and one more."""

    muon_learning_rate: float = field(default=0.01, metadata={"help": "of matrices within the towers"})


class MuonTrainer(SafetyTrainer):
    """Trains matrices within the towers by Muon, and all other parameters by what `optim` says."""

    def create_optimizer(self, model=None):
        model = self.model if model is None else model
        if self.optimizer is None:
            named = dict(model.named_parameters())
            matrices = {name: parameter for name, parameter in named.items() if is_muons(name, parameter)}
            rest = self.parameter_groups((name, named[name]) for name in named if name not in matrices)
            optimizer, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            options = {"lr": self.args.muon_learning_rate, "weight_decay": self.args.weight_decay}
            self.optimizer = SeveralOptimizers([Muon(matrices.values(), **options), optimizer(rest, **kwargs)])
        return self.optimizer


def is_muons(name, parameter):
    """Whether Muon is for this parameter: a matrix within a tower, not at its ends."""
    at_an_end = "embed" in name or "lm_head" in name or GUARD in name
    return parameter.requires_grad and parameter.ndim == 2 and not at_an_end


def main(argv):
    args = read_config(argv[0], argv[1:], MuonTrainingArguments)
    train(args, shlex.join(["python", "-m", "tools.demo.muon", *argv]), MuonTrainer)


if __name__ == "__main__":
    main(sys.argv[1:])
