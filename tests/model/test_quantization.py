"""Quantised, the backbone is smaller and the guard is what it was: verdicts stay near, and nothing random judges."""

import copy
import inspect

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_demo import NAMES, UNSEEN, ask
from tiny import ROUTES, VERSION_4, assert_refuses, assert_same_tensors, rewrite, write_released_folder
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoProcessor, BitsAndBytesConfig, QuantoConfig, TorchAoConfig
from transformers.utils import quantization_config as library_configs

from safeqwen import DEMO_CHECKPOINT, SafeQwen2_5_VLForConditionalGeneration
from tools.demo.pictograms import draw


SPARED = ("lm_head", "img_safety_head.mlp.0", "img_safety_head.mlp.3")
QUANTIZED = ("model.language_model.layers.0.mlp.up_proj", "model.language_model.layers.1.self_attn.q_proj")
QUANTIZERS = {
    "bitsandbytes int8": lambda skip=None: BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip),
    "bitsandbytes nf4": lambda skip=None: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=skip
    ),
    "torchao int8": lambda skip=None: TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skip),
    "quanto int8": lambda skip=None: QuantoConfig(weights="int8", modules_to_not_convert=skip),
}
# The farthest that a probability of the demo's guard may move. Over these 100 drawings int8 moves one of them by up to
# 0.063 and nf4 by up to 0.14, and of all drawings but four by less than 0.03.
BOUNDS = {"bitsandbytes int8": 0.12, "bitsandbytes nf4": 0.25, "torchao int8": 0.1, "quanto int8": 0.1}
INT8 = [name for name in QUANTIZERS if name.endswith("int8")]  # on CPU nf4 wants widths of whole 64s: the demo's only
SAVE = {"safe_serialization": False} if VERSION_4 else {}  # transformers 4.x cannot write torchao's int8 otherwise


def load(folder, quantizer, dtype=torch.float32, skip=None, **kwargs):
    return SafeQwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, quantization_config=QUANTIZERS[quantizer](skip), dtype=dtype, **kwargs
    )


def assert_only_the_backbone_is_quantized(model, state_dict, dtype=torch.float32):
    for name in SPARED:
        layer = model.get_submodule(name)
        assert type(layer) is nn.Linear and type(layer.weight.data) is torch.Tensor, name
        assert layer.weight.dtype == dtype and torch.equal(layer.weight, state_dict[f"{name}.weight"].to(dtype)), name
    for name in QUANTIZED:
        layer = model.get_submodule(name)
        assert type(layer) is not nn.Linear or type(layer.weight.data) is not torch.Tensor, name


@pytest.fixture(scope="module")
def drawings():
    processor = AutoProcessor.from_pretrained(DEMO_CHECKPOINT, padding_side="left")
    inputs = ask(processor, [draw(name, UNSEEN + 5000 + i) for i in range(5) for name in NAMES])
    full = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT, dtype=torch.float32)
    return inputs, full.guard(**inputs).img_safety_probs, full.state_dict()


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_quantised_verdicts_stay_near_the_full_ones(drawings, quantizer):
    inputs, full, _ = drawings
    quantized = load(DEMO_CHECKPOINT, quantizer).guard(**inputs).img_safety_probs
    distances = (quantized - full).abs().amax(dim=-1)
    assert 0 < distances.max() <= BOUNDS[quantizer] and distances.mean() < 0.01
    assert (quantized.argmax(dim=-1) == full.argmax(dim=-1)).sum() >= 98


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_guard_and_lm_head_keep_their_weights(tmp_path, state_dict, quantizer, dtype):
    folder = write_released_folder(tmp_path, state_dict)
    assert_only_the_backbone_is_quantized(load(folder, quantizer, dtype), state_dict, dtype)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_they_keep_them_beside_a_list_of_ones_own(tmp_path, state_dict, quantizer):
    own = ["model.visual", "model.language_model.layers.0.self_attn"]
    folder, config = write_released_folder(tmp_path, state_dict), QUANTIZERS[quantizer](own)
    before = copy.deepcopy(config.to_dict())
    loaded = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32
    )
    assert_only_the_backbone_is_quantized(loaded, state_dict)
    for name in ("model.visual.blocks.0.attn.qkv", "model.language_model.layers.0.self_attn.q_proj"):
        assert torch.equal(loaded.get_submodule(name).weight, state_dict[f"{name}.weight"])
    assert config.to_dict() == before  # the user's own is not changed


@pytest.mark.parametrize("route", ROUTES)
def test_they_keep_them_by_every_route_and_from_a_dictionary(tmp_path, state_dict, route):
    folder = write_released_folder(tmp_path, state_dict)
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    loaded = ROUTES[route](folder, quantization_config=config, dtype=torch.float32)
    assert_only_the_backbone_is_quantized(loaded, state_dict)


@pytest.mark.skipif(not VERSION_4, reason="transformers 5.x has no load_in_8bit")
@pytest.mark.parametrize("skip", [{}, {"llm_int8_skip_modules": ["visual"]}])
def test_load_in_8bit_is_refused_which_would_quantise_the_guard(tmp_path, state_dict, skip):
    folder = write_released_folder(tmp_path, state_dict)
    with pytest.raises(ValueError, match="pass quantization_config=BitsAndBytesConfig"):
        ROUTES["AutoModel"](folder, load_in_8bit=True, dtype=torch.float32, **skip)


def test_every_list_of_exceptions_in_the_library_is_one_that_we_fill():
    classes = [
        value for name, value in vars(library_configs).items() if name.endswith("Config") and inspect.isclass(value)
    ]
    lists = {
        parameter
        for config in classes
        for parameter in inspect.signature(config).parameters
        if "not_" in parameter or "skip" in parameter
    }
    # AQLM's is left: it only loads what was quantised before
    assert lists == {
        "modules_to_not_convert",
        "llm_int8_skip_modules",
        "skip_modules",
        "linear_weights_not_to_quantize",
    }


def test_loading_unquantised_afterwards_keeps_half_precision(tmp_path, state_dict):
    folder = write_released_folder(tmp_path, state_dict)
    load(folder, "bitsandbytes int8", torch.float16)
    plain = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float16)
    assert_same_tensors(plain, state_dict, torch.float16)


@pytest.mark.parametrize("quantizer", [name for name in QUANTIZERS if not name.startswith("quanto")])
def test_what_is_saved_quantised_judges_the_same_when_loaded(tmp_path, drawings, quantizer):
    inputs, _, full_state_dict = drawings
    model = load(DEMO_CHECKPOINT, quantizer)
    model.save_pretrained(tmp_path, **SAVE)
    loaded = ROUTES["AutoModelForImageTextToText"](tmp_path, dtype=torch.float32)
    assert_only_the_backbone_is_quantized(loaded, full_state_dict)
    assert torch.equal(loaded.guard(**inputs).img_safety_probs, model.guard(**inputs).img_safety_probs)
    answer = loaded.generate(**inputs, do_safety=True, return_dict_in_generate=True, max_new_tokens=4, do_sample=False)
    assert torch.equal(answer.sequences, model.generate(**inputs, max_new_tokens=4, do_sample=False))


def test_quanto_says_that_it_cannot_save(tmp_path, state_dict):
    model = load(write_released_folder(tmp_path / "released", state_dict), "quanto int8")
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "saved")


# --------------------------------------------------------------------------------------------------------- fail closed


@pytest.mark.parametrize("quantizer", INT8)
def test_a_folder_without_a_guard_does_not_judge_quantised(tmp_path, state_dict, quantizer):
    folder = rewrite(write_released_folder(tmp_path, state_dict), drop=["img_safety_head"])
    assert_refuses(load(folder, quantizer), "guard .* never trained")


@pytest.mark.parametrize(
    "part", ["img_safety_head.mlp.0.bias", "model.norm", "lm_head", "embed_tokens", "visual.blocks.1.norm1"]
)
@pytest.mark.parametrize("quantizer", INT8)
def test_a_folder_without_a_plain_tensor_is_refused_quantised(tmp_path, state_dict, quantizer, part):
    folder = rewrite(write_released_folder(tmp_path, state_dict), drop=[part])
    with pytest.raises(RuntimeError, match="1 tensors are missing"):
        load(folder, quantizer)


@pytest.mark.parametrize("part", ["layers.0.mlp.up_proj", "visual.blocks.1.attn.qkv.weight"])
@pytest.mark.parametrize("quantizer", INT8)
def test_a_folder_without_a_tensor_to_quantise_is_refused(tmp_path, state_dict, quantizer, part):
    folder = rewrite(write_released_folder(tmp_path, state_dict), drop=[part])
    if VERSION_4:  # the library itself stops, where it would draw random weights in quantised form
        with pytest.raises((AttributeError, NotImplementedError)):
            load(folder, quantizer)
    else:
        with pytest.raises(RuntimeError, match="tensors are missing"):
            load(folder, quantizer)


def test_a_quantised_folder_without_a_guard_does_not_judge(tmp_path, state_dict):
    load(write_released_folder(tmp_path / "released", state_dict), "bitsandbytes int8").save_pretrained(
        tmp_path / "saved"
    )
    rewrite(tmp_path / "saved", drop=["img_safety_head"])
    loaded = ROUTES["AutoModel"](tmp_path / "saved", dtype=torch.float32)
    assert_refuses(loaded, "guard .* never trained")


def test_a_guard_saved_as_integers_is_not_read_as_numbers(tmp_path, state_dict):
    # A folder whose config spares the guard and whose guard is quantised all the same: by hand, or by another tool.
    load(write_released_folder(tmp_path / "released", state_dict), "bitsandbytes int8").save_pretrained(
        tmp_path / "saved"
    )
    path = tmp_path / "saved" / "model.safetensors"
    tensors = load_file(path)
    weight = tensors["img_safety_head.mlp.0.weight"]
    tensors["img_safety_head.mlp.0.weight"] = (weight / weight.abs().max() * 127).to(torch.int8)
    tensors["img_safety_head.mlp.0.SCB"] = weight.abs().amax(dim=1)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="hold integers|left over"):
        ROUTES["AutoModel"](tmp_path / "saved", dtype=torch.float32)
