"""Whether weights may judge is read from the tensors: no route of saving, loading or copying can hide or lose it."""

import copy
import json
import shutil

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tiny import (
    CODE_FILES,
    DIGEST,
    INPUTS,
    ROOT,
    ROUTES,
    TEXT_CONFIG,
    VISION_CONFIG,
    assert_refuses,
    assert_same_tensors,
    build_guarded,
    edit_config,
    load_plainly,
    nested_config,
    released_tensors,
    rewrite,
    verdict,
    write_released_folder,
)

from safeqwen import SafeQwen2_5_VLForConditionalGeneration


UNTRAINED = "guard .* never trained: load SafeQwen weights, or train it with safety_labels"


def save_pretrained(model, folder):
    model.save_pretrained(folder)


def save_config(model, folder):
    folder.mkdir(exist_ok=True)
    model.config.save_pretrained(folder)
    for name in CODE_FILES:  # a config of transformers 4.x brings its own file alone
        shutil.copy(ROOT / name, folder)


def save_state_dict(model, folder):
    save_config(model, folder)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def save_released_names(model, folder):
    save_config(model, folder)
    save_file(released_tensors(model.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})


def accelerates_save_model(model, folder):
    Accelerator(cpu=True).save_model(model, folder)
    save_config(model, folder)


SAVES = {
    "save_pretrained": save_pretrained,
    "in shards": lambda model, folder: model.save_pretrained(folder, max_shard_size="100KB"),
    "save_file(state_dict)": save_state_dict,
    "save_file, released names": save_released_names,
    "accelerate's save_model": accelerates_save_model,
}


@pytest.fixture
def untrained(tmp_path, stock):
    """A model whose backbone was loaded and whose guard is random."""
    stock.save_pretrained(tmp_path / "plain")
    return load_plainly(tmp_path / "plain")


# ------------------------------------------------------------------------------------------------ never trained guards


def test_a_model_built_from_a_config_does_not_judge():
    assert_refuses(SafeQwen2_5_VLForConditionalGeneration(nested_config()).eval(), UNTRAINED)


@pytest.mark.parametrize("route", ROUTES)
def test_a_folder_without_a_guard_does_not_judge(tmp_path, state_dict, route):
    folder = rewrite(write_released_folder(tmp_path, state_dict), drop=["img_safety_head"])
    assert_refuses(ROUTES[route](folder, dtype=torch.float32), UNTRAINED)


def test_plain_qwen_weights_do_not_judge(untrained):
    assert_refuses(untrained, UNTRAINED)
    assert "never trained" in untrained.refusal()


@pytest.mark.parametrize("save", SAVES)
def test_a_guard_that_was_never_trained_does_not_judge_by_whatever_route_it_was_saved(tmp_path, untrained, save):
    SAVES[save](untrained, tmp_path / "saved")
    again = ROUTES["AutoModel"](tmp_path / "saved", dtype=torch.float32)
    assert_same_tensors(again, untrained.state_dict())  # nothing is lost
    assert_refuses(again, UNTRAINED)


@pytest.mark.parametrize("save", SAVES)
def test_a_guard_that_was_trained_judges_by_whatever_route_it_was_saved(tmp_path, model, save):
    SAVES[save](model, tmp_path / "saved")
    assert torch.equal(verdict(ROUTES["AutoModel"](tmp_path / "saved", dtype=torch.float32)), verdict(model))


def test_the_config_of_another_folder_makes_no_guard(tmp_path, state_dict, untrained):
    trained = load_plainly(write_released_folder(tmp_path / "trained", state_dict))
    trained.save_pretrained(tmp_path / "saved")
    untrained.save_pretrained(tmp_path / "untrained")
    for config in (trained.config, type(trained.config).from_pretrained(tmp_path / "saved")):
        assert_refuses(load_plainly(tmp_path / "untrained", config=config), UNTRAINED)
        assert_refuses(load_plainly(tmp_path / "plain", config=config), UNTRAINED)


def test_a_guard_of_zeros_does_not_judge(tmp_path, state_dict):
    folder = write_released_folder(tmp_path, state_dict)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state_dict.items() if ".mlp." in name}
    zeros = {name: tensor for name, tensor in zeros.items() if name.startswith("img_safety_head")}
    assert len(zeros) == 4
    assert_refuses(load_plainly(rewrite(folder, **zeros)), UNTRAINED)


def test_a_new_guard_starts_with_a_bias_and_a_digest_of_zeros(tmp_path, state_dict, untrained):
    folder = write_released_folder(tmp_path / "released", state_dict)
    for model in (
        SafeQwen2_5_VLForConditionalGeneration(nested_config()),
        untrained,
        load_plainly(folder, safety_categories=["safe", "cat"], ignore_mismatched_sizes=True),
    ):
        assert not model.img_safety_head.mlp[-1].bias.any()
        assert not model.state_dict()[DIGEST].any()


def test_a_state_dict_of_a_guard_that_was_never_trained_does_not_judge(state_dict):
    guard = SafeQwen2_5_VLForConditionalGeneration(nested_config()).img_safety_head.state_dict()
    model = build_guarded(state_dict)
    assert verdict(model).isfinite().all()
    model.load_state_dict({**state_dict, **{f"img_safety_head.{name}": tensor for name, tensor in guard.items()}})
    assert_refuses(model, UNTRAINED)


def test_a_state_dict_that_does_not_fit_lifts_nothing(state_dict):
    model = SafeQwen2_5_VLForConditionalGeneration(nested_config(safety_categories=["a", "b"])).eval()
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(state_dict)
    assert model.refusal() is not None


# ---------------------------------------------------------------------------------------------- a whole model or none


@pytest.mark.parametrize("part", ["img_safety_head.mlp.3.bias", "img_safety_head.mlp.0.weight"])
@pytest.mark.parametrize("route", ROUTES)
def test_a_folder_without_a_part_of_the_guard_is_refused(tmp_path, state_dict, part, route):
    folder = rewrite(write_released_folder(tmp_path, state_dict), drop=[part])
    with pytest.raises(RuntimeError, match=f"1 tensors are missing, e.g. {part}"):
        ROUTES[route](folder)


@pytest.mark.parametrize(
    "part", ["visual.blocks.1.attn.qkv.weight", "model.layers.0.mlp.up_proj", "model.norm", "lm_head", "embed_tokens"]
)
def test_a_folder_without_a_backbone_tensor_is_refused(tmp_path, state_dict, part):
    folder = rewrite(write_released_folder(tmp_path, state_dict), drop=[part])
    with pytest.raises(RuntimeError, match="1 tensors are missing"):
        ROUTES["AutoModelForImageTextToText"](folder, dtype=torch.float32)


def test_a_guard_deeper_than_the_config_is_refused(tmp_path, state_dict):
    extra = {"img_safety_head.mlp.6.weight": torch.zeros(20, 20), "img_safety_head.mlp.6.bias": torch.zeros(20)}
    folder = rewrite(write_released_folder(tmp_path, state_dict), **extra)
    with pytest.raises(RuntimeError, match="2 tensors are left over"):
        load_plainly(folder)


@pytest.mark.parametrize("layout", ["released", "saved"])
@pytest.mark.parametrize(
    ("tower", "number", "message"),
    [
        ("language", 1, "left over: the config names fewer"),
        ("language", 3, "are missing"),
        ("vision", 1, "left over: the config names fewer"),
        ("vision", 3, "are missing"),
    ],
)
def test_a_config_that_names_fewer_or_more_blocks_is_refused(
    tmp_path, state_dict, model, tower, number, message, layout
):
    folder = tmp_path / "folder"
    write_released_folder(folder, state_dict) if layout == "released" else model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    if tower == "vision":
        edit_config(folder, vision_config={**config["vision_config"], "depth": number})
    elif layout == "released":
        edit_config(folder, num_hidden_layers=number)
    else:
        text = {**config["text_config"], "num_hidden_layers": number}
        text.pop("layer_types", None)
        edit_config(folder, text_config=text)
    for route in ("class", "AutoModel"):
        with pytest.raises(RuntimeError, match=message):
            ROUTES[route](folder, dtype=torch.float32)


def test_blocks_that_are_overridden_when_loading_are_refused_too(tmp_path, state_dict):
    folder = write_released_folder(tmp_path, state_dict)
    for config in (
        nested_config(text_config={**TEXT_CONFIG, "num_hidden_layers": 1}),
        nested_config(vision_config={**VISION_CONFIG, "depth": 1, "fullatt_block_indexes": [0]}),
    ):
        with pytest.raises(RuntimeError, match="left over"):
            load_plainly(folder, config=config)


def test_a_config_of_other_widths_is_refused(tmp_path, state_dict):
    folder = write_released_folder(tmp_path, state_dict, intermediate_size=80)
    for options in ({}, {"ignore_mismatched_sizes": True}):
        with pytest.raises(RuntimeError):
            load_plainly(folder, **options)


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "visual.merger.ln_q.weight", "model.layers.1.mlp.up_proj.weight"]
)
@pytest.mark.parametrize("num_shards", [1, 2])
def test_one_tensor_under_its_old_and_its_new_name_is_refused(tmp_path, state_dict, name, num_shards):
    folder = write_released_folder(tmp_path, state_dict, num_shards=num_shards)
    new = {"model": f"model.language_{name}", "visual": f"model.{name}"}[name.split(".")[0]]
    assert new in state_dict
    other = torch.zeros_like(state_dict[new])
    if num_shards == 1:
        rewrite(folder, **{new: other})
    else:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        shard = next(file for file in sorted(set(index["weight_map"].values())) if file != index["weight_map"][name])
        save_file({**load_file(folder / shard), new: other}, folder / shard, metadata={"format": "pt"})
        index["weight_map"][new] = shard
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RuntimeError, match="1 tensors come twice"):
        load_plainly(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize(
    "name",
    ["visual.blocks.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", "img_safety_head.mlp.0.weight"],
)
def test_integers_where_weights_belong_are_refused(tmp_path, state_dict, name, dtype):
    folder = write_released_folder(tmp_path, state_dict)
    tensor = load_file(folder / "model.safetensors")[name]
    rewrite(folder, **{name: (tensor * 10).to(dtype)})
    with pytest.raises(RuntimeError, match="1 tensors hold integers"):
        load_plainly(folder)


# ---------------------------------------------------------------------------------------- two saves in one folder


@pytest.mark.parametrize(
    ("first", "second"), [("5GB", "100KB"), ("100KB", "5GB"), ("100KB", "200KB"), ("5GB", "5GB"), ("200KB", "100KB")]
)
def test_the_later_save_into_a_folder_wins(tmp_path, state_dict, model, first, second):
    other = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state_dict.items()}
    build_guarded(other).save_pretrained(tmp_path, max_shard_size=first)
    model.save_pretrained(tmp_path, max_shard_size=second)
    for route in ("class", "AutoModel"):
        loaded = ROUTES[route](tmp_path, dtype=torch.float32)
        assert_same_tensors(loaded, state_dict)
        assert torch.equal(verdict(loaded), verdict(model))
    whole, index = ((tmp_path / name).exists() for name in ("model.safetensors", "model.safetensors.index.json"))
    assert whole != index and whole == (second == "5GB")


def test_saving_leaves_other_files_of_the_folder_alone(tmp_path, model):
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"kept")
    (tmp_path / "notes.md").write_text("kept")
    model.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "notes.md").exists() and (tmp_path / "adapter_model.safetensors").read_bytes() == b"kept"
    assert (tmp_path / "model.safetensors.index.json").exists()  # not the variant's


# ------------------------------------------------------------------------------------------------------- casts, copies

CASTS = {
    "half and float": lambda model: model.half().float(),
    "double and float": lambda model: model.to(torch.float64).to(torch.float32),
    "deepcopy": copy.deepcopy,
    "resized embeddings": lambda model: (model.resize_token_embeddings(140), model)[1],
}


@pytest.mark.parametrize("way", CASTS)
def test_a_backward_pass_without_a_step_does_not_make_a_guard_and_a_step_does(untrained, way):
    optimizer = torch.optim.AdamW(untrained.train().parameters(), lr=1e-3)
    untrained(**INPUTS, safety_labels=torch.tensor([1, 2])).loss.backward()
    before_the_step = CASTS[way](copy.deepcopy(untrained)).eval()
    assert_refuses(before_the_step, UNTRAINED)
    optimizer.step()
    assert verdict(CASTS[way](untrained).eval()).isfinite().all()
