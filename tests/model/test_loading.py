"""Every way to load gives the same model, and weights that were never loaded or trained never judge."""

import copy
import importlib
import json
import logging
import os
import pickle
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import (
    CODE_FILES,
    VERSION_4,
    Pic,
    batch,
    build_guarded,
    for_stock,
    nested_config,
    random_state_dict,
    released_tensors,
    write_released_folder,
)
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

import safeqwen
from safeqwen import DEMO_CHECKPOINT, SafeQwen2_5_VLConfig, SafeQwen2_5_VLForConditionalGeneration
from safeqwen.hub.configuration_safeqwen import AUTO_MAP, HOLISAFE_CATEGORIES


INPUTS = batch([5, Pic(4, 6, seed=1), 7, 8], [Pic(4, 4, seed=2), 9])
ROUTES = {
    "AutoModelForImageTextToText": lambda *a, **k: AutoModelForImageTextToText.from_pretrained(
        *a, trust_remote_code=True, **k
    ),
    "AutoModel": lambda *a, **k: AutoModel.from_pretrained(*a, trust_remote_code=True, **k),
    "class": SafeQwen2_5_VLForConditionalGeneration.from_pretrained,
}
if VERSION_4:
    ROUTES["AutoModelForVision2Seq"] = lambda *a, **k: transformers.AutoModelForVision2Seq.from_pretrained(
        *a, trust_remote_code=True, **k
    )


def assert_same_tensors(model, state_dict, dtype=torch.float32):
    loaded = model.state_dict()
    assert set(loaded) == set(state_dict)
    for name, tensor in state_dict.items():
        assert loaded[name].dtype == dtype, name
        assert torch.equal(loaded[name], tensor.to(dtype)), name


def verdict(model):
    return model(**INPUTS, do_safety=True).img_safety_probs


# -------------------------------------------------------------------------------------------------------------- routes


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_released_folder_loads_bit_for_bit(tmp_path, state_dict, model, route, num_shards):
    folder = write_released_folder(tmp_path / "released", state_dict, num_shards=num_shards)
    loaded = ROUTES[route](folder, dtype=torch.float32)
    assert type(loaded).__name__ == "SafeQwen2_5_VLForConditionalGeneration"
    assert_same_tensors(loaded, state_dict)
    assert torch.equal(verdict(loaded), verdict(model))
    assert not loaded.training


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"])
def test_what_is_saved_loads_bit_for_bit(tmp_path, state_dict, model, route, max_shard_size):
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors").exists() == (max_shard_size == "5GB")
    loaded = ROUTES[route](tmp_path, dtype=torch.float32)
    assert_same_tensors(loaded, state_dict)
    assert torch.equal(verdict(loaded), verdict(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_dtype_loads(tmp_path, state_dict, dtype):
    folder = write_released_folder(tmp_path / "released", state_dict, dtype)
    loaded = ROUTES["AutoModelForImageTextToText"](folder, dtype="auto")
    assert_same_tensors(loaded, state_dict, dtype)
    loaded.save_pretrained(tmp_path / "saved")
    again = ROUTES["AutoModelForImageTextToText"](tmp_path / "saved", dtype="auto")
    assert_same_tensors(again, state_dict, dtype)
    assert_same_tensors(ROUTES["class"](folder, dtype=torch.float32), {k: t.to(dtype) for k, t in state_dict.items()})


def test_a_hub_cache_loads(tmp_path, state_dict, model):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--SafeQwen-tiny"
    write_released_folder(repository / "snapshots" / commit, state_dict)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    loaded = ROUTES["AutoModelForImageTextToText"]("someone/SafeQwen-tiny", cache_dir=tmp_path, dtype=torch.float32)
    assert_same_tensors(loaded, state_dict)
    loaded.save_pretrained(tmp_path / "saved")
    auto_map = json.loads((tmp_path / "saved" / "config.json").read_text())["auto_map"]
    assert auto_map == AUTO_MAP  # of the folder itself, not of someone's repository
    shutil.rmtree(repository)
    assert torch.equal(verdict(ROUTES["AutoModel"](tmp_path / "saved", dtype=torch.float32)), verdict(model))


@pytest.mark.parametrize("route", ROUTES)
def test_saving_carries_the_code_and_the_whole_auto_map(tmp_path, state_dict, route):
    folder = write_released_folder(tmp_path / "released", state_dict)
    ROUTES[route](folder).save_pretrained(tmp_path / "once")
    ROUTES["AutoModel"](tmp_path / "once").save_pretrained(tmp_path / "twice")
    for saved in ("once", "twice"):
        config = json.loads((tmp_path / saved / "config.json").read_text())
        assert config["auto_map"] == AUTO_MAP
        assert config["model_type"] == "qwen2_5_vl"
        assert config["num_safety_categories"] == len(config["safety_categories"]) == 20
        for name in CODE_FILES:
            assert (tmp_path / saved / name).read_text() == (folder / name).read_text()


def test_push_to_hub_uploads_the_code_with_the_weights(model, monkeypatch):
    uploaded = []

    def take_files(self, working_dir, repo_id, *args, **kwargs):
        uploaded.extend([repo_id, *os.listdir(working_dir)])

    # The Hub itself is out of reach: stand in for its two answers and look at what would be sent.
    repository = SimpleNamespace(repo_id="someone/SafeQwen-tiny")
    card = SimpleNamespace(save=lambda path: None)
    create_repo = "transformers.utils.hub.create_repo" if VERSION_4 else "huggingface_hub.HfApi.create_repo"
    monkeypatch.setattr(create_repo, lambda *args, **kwargs: repository)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *args, **kwargs: card)
    monkeypatch.setattr(type(model), "_upload_modified_files", take_files)
    model.push_to_hub(repository.repo_id, token="unused")
    assert {*CODE_FILES, "config.json", "model.safetensors", repository.repo_id} <= set(uploaded)


@pytest.mark.parametrize("layout", ["released", "saved"])
def test_the_same_folder_loads_as_plain_qwen(tmp_path, state_dict, model, stock, layout):
    if layout == "released":
        write_released_folder(tmp_path, state_dict)
    else:
        model.save_pretrained(tmp_path)
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(plain(**for_stock(INPUTS)).logits, stock(**for_stock(INPUTS)).logits)
    automatic = AutoModelForImageTextToText.from_pretrained(tmp_path, trust_remote_code=False, dtype=torch.float32)
    assert type(automatic) is Qwen2_5_VLForConditionalGeneration
    assert type(AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)) is Qwen2_5_VLConfig


def test_an_auto_class_builds_the_model_from_a_config(tmp_path, state_dict):
    config = AutoConfig.from_pretrained(write_released_folder(tmp_path, state_dict), trust_remote_code=True)
    built = AutoModelForImageTextToText.from_config(config, trust_remote_code=True).eval()
    assert set(built.state_dict()) == set(state_dict)
    assert_refuses(built, "neither loaded nor trained")


def test_importing_the_package_does_not_shadow_plain_qwen():
    assert AutoConfig.for_model("qwen2_5_vl").__class__ is Qwen2_5_VLConfig


def test_loading_a_complete_folder_says_nothing_of_missing_weights(tmp_path, state_dict, caplog):
    folder = write_released_folder(tmp_path, state_dict)
    logger = logging.getLogger("transformers")
    monkey = logger.propagate
    logger.propagate = True
    try:
        ROUTES["AutoModelForImageTextToText"](folder)
    finally:
        logger.propagate = monkey
    text = caplog.text.lower()
    assert "newly initialized" not in text and "missing" not in text and "unexpected" not in text


def test_loading_info_is_still_returned(tmp_path, state_dict):
    folder = write_released_folder(tmp_path, state_dict)
    loaded, info = ROUTES["class"](folder, output_loading_info=True)
    assert loaded.img_safety_head.trained
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_tied_embeddings_are_not_taken_for_missing_weights(tmp_path):
    text_config = {**nested_config().text_config.to_dict(), "tie_word_embeddings": True}
    config = nested_config(text_config=text_config, tie_word_embeddings=True)
    model = SafeQwen2_5_VLForConditionalGeneration(config).eval()
    torch.nn.init.ones_(model.img_safety_head.mlp[-1].bias)  # zeros are what a guard starts with
    model.load_state_dict(model.state_dict())
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = ROUTES["AutoModel"](tmp_path, dtype=torch.float32)
    assert torch.equal(verdict(loaded), verdict(model))


@pytest.mark.parametrize("version", ["5.3.0", "5.4.0", "5.5.3"])
def test_transformers_that_misplace_pictures_are_refused(monkeypatch, version):
    monkeypatch.setattr(transformers, "__version__", version)
    spec = importlib.util.find_spec("safeqwen.hub.modeling_safeqwen")
    module = importlib.util.module_from_spec(spec)
    with pytest.raises(ImportError, match=f"transformers {version} .*45325.*pip install -U"):
        spec.loader.exec_module(module)


@pytest.mark.parametrize("version", ["4.57.0", "5.2.0", "5.5.4", "5.23.0"])
def test_other_transformers_are_accepted(monkeypatch, version):
    monkeypatch.setattr(transformers, "__version__", version)
    spec = importlib.util.find_spec("safeqwen.hub.modeling_safeqwen")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_copies_and_pickles_judge_alike(model):
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(verdict(clone), verdict(model))


# --------------------------------------------------------------------------------------------------------- fail closed


def rewrite(folder, drop=(), **changes):
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in drop)}
    assert not drop or len(kept) < len(tensors)
    save_file({**kept, **changes}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def assert_refuses(model, message):
    for call in (
        lambda: model(**INPUTS, do_safety=True),
        lambda: model.guard(**INPUTS),
        lambda: model.generate(**INPUTS, do_safety=True, max_new_tokens=1),
        lambda: model.generate(**INPUTS, safety_threshold=0.5, max_new_tokens=1),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
    assert model(**INPUTS).logits.isfinite().all()  # it still answers
    assert model.generate(**INPUTS, max_new_tokens=2).shape[1] > INPUTS["input_ids"].shape[1]


def test_a_model_built_from_a_config_does_not_judge():
    assert_refuses(SafeQwen2_5_VLForConditionalGeneration(nested_config()).eval(), "neither loaded nor trained")


@pytest.mark.parametrize("route", ROUTES)
def test_a_folder_without_a_guard_does_not_judge(tmp_path, state_dict, route):
    folder = rewrite(write_released_folder(tmp_path, state_dict), drop=["img_safety_head"])
    assert_refuses(ROUTES[route](folder, dtype=torch.float32), "guard .* neither loaded nor trained")


def test_plain_qwen_weights_do_not_judge(tmp_path, stock):
    stock.save_pretrained(tmp_path)
    assert_refuses(ROUTES["class"](tmp_path, dtype=torch.float32), "guard .* neither loaded nor trained")


@pytest.mark.parametrize("part", ["img_safety_head.mlp.3.bias", "mlp.0.weight"])
def test_a_folder_without_a_part_of_the_guard_does_not_judge(tmp_path, state_dict, part):
    folder = rewrite(write_released_folder(tmp_path, state_dict), drop=[part])
    assert_refuses(ROUTES["class"](folder, dtype=torch.float32), "guard .* neither loaded nor trained")


@pytest.mark.parametrize(
    "part", ["visual.blocks.1.attn.qkv.weight", "model.layers.0.mlp.up_proj", "model.norm", "lm_head", "embed_tokens"]
)
def test_a_folder_without_a_backbone_tensor_does_not_judge(tmp_path, state_dict, part):
    folder = rewrite(write_released_folder(tmp_path, state_dict), drop=[part])
    loaded = ROUTES["AutoModelForImageTextToText"](folder, dtype=torch.float32)
    assert_refuses(loaded, "1 tensors of the backbone were neither loaded nor trained")


def test_a_guard_deeper_than_the_config_does_not_judge(tmp_path, state_dict):
    extra = {"img_safety_head.mlp.6.weight": torch.zeros(20, 20), "img_safety_head.mlp.6.bias": torch.zeros(20)}
    folder = rewrite(write_released_folder(tmp_path, state_dict), **extra)
    assert_refuses(ROUTES["class"](folder, dtype=torch.float32), "guard")


def test_a_config_whose_count_contradicts_the_weights_is_refused(tmp_path, state_dict):
    folder = write_released_folder(tmp_path, state_dict, safety_categories=["safe", "harm"], num_safety_categories=2)
    with pytest.raises(RuntimeError, match=r"mlp.3.bias \(by the config \(2,\)\).*ignore_mismatched"):
        ROUTES["class"](folder)


def test_another_taxonomy_renews_the_guard_alone_and_does_not_judge(tmp_path, state_dict, stock):
    folder = write_released_folder(tmp_path, state_dict)
    for route in ROUTES.values():
        loaded = route(
            folder, safety_categories=["safe", "cat", "dog"], ignore_mismatched_sizes=True, dtype=torch.float32
        )
        assert loaded.config.num_safety_categories == 3
        assert not any("safety" in name for name in vars(loaded.generation_config))
        assert loaded.img_safety_head.mlp[-1].weight.shape == (3, 32)
        assert_refuses(loaded, "guard")
        assert torch.equal(loaded(**INPUTS).logits, stock(**for_stock(INPUTS)).logits)


def test_a_config_of_another_taxonomy_does_not_judge_either(tmp_path, state_dict):
    folder = write_released_folder(tmp_path, state_dict)
    config = SafeQwen2_5_VLConfig.from_pretrained(folder, safety_categories=["safe", "cat"])
    loaded = ROUTES["class"](folder, config=config, ignore_mismatched_sizes=True, dtype=torch.float32)
    assert_refuses(loaded, "guard .* neither loaded nor trained")


def test_another_taxonomy_of_the_same_size_does_not_judge_under_wrong_names(tmp_path, state_dict):
    folder = write_released_folder(tmp_path, state_dict)
    names = ["safe", *(f"kind {i}" for i in range(19))]
    for loaded in (
        ROUTES["AutoModel"](folder, safety_categories=names, dtype=torch.float32),
        ROUTES["class"](folder, config=nested_config(safety_categories=names), dtype=torch.float32),
        ROUTES["class"](folder, config=nested_config(safety_categories=HOLISAFE_CATEGORIES[::-1])),
    ):
        assert_refuses(loaded, "guard .* for these categories")
    own = write_released_folder(tmp_path / "own", state_dict, safety_categories=names)
    assert_refuses(ROUTES["class"](own, config=nested_config()), "guard .* for these categories")


def test_the_guards_fields_can_be_overridden_like_any_other(tmp_path, state_dict):
    folder = write_released_folder(tmp_path, state_dict)
    assert ROUTES["AutoModel"](folder, safety_loss_lambda=0.5).config.safety_loss_lambda == 0.5
    with pytest.raises(ValueError, match="occur more than once"):
        ROUTES["AutoModel"](folder, safety_categories=["a", "a"])


def test_an_untrained_guard_stays_untrained_through_save_and_load(tmp_path, stock):
    stock.save_pretrained(tmp_path / "plain")
    untrained = ROUTES["class"](tmp_path / "plain", dtype=torch.float32)
    untrained.save_pretrained(tmp_path / "guarded")
    again = ROUTES["AutoModel"](tmp_path / "guarded", dtype=torch.float32)
    assert_same_tensors(again, untrained.state_dict())  # nothing is lost
    assert_refuses(again, "guard .* neither loaded nor trained")


def test_a_lacking_backbone_stays_refused_through_save_and_load(tmp_path, state_dict):
    folder = rewrite(write_released_folder(tmp_path / "released", state_dict), drop=["model.norm"])
    ROUTES["class"](folder, dtype=torch.float32).save_pretrained(tmp_path / "saved")
    loaded = ROUTES["AutoModel"](tmp_path / "saved", dtype=torch.float32)
    assert_refuses(loaded, "1 tensors of the backbone .* model.language_model.norm.weight")
    guard = {name: tensor for name, tensor in state_dict.items() if name.startswith("img_safety_head.")}
    loaded.load_state_dict(guard, strict=False)
    assert_refuses(loaded, "1 tensors of the backbone")
    loaded.model.requires_grad_(False)
    train_a_step(loaded)
    assert_refuses(loaded.eval(), "1 tensors of the backbone")


def test_saving_leaves_the_config_that_models_share_alone(tmp_path, state_dict, model):
    config = nested_config()
    SafeQwen2_5_VLForConditionalGeneration(config).save_pretrained(tmp_path / "random")
    folder = write_released_folder(tmp_path / "released", state_dict)
    loaded = ROUTES["class"](folder, config=config, dtype=torch.float32)
    assert torch.equal(verdict(loaded), verdict(model))


def test_a_state_dict_that_does_not_fit_lifts_nothing(state_dict):
    model = SafeQwen2_5_VLForConditionalGeneration(nested_config(safety_categories=["a", "b"])).eval()
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(state_dict)
    assert_refuses(model, "guard")


def test_a_subclass_loads_a_released_folder_too(tmp_path, state_dict):
    class Own(SafeQwen2_5_VLForConditionalGeneration):
        pass

    assert_same_tensors(Own.from_pretrained(write_released_folder(tmp_path, state_dict)), state_dict)


def test_load_state_dict_lifts_the_refusal_only_when_complete(state_dict):
    model = SafeQwen2_5_VLForConditionalGeneration(nested_config()).eval()
    guard = {name: tensor for name, tensor in state_dict.items() if name.startswith("img_safety_head.")}
    model.load_state_dict(guard, strict=False)
    assert_refuses(model, "backbone")
    backbone = {name: tensor for name, tensor in state_dict.items() if name not in guard}
    missing_one = {name: tensor for name, tensor in backbone.items() if "visual.merger.ln_q" not in name}
    model.load_state_dict(missing_one, strict=False)
    assert_refuses(model, "1 tensors of the backbone .*ln_q")
    model.load_state_dict(backbone, strict=False)
    assert torch.equal(verdict(model), verdict(build_guarded(state_dict)))
    head = SafeQwen2_5_VLForConditionalGeneration(nested_config()).img_safety_head
    head.load_state_dict({"mlp.0.weight": state_dict["img_safety_head.mlp.0.weight"]}, strict=False)
    assert not head.trained


def test_a_state_dict_of_a_guard_that_was_never_trained_does_not_judge(state_dict):
    guard = SafeQwen2_5_VLForConditionalGeneration(nested_config()).img_safety_head.state_dict()
    for model in (SafeQwen2_5_VLForConditionalGeneration(nested_config()).eval(), build_guarded(state_dict)):
        model.load_state_dict({**state_dict, **{f"img_safety_head.{name}": tensor for name, tensor in guard.items()}})
        assert_refuses(model, "guard .* neither loaded nor trained")


def test_a_new_guard_starts_with_a_bias_of_zeros(tmp_path, state_dict, stock):
    folder = write_released_folder(tmp_path / "released", state_dict)
    stock.save_pretrained(tmp_path / "plain")
    for model in (
        SafeQwen2_5_VLForConditionalGeneration(nested_config()),
        ROUTES["class"](tmp_path / "plain", dtype=torch.float32),
        ROUTES["class"](folder, safety_categories=["safe", "cat"], ignore_mismatched_sizes=True),
    ):
        assert not model.img_safety_head.mlp[-1].bias.any()


def test_load_state_dict_takes_the_released_names_too(state_dict):
    """Which is how `save_pretrained` names them; Trainer resumes, and restores its best model, by load_state_dict."""
    model = SafeQwen2_5_VLForConditionalGeneration(nested_config())
    model.load_state_dict(released_tensors(state_dict))
    assert_same_tensors(model, state_dict)
    model.eval().guard(**INPUTS)
    wrapped = torch.nn.ModuleDict({"wrapped": SafeQwen2_5_VLForConditionalGeneration(nested_config())})
    wrapped.load_state_dict({f"wrapped.{name}": tensor for name, tensor in released_tensors(state_dict).items()})
    assert_same_tensors(wrapped["wrapped"], state_dict)


# ------------------------------------------------------------------------------------------------------------ training


def train_a_step(model, **losses):
    losses = losses or {"safety_labels": torch.tensor([1, 2])}
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=1e-3)
    model(**INPUTS, **losses).loss.backward()
    optimizer.step()


def test_an_untrained_guard_trains_and_then_judges(tmp_path, stock):
    stock.save_pretrained(tmp_path / "plain")
    model = ROUTES["class"](tmp_path / "plain", dtype=torch.float32)
    labels = torch.tensor([3, 7])
    before = model(**INPUTS, safety_labels=labels, picture_categories=labels)  # an evaluation before training
    assert before.safety_loss > 0 and before.img_safety_logits is None and before.img_safety_probs is None
    assert before.picture_safety_logits is None
    model.train()
    optimizer = torch.optim.AdamW(model.img_safety_head.parameters(), lr=1e-2)
    for step in range(40):
        output = model(**INPUTS, do_safety=True, safety_labels=labels, picture_categories=labels)
        # For the metrics of the training loop.
        assert output.img_safety_logits is not None and output.picture_safety_logits is not None
        assert (output.img_safety_probs is None) == (step == 0)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert verdict(model).argmax(-1).tolist() == [3, 7]
    model.save_pretrained(tmp_path / "trained")
    assert torch.equal(verdict(ROUTES["AutoModel"](tmp_path / "trained", dtype=torch.float32)), verdict(model))


def test_training_the_language_model_alone_does_not_make_a_guard(tmp_path, stock):
    stock.save_pretrained(tmp_path)
    model = ROUTES["class"](tmp_path, dtype=torch.float32).train()
    model(**INPUTS, labels=INPUTS["input_ids"]).loss.backward()
    model(**INPUTS, labels=INPUTS["input_ids"], safety_labels=torch.tensor([-100, -100])).loss.backward()
    model.img_safety_head.requires_grad_(False)
    model(**INPUTS, safety_labels=torch.tensor([1, 2])).loss.backward()  # the frozen guard stays random
    assert_refuses(model.eval(), "guard .* neither loaded nor trained")


def test_a_gradient_without_a_step_does_not_make_a_guard(tmp_path, stock):
    stock.save_pretrained(tmp_path)
    model = ROUTES["class"](tmp_path, dtype=torch.float32).train()
    model(**INPUTS, safety_labels=torch.tensor([1, 2])).loss.backward()
    assert_refuses(model.eval(), "guard .* neither loaded nor trained")


def test_training_from_nothing_ends_with_a_model_that_judges():
    torch.manual_seed(0)
    model = SafeQwen2_5_VLForConditionalGeneration(nested_config())
    model.model.visual.requires_grad_(False)
    train_a_step(model)
    assert_refuses(model.eval(), "backbone were neither loaded nor trained, e.g. .*model.visual")
    model.requires_grad_(True)
    train_a_step(model, labels=INPUTS["input_ids"], safety_labels=torch.tensor([1, 2]))
    assert verdict(model.eval()).isfinite().all()


def test_a_loss_that_does_not_reach_a_random_tensor_does_not_make_it_trained(tmp_path, state_dict):
    folder = rewrite(write_released_folder(tmp_path, state_dict), drop=["visual.blocks.1."])
    model = ROUTES["class"](folder, dtype=torch.float32)
    text = batch([5, 6, 7])
    optimizer = torch.optim.AdamW(model.train().parameters())
    model(**text, labels=text["input_ids"]).loss.backward()
    optimizer.step()
    assert_refuses(model.eval(), "tensors of the backbone")


def test_two_categories_and_other_depths_train_and_judge(tmp_path):
    for depth, keys in ((0, {"mlp.0"}), (1, {"mlp.0", "mlp.3"}), (3, {"mlp.0", "mlp.3", "mlp.6", "mlp.9"})):
        shape = {"safety_categories": ["ok", "not ok"], "safety_num_hidden_layers": depth}
        model = build_guarded(random_state_dict(**shape), **shape)
        assert {name.rsplit(".", 1)[0] for name in model.img_safety_head.state_dict()} == keys
        assert_close(verdict(model).sum(-1), torch.ones(2))
        model.save_pretrained(tmp_path / str(depth))
        loaded = ROUTES["AutoModel"](tmp_path / str(depth), dtype=torch.float32)
        assert loaded.config.safety_categories == ["ok", "not ok"]
        assert torch.equal(verdict(loaded), verdict(model))


def test_the_guard_of_the_7b_model_has_its_released_size():
    config = SafeQwen2_5_VLConfig(text_config={"hidden_size": 3584, "num_hidden_layers": 0})
    with torch.device("meta"):
        head = type(SafeQwen2_5_VLForConditionalGeneration(nested_config()).img_safety_head)(config)
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {
        "mlp.0.weight": (1792, 3584),
        "mlp.0.bias": (1792,),
        "mlp.3.weight": (20, 1792),
        "mlp.3.bias": (20,),
    }
    assert sum(p.numel() for p in head.parameters()) == 6_460_180


# --------------------------------------------------------------------------------------------------- safeqwen.load


def test_load_gives_a_judging_model_and_its_processor(tmp_path, state_dict, model):
    folder = write_released_folder(tmp_path / "released", state_dict, torch.float16)
    for file in DEMO_CHECKPOINT.iterdir():  # a processor
        if file.suffix in (".json", ".jinja") and not (folder / file.name).exists():
            shutil.copy(file, folder)
    loaded, processor = safeqwen.load(folder, device="cpu")
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert not loaded.training and loaded.dtype == torch.float32  # saved in float16
    assert_same_tensors(loaded, {name: tensor.half().float() for name, tensor in state_dict.items()})
    assert safeqwen.load(folder, device="cpu", dtype="auto")[0].dtype == torch.float16
    with pytest.raises(ValueError, match="not both"):
        safeqwen.load(folder, device="cpu", device_map="auto")


def test_load_without_a_path_is_the_demo():
    loaded, processor = safeqwen.load()
    assert loaded.config.text_config.hidden_size == 192
    assert processor.tokenizer.convert_tokens_to_ids("<|image_pad|>") == loaded.config.image_token_id


def test_load_passes_the_hub_switches_on(tmp_path, state_dict):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--SafeQwen-tiny"
    folder = write_released_folder(repository / "snapshots" / commit, state_dict)
    for file in DEMO_CHECKPOINT.iterdir():
        if file.suffix in (".json", ".jinja") and not (folder / file.name).exists():
            shutil.copy(file, folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "tried").write_text(commit)
    hub = {"cache_dir": tmp_path, "revision": "tried", "local_files_only": True, "token": "hf_none"}
    loaded, _ = safeqwen.load("someone/SafeQwen-tiny", device="cpu", **hub)
    assert_same_tensors(loaded, state_dict)
    with pytest.raises(OSError):
        safeqwen.load("someone/SafeQwen-tiny", device="cpu", **{**hub, "revision": "main"})


def test_a_plain_config_takes_nothing_from_the_guard(tmp_path, state_dict, model):
    folder = write_released_folder(
        tmp_path / "released", state_dict, safety_categories=[f"harm {i}" for i in range(20)]
    )
    plain = AutoConfig.from_pretrained(folder)
    assert type(plain) is Qwen2_5_VLConfig
    loaded = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(folder, config=plain, dtype=torch.float32)
    assert loaded.config.safety_categories == [f"harm {i}" for i in range(20)]
    assert torch.equal(verdict(loaded), verdict(model))
