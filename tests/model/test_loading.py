"""Every way to load gives the same model, and what is saved is whole."""

import importlib
import json
import logging
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny import (
    CODE_FILES,
    DIGEST,
    INPUTS,
    ROUTES,
    VERSION_4,
    assert_refuses,
    assert_same_tensors,
    build_guarded,
    digest_of,
    edit_config,
    for_stock,
    load_plainly,
    nested_config,
    random_state_dict,
    released_tensors,
    verdict,
    write_released_folder,
)
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from safeqwen import SafeQwen2_5_VLConfig, SafeQwen2_5_VLForConditionalGeneration
from safeqwen.hub.configuration_safeqwen import AUTO_MAP, HOLISAFE_CATEGORIES


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
    assert len(AUTO_MAP) == 7 and auto_map == AUTO_MAP  # of the folder itself, not of someone's repository
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
    assert_refuses(built, "guard .* never trained")


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
    assert loaded.refusal() is None
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_tied_embeddings_are_not_taken_for_missing_weights(tmp_path):
    text_config = {**nested_config().text_config.to_dict(), "tie_word_embeddings": True}
    config = nested_config(text_config=text_config, tie_word_embeddings=True)
    model = SafeQwen2_5_VLForConditionalGeneration(config).eval()
    torch.nn.init.ones_(model.img_safety_head.mlp[-1].bias)  # zeros are what a guard starts with
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = ROUTES["AutoModel"](tmp_path, dtype=torch.float32)
    assert torch.equal(verdict(loaded), verdict(model))


@pytest.mark.parametrize("version", ["5.3.0", "5.4.0", "5.5.3"])
def test_transformers_that_misplace_pictures_are_refused(monkeypatch, version):
    monkeypatch.setattr(transformers, "__version__", version)
    spec = importlib.util.find_spec("safeqwen.hub.compat_safeqwen")
    module = importlib.util.module_from_spec(spec)
    with pytest.raises(ImportError, match=f"transformers {version} .*45325.*pip install -U"):
        spec.loader.exec_module(module)


@pytest.mark.parametrize("version", ["4.57.0", "5.2.0", "5.5.4", "5.23.0"])
def test_other_transformers_are_accepted(monkeypatch, version):
    monkeypatch.setattr(transformers, "__version__", version)
    spec = importlib.util.find_spec("safeqwen.hub.compat_safeqwen")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_folders_own_entries_of_the_auto_map_are_kept(tmp_path, state_dict):
    folder = write_released_folder(tmp_path / "released", state_dict)
    edit_config(folder, auto_map={**AUTO_MAP, "AutoModelForSequenceClassification": "modeling_own.Own"})
    load_plainly(folder).save_pretrained(tmp_path / "saved")
    auto_map = json.loads((tmp_path / "saved" / "config.json").read_text())["auto_map"]
    assert auto_map == {**AUTO_MAP, "AutoModelForSequenceClassification": "modeling_own.Own"}


def test_released_weights_are_sealed_with_the_names_of_the_config_beside_them(tmp_path, state_dict):
    names = [f"harm {i}" for i in range(20)]
    holisafe = load_plainly(write_released_folder(tmp_path / "released", state_dict))
    own = load_plainly(write_released_folder(tmp_path / "own", state_dict, safety_categories=names))
    assert holisafe.state_dict()[DIGEST].tolist() == digest_of(HOLISAFE_CATEGORIES)
    assert own.state_dict()[DIGEST].tolist() == digest_of(names)


def test_the_folder_holds_the_five_files_of_code_and_no_others():
    assert CODE_FILES == [
        f"{name}_safeqwen.py" for name in ("compat", "configuration", "guard", "modeling", "pictures")
    ]


# ----------------------------------------------------------------------------------------------- other shapes and ways


def test_the_guards_fields_can_be_overridden_like_any_other(tmp_path, state_dict):
    folder = write_released_folder(tmp_path, state_dict)
    assert ROUTES["AutoModel"](folder, safety_loss_lambda=0.5).config.safety_loss_lambda == 0.5
    with pytest.raises(ValueError, match="none twice"):
        ROUTES["AutoModel"](folder, safety_categories=["a", "a"])


def test_saving_leaves_the_config_that_models_share_alone(tmp_path, state_dict, model):
    config = nested_config()
    SafeQwen2_5_VLForConditionalGeneration(config).save_pretrained(tmp_path / "random")
    folder = write_released_folder(tmp_path / "released", state_dict)
    loaded = ROUTES["class"](folder, config=config, dtype=torch.float32)
    assert torch.equal(verdict(loaded), verdict(model))


def test_a_subclass_loads_a_released_folder_too(tmp_path, state_dict):
    class Own(SafeQwen2_5_VLForConditionalGeneration):
        pass

    assert_same_tensors(Own.from_pretrained(write_released_folder(tmp_path, state_dict)), state_dict)


def test_load_state_dict_takes_the_released_names_too(state_dict):
    """Which is how `save_pretrained` names them; Trainer resumes, and restores its best model, by load_state_dict."""
    model = SafeQwen2_5_VLForConditionalGeneration(nested_config())
    model.load_state_dict(released_tensors(state_dict))
    assert_same_tensors(model, state_dict)
    assert verdict(model.eval()).isfinite().all()
    wrapped = torch.nn.ModuleDict({"wrapped": SafeQwen2_5_VLForConditionalGeneration(nested_config())})
    wrapped.load_state_dict({f"wrapped.{name}": tensor for name, tensor in released_tensors(state_dict).items()})
    assert_same_tensors(wrapped["wrapped"], state_dict)


def test_two_categories_and_other_depths_train_and_judge(tmp_path):
    for depth, keys in ((0, {"mlp.0"}), (1, {"mlp.0", "mlp.3"}), (3, {"mlp.0", "mlp.3", "mlp.6", "mlp.9"})):
        shape = {"safety_categories": ["ok", "not ok"], "safety_num_hidden_layers": depth}
        model = build_guarded(random_state_dict(**shape), **shape)
        assert {name.rsplit(".", 1)[0] for name, _ in model.img_safety_head.named_parameters()} == keys
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


def test_a_plain_config_takes_nothing_from_the_guard(tmp_path, state_dict, model):
    folder = write_released_folder(
        tmp_path / "released", state_dict, safety_categories=[f"harm {i}" for i in range(20)]
    )
    plain = AutoConfig.from_pretrained(folder)
    assert type(plain) is Qwen2_5_VLConfig
    loaded = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(folder, config=plain, dtype=torch.float32)
    assert loaded.config.safety_categories == [f"harm {i}" for i in range(20)]
    assert torch.equal(verdict(loaded), verdict(model))
