"""What is trained, in which precision, and what is refused."""

import json

import pytest
import torch
from in_turn import cut_off
from PIL import Image
from small_runs import (
    NAMES,
    arguments,
    assert_same_weights,
    build_trainer,
    weights,
    write_rows,
)
from transformers import AutoProcessor

from safeqwen import DEMO_CHECKPOINT
from safeqwen.data.taxonomy import Taxonomy
from safeqwen.hub.guard_safeqwen import GUARD
from safeqwen.loading import load_base, load_processor
from safeqwen.publishing.record import load_run
from safeqwen.training.run import load_model, train


@pytest.mark.parametrize(
    ("targets", "message"),
    [("nothing_like_this", "matches no layer"), (r".*\.(q_proj|gate_proj)", "matches model.visual.blocks.0.mlp.gate")],
)
def test_lora_on_nothing_or_on_the_vision_tower_is_refused(tmp_path, rows, targets, message):
    with pytest.raises(ValueError, match=message):
        build_trainer(rows, tmp_path, lora_targets=targets)


def test_lora_is_on_all_attention_and_mlp_layers_of_the_language_model_and_the_guard_is_trained_whole(tmp_path, rows):
    model = build_trainer(rows, tmp_path, lora_rank=5, lora_alpha=7, lora_dropout=0.25).model
    adapted = [name.removeprefix("base_model.model.") for name, m in model.named_modules() if hasattr(m, "lora_A")]
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
    layers = model.config.text_config.num_hidden_layers
    expected = [f"model.language_model.layers.{i}.self_attn.{kind}" for i in range(layers) for kind in kinds[0]]
    expected += [f"model.language_model.layers.{i}.mlp.{kind}" for i in range(layers) for kind in kinds[1]]
    assert sorted(adapted) == sorted(expected)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if GUARD not in name} == {
        f"base_model.model.{name}.lora_{matrix}.default.weight" for name in expected for matrix in "AB"
    }
    assert len([name for name in trained if GUARD in name]) == 4
    for layer in (module for module in model.modules() if hasattr(module, "lora_A")):
        assert (layer.r["default"], layer.scaling["default"], layer.lora_dropout["default"].p) == (5, 7 / 5, 0.25)


def test_pixel_limits_hold_for_a_processor_that_names_them_in_the_older_way(tmp_path, rows):
    """As the released processor's files do."""
    processor = AutoProcessor.from_pretrained(DEMO_CHECKPOINT)
    processor.save_pretrained(tmp_path / "old")
    file = tmp_path / "old" / "preprocessor_config.json"
    (tmp_path / "old" / "processor_config.json").unlink(missing_ok=True)
    (tmp_path / "old" / "video_preprocessor_config.json").unlink(missing_ok=True)
    old = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2}
    file.write_text(json.dumps({**old, "min_pixels": 3136, "max_pixels": 12845056, "temporal_patch_size": 2}))
    loaded = load_processor(tmp_path / "old", max_pixels=60000)
    picture = Image.new("RGB", (900, 900))
    (grid,) = loaded.image_processor(images=[picture], return_tensors="pt")["image_grid_thw"]
    assert 40000 < int(grid.prod()) * 14 * 14 <= 60000


def test_weights_that_are_trained_are_float32_whatever_the_others_are(tmp_path, rows):
    settings = {"dtype": "bfloat16", "bf16": True, "max_steps": 2, "eval_data": [str(rows["eval"])]}
    train(arguments(rows, tmp_path / "run", bf16_full_eval=True, **settings))
    dtypes = {name: tensor.dtype for name, tensor in weights(tmp_path / "run").items() if "digest" not in name}
    assert {*dtypes.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({}, torch.float32),
        ({"bf16": True}, torch.bfloat16),
        ({"fp16": True}, torch.float16),
        ({"fp16": True, "dtype": "bfloat16"}, torch.bfloat16),
        ({"bf16": True, "tuning": "full"}, torch.float32),
    ],
)
def test_frozen_weights_have_the_precision_that_was_asked_for(tmp_path, rows, settings, dtype):
    args = arguments(rows, tmp_path, guard_dropout=0.25, attn_implementation="eager", **settings)
    model = load_model(args, DEMO_CHECKPOINT, Taxonomy(NAMES), {})
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model.config._attn_implementation == "eager"
    assert [module.p for module in model.img_safety_head.modules() if isinstance(module, torch.nn.Dropout)] == [0.25]


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, rows):
    trainer = build_trainer(rows, tmp_path)
    layer = trainer.model.get_base_model().model.language_model.layers[1].mlp.down_proj
    layer.base_layer.weight.data[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="the loss is (nan|inf) at step 1.*bf16"):
        trainer.train()


def test_a_seed_fixes_the_run_and_another_changes_it(tmp_path, rows):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(arguments(rows, tmp_path / name, seed=seed, balanced_sampling=True))
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "a", tmp_path / "c")


def test_a_guard_that_no_step_has_moved_yet_is_not_evaluated(tmp_path, rows):
    settings = {"categories": NAMES, "eval_data": [str(rows["eval"])], "eval_strategy": "epoch"}
    with pytest.raises(ValueError, match="not been trained yet.*leave eval_on_start out"):
        train(arguments(rows, tmp_path / "run", eval_on_start=True, **settings))


def test_a_long_prompt_that_is_labelled_does_not_stop_the_run_at_a_blank_row(tmp_path, rows):
    data = write_rows(tmp_path / "long", 5, 0)
    train(arguments({"data": data}, tmp_path / "run", max_length=93, on_bad_row="skip"))


def test_a_base_that_has_changed_since_is_not_merged_into(tmp_path, rows):
    load_base(DEMO_CHECKPOINT, dtype=torch.float32).save_pretrained(tmp_path / "base")
    settings = {"model": str(tmp_path / "base"), "processor": "demo", "max_steps": 1}
    train(arguments(rows, tmp_path / "run", **settings))
    load_run(tmp_path / "run")
    other = load_base(DEMO_CHECKPOINT, dtype=torch.float32)
    other.model.language_model.norm.weight.data += 0.1
    other.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="no longer those that the training started from"):
        load_run(tmp_path / "run")
    cut_off(tmp_path / "run", 1, tmp_path / "killed")
    with pytest.raises(ValueError, match="another run, which differs in base_sha256"):
        train(arguments(rows, tmp_path / "killed", resume=True, **settings))


def test_frozen_parameters_stay_and_all_others_are_trained(tmp_path, rows):
    before = load_base(DEMO_CHECKPOINT, dtype=torch.float32)
    train(arguments(rows, tmp_path / "run", tuning="full", frozen=r"visual\.", max_steps=2))
    after = load_base(tmp_path / "run" / "final", dtype=torch.float32)
    for name, parameter in after.named_parameters():
        assert torch.equal(parameter, before.get_parameter(name)) == name.startswith("model.visual."), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frozen": "visual"}, "goes with tuning: full"),
        ({"tuning": "full", "frozen": "vison"}, "matches no parameter"),
    ],
)
def test_freezing_nothing_is_refused(tmp_path, rows, settings, message):
    with pytest.raises(ValueError, match=message):
        train(arguments(rows, tmp_path / "run", **settings))
    assert not (tmp_path / "run" / "run.json").exists()


def test_categories_without_a_row_are_named(tmp_path, rows, capsys):
    lines = [json.loads(line) for line in rows["data"].read_text().splitlines()]
    for row in lines:
        row["images"] = [str(rows["data"].parent / image) for image in row["images"]]
        if row.get("safety_label") == "suicide":
            del row["safety_label"]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in lines if "safety_label" in row or row["messages"][1:]))
    train(arguments({"data": data}, tmp_path / "run", categories=[*NAMES, "our_logo"], max_steps=1))
    told = capsys.readouterr().err
    assert "warning: no row has one of these categories, so they are not learnt: suicide, our_logo\n" in told
    assert "the guard starts anew: it learns 5 categories\n" in told
    pair = {**lines[0], "images": lines[0]["images"] * 2, "picture_categories": ["suicide", "our_logo"]}
    del pair["safety_label"]
    with data.open("a") as file:
        file.write(json.dumps(pair) + "\n")
    train(arguments({"data": data}, tmp_path / "all", categories=[*NAMES, "our_logo"], max_steps=1))
    assert "warning: no row" not in capsys.readouterr().err


def test_training_on_one_class_alone_is_refused_unless_there_are_answers_to_learn(tmp_path, capsys):
    data = {"data": write_rows(tmp_path / "one", 4, 0, safety_label="suicide")}
    settings = {"categories": ["safe", "suicide", "other"], "max_steps": 1}
    with pytest.raises(ValueError, match=r"all labels are 'suicide'.*add rows of other categories \(safe, other\)"):
        train(arguments(data, tmp_path / "run", tuning="guard_only", **settings))
    train(arguments(data, tmp_path / "answers", **settings))
    assert "warning: all labels are 'suicide'" in capsys.readouterr().err

    lines = [json.loads(line) for line in data["data"].read_text().splitlines()]
    for row in lines:
        del row["messages"][1:]
    data["data"].write_text("".join(json.dumps(row) + "\n" for row in lines))
    with pytest.raises(ValueError, match="all labels are 'suicide'"):
        train(arguments(data, tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()
