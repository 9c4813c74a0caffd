"""Attention kernels and gradient checkpointing change neither verdicts nor gradients."""

import pytest
import torch
from tiny import Pic, batch, build_guarded, write_released_folder
from torch.testing import assert_close
from transformers.utils import is_flash_attn_2_available

from safeqwen import SafeQwen2_5_VLForConditionalGeneration


CAT, DOG, SUN = Pic(4, 6, seed=1), Pic(4, 4, seed=2), Pic(8, 4, seed=3)
CLIP = Pic(4, 4, seed=4, frames=3)


def load(folder, attention, **kwargs):
    model = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(folder, attn_implementation=attention, **kwargs)
    towers = model.config, model.model.visual.config, model.model.language_model.config
    assert {tower._attn_implementation for tower in towers} == {attention}
    return model


@pytest.fixture
def folder(tmp_path, state_dict):
    return write_released_folder(tmp_path / "released", state_dict)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_eager_and_sdpa_attention_give_one_verdict(folder, model, padding_side):
    inputs = batch([5, CAT, 7, DOG], [SUN, 6], [CLIP], padding_side=padding_side)
    expected = model.guard(**inputs).img_safety_logits
    for attention in ("eager", "sdpa"):
        loaded = load(folder, attention)
        assert_close(loaded.guard(**inputs).img_safety_logits, expected, atol=1e-5, rtol=1e-5)
        output = loaded(**inputs, do_safety=True, output_attentions=attention == "eager")
        assert_close(output.img_safety_logits, expected, atol=1e-5, rtol=1e-5)
        assert (output.attentions is not None) == (attention == "eager")
        generated = loaded.generate(**inputs, do_safety=True, return_dict_in_generate=True, max_new_tokens=2)
        assert_close(generated.img_safety_logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not is_flash_attn_2_available(), reason="needs a GPU and the flash-attn package")
def test_flash_attention_gives_the_verdict_of_sdpa(folder):
    inputs = {key: tensor.cuda() for key, tensor in batch([5, CAT, 7, DOG], [SUN, 6]).items()}
    verdicts = {
        attention: load(folder, attention, dtype=torch.bfloat16, device_map="cuda").guard(**inputs).img_safety_probs
        for attention in ("sdpa", "flash_attention_2")
    }
    assert_close(verdicts["flash_attention_2"], verdicts["sdpa"], atol=0.02, rtol=0)


# --------------------------------------------------------------------------------------------- gradient checkpointing


def gradients(model, trainable=lambda name: True):
    """The losses of a labelled batch and the gradients of the trainable parameters; how often layers were run."""
    inputs = batch([5, CAT, 7, DOG], [SUN, 6], [8, 9])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable(name))
    runs = []
    for layer in (*model.model.language_model.layers, *model.model.visual.blocks):
        layer.mlp.register_forward_pre_hook(lambda *args: runs.append(1))
    torch.manual_seed(0)  # the guard drops out
    output = model.train()(**inputs, labels=inputs["input_ids"], safety_labels=torch.tensor([3, -100, -100]))
    output.loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return (output.loss.detach(), output.safety_loss.detach(), found), len(runs)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize(
    "trainable",
    [lambda name: True, lambda name: "language_model.layers" in name or "img_safety_head" in name],
    ids=["all", "layers and guard"],
)
def test_gradient_checkpointing_changes_no_loss_and_no_gradient(model, state_dict, use_reentrant, trainable):
    expected, num_runs = gradients(build_guarded(state_dict), trainable)
    assert expected[2]["img_safety_head.mlp.0.weight"].any()
    assert expected[2]["model.language_model.layers.0.mlp.down_proj.weight"].any()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    found, num_rerun = gradients(model, trainable)
    assert num_rerun > num_runs  # layers were run again on the way back
    assert_close(found, expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_guard_on_a_frozen_backbone_trains_under_gradient_checkpointing(model, state_dict, use_reentrant):
    expected, _ = gradients(build_guarded(state_dict), lambda name: "img_safety_head" in name)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    found, _ = gradients(model, lambda name: "img_safety_head" in name)
    assert set(found[2]) == {name for name, _ in model.named_parameters() if "img_safety_head" in name}
    assert_close(found, expected)
    assert all(gradient.any() for gradient in found[2].values())
