"""Copied, pickled, cast, replicated or resized: the guard travels along, and so does whether it may judge."""

import copy
import io
import pickle

import pytest
import torch
from tiny import INPUTS, VERSION_4, assert_refuses, build_guarded, for_stock, verdict, write_released_folder
from torch.testing import assert_close

from safeqwen import SafeQwen2_5_VLForConditionalGeneration


LABELS = torch.tensor([1, 2])


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": through_a_file,
    "to": lambda model: model.to("cpu", torch.float64).to(torch.float32),
    "half and float": lambda model: model.half().float(),
}
if VERSION_4:  # on 5.x the library's own Qwen2.5-VL does not run in replicas, see below
    COPIES["replica"] = lambda model: replicate(model)


def replicate(network):
    """A replica as `torch.nn.DataParallel` makes it: modules without parameters, tensors that lead back to them."""
    replicas = {module: module._replicate_for_data_parallel() for module in network.modules()}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            setattr(replica, name, replicas[child])
        replica._former_parameters = {}
        for name, parameter in module._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, parameter.view_as(parameter))
                replica._former_parameters[name] = getattr(replica, name)
    return replicas[network]


def train_a_step(model, runs_on=None):
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=1e-3)
    (runs_on(model) if runs_on else model)(**INPUTS, safety_labels=LABELS).loss.backward()
    optimizer.step()
    return model.eval()


@pytest.fixture
def untrained(tmp_path, stock):
    """A model whose backbone was loaded and whose guard is random."""
    stock.save_pretrained(tmp_path)
    return SafeQwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_judges_as_the_model_does(model, way):
    expected = verdict(model)
    made = COPIES[way](model)
    tolerance = 0.05 if way == "half and float" else 0
    assert_close(verdict(made), expected, atol=tolerance, rtol=0)
    assert_close(made.guard(**INPUTS).img_safety_probs, expected, atol=tolerance or 1e-5, rtol=0)


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_a_random_guard_does_not_judge(untrained, way):
    made = COPIES[way](untrained)
    for call in (lambda: made(**INPUTS, do_safety=True), lambda: made.guard(**INPUTS)):
        with pytest.raises(RuntimeError, match="guard .* never trained"):
            call()


@pytest.mark.parametrize("way", [way for way in COPIES if way != "replica"])
def test_a_copy_in_the_midst_of_training_knows_what_was_trained(untrained, way):
    optimizer = torch.optim.AdamW(untrained.train().parameters(), lr=1e-3)
    untrained(**INPUTS, safety_labels=LABELS).loss.backward()
    before_the_step = COPIES[way](copy.deepcopy(untrained))
    optimizer.step()
    after_the_step = COPIES[way](untrained)
    assert_refuses(before_the_step.eval(), "guard .* never trained")
    assert verdict(after_the_step.eval()).isfinite().all()


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_shares_nothing_with_the_model(untrained, model, way):
    trained = train_a_step(COPIES[way](untrained))
    assert verdict(trained).isfinite().all()
    assert_refuses(untrained.eval(), "guard .* never trained")
    expected, made = verdict(model), COPIES[way](model)
    with torch.no_grad():
        made.img_safety_head.mlp[-1].weight.zero_()
    assert torch.equal(verdict(model), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_model_judges_as_one_loaded_in_that_precision(tmp_path, state_dict, model, dtype):
    folder = write_released_folder(tmp_path, state_dict)
    loaded = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    loaded.to(dtype)  # the inverse frequencies of the rotary embedding are buffers, which loading does not round
    for cast in (model.to(dtype), build_guarded(state_dict).half() if dtype == torch.float16 else model.bfloat16()):
        assert {parameter.dtype for parameter in cast.parameters()} == {dtype}
        assert verdict(cast).dtype == torch.float32
        assert torch.equal(verdict(cast), verdict(loaded))


@pytest.mark.skipif(VERSION_4, reason="4.x runs in replicas")
def test_on_5_x_replicas_of_stock_qwen_fail_and_ours_fail_alike(model, stock):
    for replica, inputs in ((replicate(stock), for_stock(INPUTS)), (replicate(model), {**INPUTS, "do_safety": True})):
        with pytest.raises(StopIteration):  # next(self.parameters()), of which a replica has none
            replica(**inputs)


@pytest.mark.skipif(not VERSION_4, reason="on 5.x the library's own Qwen2.5-VL does not run in replicas")
def test_training_through_replicas_trains_the_model(tmp_path, untrained):
    trained = train_a_step(untrained, runs_on=replicate)
    assert all(parameter.grad is not None for parameter in trained.img_safety_head.parameters())
    expected = verdict(trained)
    assert torch.equal(verdict(replicate(trained)), expected)
    trained.save_pretrained(tmp_path / "trained")
    loaded = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "trained", dtype=torch.float32)
    assert torch.equal(verdict(loaded), expected)


def test_a_training_forward_without_gradients_does_not_fail(untrained):
    with torch.no_grad():
        assert untrained.train()(**INPUTS, safety_labels=LABELS).loss.isfinite()


@pytest.mark.parametrize("size", [114, 140])
def test_resized_embeddings_leave_verdict_and_logits_alone(tmp_path, model, stock, size):
    expected = verdict(model)
    model.resize_token_embeddings(size)
    assert torch.equal(verdict(model), expected)
    kept = min(size, 120)
    logits = model(**INPUTS).logits
    assert logits.shape[-1] == size
    assert torch.equal(logits[..., :kept], stock(**for_stock(INPUTS)).logits[..., :kept])
    model.save_pretrained(tmp_path)
    loaded = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(verdict(loaded), expected)


def test_resized_embeddings_do_not_make_a_guard(untrained):
    untrained.resize_token_embeddings(140)
    assert_refuses(untrained, "guard .* never trained")
