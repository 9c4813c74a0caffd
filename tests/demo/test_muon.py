"""Muon against torch's own, and against the singular value decomposition."""

import pytest
import torch
from in_turn import cut_off
from small_runs import arguments, assert_same_weights, build_trainer, write_rows
from torch.testing import assert_close

from safeqwen.hub.guard_safeqwen import GUARD
from safeqwen.training.run import train
from tools.demo.muon import Muon, MuonTrainer, MuonTrainingArguments, SeveralOptimizers, orthogonalized


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (32, 32)])
def test_steps_are_those_of_torchs_muon_but_for_its_bfloat16(shape):
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(5, *shape)
    ours, theirs = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    options = {"lr": 0.05, "weight_decay": 0.1}
    optimizers = [Muon([ours], **options), torch.optim.Muon([theirs], **options)]
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() / moved < 0.01  # bfloat16 keeps 8 bits
    assert moved > 0.1


def test_an_orthogonalized_matrix_keeps_its_singular_vectors_and_brings_the_values_near_one():
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(20, 30), full_matrices=False)
    matrix = left @ torch.diag(torch.linspace(0.5, 9, 20)) @ right
    values = left.T @ orthogonalized(matrix) @ right.T
    assert_close(values, torch.diag(values.diagonal()), atol=1e-5, rtol=0)
    assert values.diagonal().min() > 0.6 and values.diagonal().max() < 1.3


def test_several_optimizers_step_clear_save_and_load_as_one():
    torch.manual_seed(0)
    first, second = torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Parameter(torch.randn(4))

    def build():
        return SeveralOptimizers([Muon([first], lr=0.1), torch.optim.AdamW([second], lr=0.01)])

    optimizer = build()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01]
    before = first.detach().clone(), second.detach().clone()
    (first.sum() + second.sum()).backward()
    optimizer.step()
    assert not torch.equal(first, before[0]) and not torch.equal(second, before[1])
    optimizer.zero_grad()
    assert first.grad is None and second.grad is None
    other = build()
    other.load_state_dict(optimizer.state_dict())
    assert_close(other.state[first]["momentum_buffer"], optimizer.state[first]["momentum_buffer"])
    assert other.state[second]["step"] == 1


def test_muon_trains_the_matrices_within_the_towers_and_goes_on_where_it_was(tmp_path):
    rows = {"data": write_rows(tmp_path / "rows", 21, 0)}
    muon = {"arguments_class": MuonTrainingArguments, "tuning": "full", "muon_learning_rate": 0.01}
    settings = {**muon, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    train(arguments(rows, tmp_path / "alone", **settings), trainer_class=MuonTrainer)
    trainer = build_trainer(rows, tmp_path / "unused", lora=False, trainer_class=MuonTrainer, **muon)
    muon, adamw = trainer.create_optimizer().optimizers
    assert {group["lr"] for group in muon.param_groups} == {0.01}
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    matrices = {names[id(parameter)] for group in muon.param_groups for parameter in group["params"]}
    assert "model.visual.blocks.0.mlp.up_proj.weight" in matrices
    assert not any(GUARD in name or "embed" in name or name.endswith("bias") for name in matrices)
    rest = {names[id(parameter)] for group in adamw.param_groups for parameter in group["params"]}
    assert matrices.isdisjoint(rest) and matrices | rest == set(names.values())

    cut_off(tmp_path / "alone", 2, tmp_path / "resumed")
    train(arguments(rows, tmp_path / "resumed", resume=True, **settings), trainer_class=MuonTrainer)
    assert_same_weights(tmp_path / "alone", tmp_path / "resumed")
