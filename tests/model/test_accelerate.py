"""Spread over devices, offloaded to the CPU or to disk, the model says what it says in one piece."""

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from other_device import FIRST, SECOND, Devices
from safetensors import SafetensorError
from tiny import INPUTS, VERSION_4, Pic, assert_refuses, batch, nested_config, rewrite, write_released_folder
from transformers import Qwen2_5_VLForConditionalGeneration

from safeqwen import SafeQwen2_5_VLForConditionalGeneration


LABELS = torch.tensor([3, 7])
GENERATE = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
PARTS = ("model.visual", "model.language_model", "lm_head", "img_safety_head")


@torch.no_grad()
def outcome(model, inputs=INPUTS):
    """Everything that the model says about the batch, on the CPU."""
    judged = model(**inputs, do_safety=True)
    answer = model.generate(**inputs, **GENERATE, do_safety=True)
    flagged = model.generate(**inputs, **GENERATE, safety_threshold=0.5)
    says = {
        "logits": judged.logits,
        "forward": judged.img_safety_logits,
        "loss": model(**inputs, labels=inputs["input_ids"], safety_labels=LABELS).loss,
        "guard": model.guard(**inputs).img_safety_logits,
        "image": model.guard(**inputs, granularity="image").img_safety_logits,
        "patch": torch.cat([scores.flatten(0, 1) for scores in model.guard(**inputs, granularity="patch")[0]]),
        "generate": answer.img_safety_logits,
        "text": answer.sequences,
        "flagged": flagged.safety_flagged,
        "text of the flagged": flagged.sequences,
    }
    return {name: tensor.to("cpu") for name, tensor in says.items()}


def assert_same(one, other):
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def load(folder, **kwargs):
    return SafeQwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, **kwargs)


# ------------------------------------------------------------------------------------------------------ placed on load

MAPS = {
    "auto": {"device_map": "auto"},
    "auto, most of it on disk": {"device_map": "auto", "max_memory": {"cpu": 600_000}},
    "guard on disk": {"device_map": {**dict.fromkeys(PARTS, "cpu"), "img_safety_head": "disk"}},
    "vision tower on disk": {"device_map": {**dict.fromkeys(PARTS, "cpu"), "model.visual": "disk"}},
}
if not VERSION_4:
    MAPS["all on disk"] = {"device_map": {"": "disk"}}


@pytest.mark.parametrize("placement", MAPS)
def test_a_placed_model_says_what_it_says_in_one_piece(tmp_path, state_dict, model, placement):
    folder = write_released_folder(tmp_path / "released", state_dict)
    placed = load(folder, offload_folder=tmp_path / "offload", **MAPS[placement])
    assert any(parameter.is_meta for parameter in placed.parameters()) == ("disk" in placement)
    assert_same(outcome(placed), outcome(model))


@pytest.mark.skipif(not VERSION_4, reason="5.x loads all of a model to disk")
def test_on_4_x_neither_stock_qwen_nor_we_load_all_of_a_model_to_disk(tmp_path, state_dict):
    folder = write_released_folder(tmp_path / "released", state_dict)
    for model_class in (Qwen2_5_VLForConditionalGeneration, SafeQwen2_5_VLForConditionalGeneration):
        with pytest.raises(SafetensorError, match="device disk is invalid"):
            model_class.from_pretrained(folder, device_map={"": "disk"}, offload_folder=tmp_path / "offload")


@pytest.mark.parametrize("part", ["img_safety_head", "img_safety_head.mlp.3.bias", "model.norm"])
@pytest.mark.parametrize("placement", MAPS)
def test_a_placed_model_that_lacks_its_guard_does_not_judge_and_else_is_refused(tmp_path, state_dict, placement, part):
    folder = rewrite(write_released_folder(tmp_path / "released", state_dict), drop=[part])
    if part == "img_safety_head":
        placed = load(folder, offload_folder=tmp_path / "offload", **MAPS[placement])
        # Of a guard that is nowhere accelerate cannot bring the weights back from the disk.
        expected = (RuntimeError, KeyError) if "disk" in placement else RuntimeError
        with pytest.raises(expected, match="guard .* never trained|img_safety_head.mlp.3.weight"):
            placed.guard(**INPUTS)
    else:
        with pytest.raises(RuntimeError, match="1 tensors are missing"):
            load(folder, offload_folder=tmp_path / "offload", **MAPS[placement])


# ----------------------------------------------------------------------------------------------- dispatched afterwards


@pytest.mark.parametrize("way", ["cpu_offload", "disk_offload"])
def test_an_offloaded_model_says_what_it_says_in_one_piece(tmp_path, state_dict, model, way):
    expected = outcome(model)
    if way == "cpu_offload":
        offloaded = cpu_offload(model, execution_device="cpu")
    else:
        offloaded = disk_offload(model, tmp_path, execution_device="cpu")
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    assert_same(outcome(offloaded), expected)
    random = cpu_offload(SafeQwen2_5_VLForConditionalGeneration(nested_config()).eval(), execution_device="cpu")
    assert_refuses(random, "guard .* never trained")


def test_a_guard_that_was_offloaded_after_training_judges(tmp_path, stock):
    stock.save_pretrained(tmp_path)
    model = load(tmp_path)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    model(**INPUTS, safety_labels=LABELS).loss.backward()
    optimizer.step()
    expected = copy.deepcopy(model).eval().guard(**INPUTS).img_safety_probs
    assert torch.equal(cpu_offload(model.eval(), execution_device="cpu").guard(**INPUTS).img_safety_probs, expected)


# ------------------------------------------------------------------------------------------------------- other devices


PLACES = {
    "guard elsewhere": {**dict.fromkeys(PARTS, FIRST), "img_safety_head": SECOND},
    "vision tower elsewhere": {**dict.fromkeys(PARTS, FIRST), "model.visual": SECOND},
    "language model elsewhere": {**dict.fromkeys(PARTS, FIRST), "model.language_model": SECOND},
    "lm_head elsewhere": {**dict.fromkeys(PARTS, FIRST), "lm_head": SECOND},
}


@pytest.fixture
def eager(model):
    model.set_attn_implementation("eager")  # sdpa makes tensors in C++, out of sight of the stand-in devices
    return model


@pytest.mark.parametrize("places", PLACES)
def test_parts_on_other_devices_say_what_they_say_on_one(eager, places):
    expected = outcome(eager)
    with Devices(), torch.no_grad():
        dispatched = dispatch_model(eager, PLACES[places], main_device=FIRST)
        for part, place in PLACES[places].items():
            assert {parameter.device for parameter in dispatched.get_submodule(part).parameters()} == {place}
        assert_same(outcome(dispatched, {name: tensor.to(FIRST) for name, tensor in INPUTS.items()}), expected)


def test_a_model_on_one_other_device_says_what_it_says_here(eager):
    expected = outcome(eager)
    with Devices(), torch.no_grad():
        moved = eager.to(FIRST)
        assert {parameter.device for parameter in moved.parameters()} == {FIRST}
        assert_same(outcome(moved, {name: tensor.to(FIRST) for name, tensor in INPUTS.items()}), expected)


def test_the_stand_in_devices_do_not_mix():
    with Devices(), pytest.raises(RuntimeError, match="same device"):
        torch.ones(2, device=FIRST) + torch.ones(2, device=SECOND)
    with Devices(), pytest.raises(RuntimeError, match="same device"):
        torch.nn.Linear(2, 2).to(FIRST)(torch.ones(1, 2))


def test_mixed_rows_and_random_guards_are_told_apart_on_other_devices(state_dict, eager):
    mixed = batch([5, Pic(4, 4, seed=2), 9], [5, 6, 7])
    expected = eager.guard(**mixed).img_safety_probs
    random = SafeQwen2_5_VLForConditionalGeneration(nested_config()).eval()
    with Devices(), torch.no_grad():
        dispatched = dispatch_model(eager, PLACES["guard elsewhere"], main_device=FIRST)
        mixed, inputs = ({name: t.to(FIRST) for name, t in one.items()} for one in (mixed, INPUTS))
        assert torch.equal(dispatched.guard(**mixed).img_safety_probs.to("cpu")[0], expected[0])
        with pytest.raises(RuntimeError, match="guard .* never trained"):
            dispatch_model(random, PLACES["guard elsewhere"], main_device=FIRST).guard(**inputs)
