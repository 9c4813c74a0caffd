"""Through PEFT's wrapper the guard judges, trains, is saved and switched like any of the adapter's modules."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny import INPUTS, assert_refuses, build_guarded, digest_of, rewrite, write_released_folder
from torch.testing import assert_close

from safeqwen import SafeQwen2_5_VLForConditionalGeneration
from safeqwen.hub.configuration_safeqwen import HOLISAFE_CATEGORIES


LABELS = torch.tensor([3, 7])
# Anchored: the vision tower has mlp.gate_proj and others of these names too.
TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
GENERATE = {"max_new_tokens": 6, "do_sample": False, "do_safety": True, "return_dict_in_generate": True}


def lora(seed=0, **kwargs):
    torch.manual_seed(seed)
    options = {"target_modules": TARGETS, "modules_to_save": ["img_safety_head"], "lora_dropout": 0.1, **kwargs}
    return LoraConfig(r=4, lora_alpha=8, **options)


def train(wrapped, safety_labels=LABELS, safety=True, steps=4):
    """A few steps through the wrapper, on the language and safety losses or on the first alone."""
    parameters = [p for p in wrapped.train().parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = {"labels": INPUTS["input_ids"], **({"safety_labels": safety_labels} if safety else {})}
    for _ in range(steps):
        wrapped(**INPUTS, **losses).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return wrapped.eval()


def outcome(model):
    """Everything that the model says about the batch: verdicts by every entry, logits, text."""
    forward = model(**INPUTS, do_safety=True)
    answer = model.generate(**INPUTS, **GENERATE)
    labelled = model(**INPUTS, safety_labels=LABELS)
    return {
        "logits": forward.logits,
        "forward": forward.img_safety_logits,
        "loss": labelled.safety_loss,
        "guard": model.guard(**INPUTS).img_safety_logits,
        "image": model.guard(**INPUTS, granularity="image").img_safety_logits,
        "generate": answer.img_safety_logits,
        "text": answer.sequences,
    }


def assert_same(one, other, tolerance=1e-4):
    for name, tensor in one.items():
        assert_close(tensor, other[name], atol=tolerance, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture
def plain(tmp_path, state_dict):
    """A folder of plain Qwen2.5-VL: the guard that loads from it is random."""
    return rewrite(write_released_folder(tmp_path / "plain", state_dict), drop=["img_safety_head"])


def load(folder):
    return SafeQwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_an_adapter_trains_saves_and_loads_with_its_guard(tmp_path, state_dict, model, task_type):
    before = outcome(model)
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrapped = get_peft_model(model, lora(task_type=task_type))
    assert_same(outcome(wrapped.eval()), before)  # LoRA begins as nothing, and the guard as a copy
    trainable = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert trainable and all("language_model" in name or "modules_to_save" in name for name in trainable)
    trained = outcome(train(wrapped))
    assert (trained["guard"] - before["guard"]).abs().max() > 0.5
    assert trained["loss"] < before["loss"]

    wrapped.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum("img_safety_head.mlp" in name for name in saved) == 4
    assert saved["base_model.model.img_safety_head.categories_digest"].tolist() == digest_of(HOLISAFE_CATEGORIES)
    loaded = PeftModel.from_pretrained(build_guarded(state_dict), tmp_path / "adapter")
    assert_same(outcome(loaded), trained, tolerance=0)
    for name, tensor in loaded.unload().state_dict().items():
        assert "img_safety_head" in name or torch.equal(tensor, frozen[name]), name


def test_the_wrapper_says_what_the_merged_model_says_and_what_is_saved_of_it(tmp_path, model):
    wrapped = train(get_peft_model(model, lora()))
    through_wrapper = outcome(wrapped)
    merged = wrapped.merge_and_unload()
    assert type(merged) is SafeQwen2_5_VLForConditionalGeneration
    assert_same(outcome(merged), through_wrapper)
    merged.save_pretrained(tmp_path)
    assert_same(outcome(load(tmp_path)), outcome(merged), tolerance=0)


def test_switching_adapters_switches_guard_and_text(tmp_path, state_dict):
    outcomes = {}
    for name, labels in (("one", [3, 7]), ("two", [12, 1])):
        wrapped = train(get_peft_model(build_guarded(state_dict), lora(seed=len(outcomes))), torch.tensor(labels))
        outcomes[name] = outcome(wrapped)
        wrapped.save_pretrained(tmp_path / name)
    base = build_guarded(state_dict)
    without = outcome(base)
    both = PeftModel.from_pretrained(base, tmp_path / "one", adapter_name="one")
    both.load_adapter(tmp_path / "two", adapter_name="two")
    assert not torch.allclose(outcomes["one"]["guard"], outcomes["two"]["guard"], atol=0.5)
    assert not torch.equal(outcomes["one"]["logits"], outcomes["two"]["logits"])
    for name in ("two", "one", "two"):
        both.set_adapter(name)
        assert_same(outcome(both), outcomes[name], tolerance=0)
        with both.disable_adapter():
            assert_same(outcome(both), without, tolerance=0)
        assert_same(outcome(both), outcomes[name], tolerance=0)


def test_the_trained_copy_judges_and_the_random_original_does_not(tmp_path, plain):
    wrapped = get_peft_model(load(plain), lora())
    assert_refuses(wrapped.eval(), "guard .* never trained")
    trained = outcome(train(wrapped))
    with wrapped.disable_adapter():
        assert_refuses(wrapped, "guard .* never trained")
    assert_same(outcome(wrapped), trained, tolerance=0)
    wrapped.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(load(plain), tmp_path / "adapter")
    assert_same(outcome(loaded), trained, tolerance=0)
    with loaded.disable_adapter():
        assert_refuses(loaded, "guard .* never trained")
    merged = loaded.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert_same(outcome(load(tmp_path / "merged")), outcome(merged), tolerance=0)


def test_merging_an_untrained_adapter_does_not_make_a_guard(tmp_path, plain):
    merged = get_peft_model(load(plain), lora()).merge_and_unload().eval()
    assert_refuses(merged, "guard .* never trained")
    merged.save_pretrained(tmp_path / "merged")
    assert_refuses(load(tmp_path / "merged"), "guard .* never trained")


@pytest.mark.parametrize("base", ["plain", "guarded"])
@pytest.mark.parametrize("way", ["peft", "transformers"])
def test_an_adapter_whose_guard_was_never_trained_does_not_judge(tmp_path, plain, state_dict, base, way):
    wrapped = train(get_peft_model(load(plain), lora()), safety=False)
    assert_refuses(wrapped, "guard .* never trained")
    wrapped.save_pretrained(tmp_path / "adapter")
    model = load(plain) if base == "plain" else build_guarded(state_dict)
    if way == "peft":
        model = PeftModel.from_pretrained(model, tmp_path / "adapter")
    else:
        model.load_adapter(tmp_path / "adapter")
    assert_refuses(model, "guard .* never trained")


@pytest.mark.parametrize("base", ["plain", "guarded"])
def test_the_integration_of_transformers_loads_the_guard_too(tmp_path, plain, state_dict, base):
    def fresh():
        return load(plain) if base == "plain" else build_guarded(state_dict)

    wrapped = train(get_peft_model(fresh(), lora()))
    wrapped.save_pretrained(tmp_path / "adapter")
    model = fresh()
    model.load_adapter(tmp_path / "adapter")
    assert_same(outcome(model), outcome(wrapped), tolerance=0)


def load_by_transformers(model, adapter):
    model.load_adapter(adapter)
    return model


@pytest.mark.parametrize("load_adapter", [PeftModel.from_pretrained, load_by_transformers])
def test_an_adapter_without_a_guard_keeps_that_of_the_base(tmp_path, plain, state_dict, load_adapter):
    wrapped = train(get_peft_model(build_guarded(state_dict), lora(modules_to_save=None)))
    wrapped.save_pretrained(tmp_path / "adapter")
    assert_same(outcome(load_adapter(build_guarded(state_dict), tmp_path / "adapter")), outcome(wrapped), tolerance=0)
    assert_refuses(load_adapter(load(plain), tmp_path / "adapter"), "guard .* never trained")


def test_an_adapters_folder_given_for_a_models_is_refused_and_says_what_to_load(tmp_path, state_dict):
    base = write_released_folder(tmp_path / "base", state_dict)
    train(get_peft_model(load(base), lora())).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"is an adapter: load its base, and then PeftModel.from_pretrained\(base"):
        load(tmp_path / "adapter")


# ---------------------------------------------------------------------------------------------- names and other layers


OTHER = ["safe", *(f"kind {i}" for i in range(19))]


def as_it_is(model, folder):
    return model


def merged(model, folder):
    return model.merge_and_unload()


def merged_and_saved(model, folder):
    model.merge_and_unload().save_pretrained(folder)
    return load(folder)


@pytest.mark.parametrize(
    "way",
    [
        (PeftModel.from_pretrained, as_it_is),
        (PeftModel.from_pretrained, merged),
        (PeftModel.from_pretrained, merged_and_saved),
        (load_by_transformers, as_it_is),
    ],
    ids=["PeftModel", "merged", "merged and saved", "load_adapter"],
)
def test_an_adapter_of_twenty_other_names_does_not_judge_on_a_base_of_twenty(tmp_path, state_dict, way):
    (load_adapter, then), base = way, write_released_folder(tmp_path / "base", state_dict)
    own = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(
        base, safety_categories=OTHER, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    wrapped = train(get_peft_model(own, lora()))
    expected = outcome(wrapped)
    wrapped.save_pretrained(tmp_path / "adapter")
    put_on = then(load_adapter(load(base), tmp_path / "adapter"), tmp_path / "saved")
    assert_refuses(put_on, "guard .* trained for other categories")
    if load_adapter is PeftModel.from_pretrained and then is as_it_is:
        with put_on.disable_adapter():  # the base's own guard
            assert put_on.guard(**INPUTS).img_safety_probs.isfinite().all()
    right = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(
        base, safety_categories=OTHER, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    assert_same(outcome(then(load_adapter(right, tmp_path / "adapter"), tmp_path / "saved again")), expected)


def test_a_guard_trained_by_lora_on_its_own_layers_judges_once_it_is_declared_trained(tmp_path, plain):
    targets = f"({TARGETS})|img_safety_head\\.mlp\\.(0|3)"
    load(plain).save_pretrained(tmp_path / "base")  # LoRA's factors mean something on these random layers only
    wrapped = train(get_peft_model(load(tmp_path / "base"), lora(target_modules=targets, modules_to_save=None)))
    assert_refuses(wrapped, "guard .* never trained")
    wrapped.save_pretrained(tmp_path / "adapter")
    wrapped.mark_trained()
    expected = outcome(wrapped)
    loaded = PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter")
    assert_refuses(loaded, "guard .* never trained")
    merged = loaded.merge_and_unload()
    assert_refuses(merged, "guard .* never trained")
    merged.mark_trained()
    assert_same(outcome(merged), expected)
    merged.save_pretrained(tmp_path / "merged")
    assert_same(outcome(load(tmp_path / "merged")), outcome(merged), tolerance=0)
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged again")
    assert_same(outcome(load(tmp_path / "merged again")), expected)


def test_a_guard_trained_before_keeps_its_verdict_under_lora_on_its_own_layers(tmp_path, state_dict):
    base = write_released_folder(tmp_path / "base", state_dict)
    targets = f"({TARGETS})|img_safety_head\\.mlp\\.(0|3)"
    wrapped = train(get_peft_model(load(base), lora(target_modules=targets, modules_to_save=None)))
    expected = outcome(wrapped)  # its last bias was there before
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert_same(outcome(load(tmp_path / "merged")), expected)
