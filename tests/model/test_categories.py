"""The guard carries a digest of the names its columns were trained for, and does not judge under others."""

import copy
import json
import pickle

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tiny import (
    DIGEST,
    INPUTS,
    ROUTES,
    assert_refuses,
    build_guarded,
    digest_of,
    edit_config,
    for_stock,
    load_plainly,
    nested_config,
    verdict,
    write_released_folder,
)

from safeqwen import SafeQwen2_5_VLConfig
from safeqwen.hub.configuration_safeqwen import HOLISAFE_CATEGORIES


OTHER = ["safe", *(f"kind {i}" for i in range(19))]
PERMUTED = [*HOLISAFE_CATEGORIES[1:], HOLISAFE_CATEGORIES[0]]
REFUSAL = "guard .* trained for other categories, or in another order"
UNTRAINED = "guard .* never trained"
LABELS = torch.tensor([3, 7])


def digest(model):
    return model.state_dict()[DIGEST].tolist()


def train(model, steps=1, **losses):
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=1e-3)
    for _ in range(steps):
        model(**INPUTS, **(losses or {"safety_labels": LABELS})).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture
def released(tmp_path, state_dict):
    return write_released_folder(tmp_path / "released", state_dict)


@pytest.fixture
def untrained(tmp_path, stock):
    stock.save_pretrained(tmp_path / "plain")
    return load_plainly(tmp_path / "plain")


# -------------------------------------------------------------------------------------------- the digest travels along


def test_saving_seals_a_guard_that_was_never_judged_since_it_was_made(tmp_path, model):
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")[DIGEST].tolist() == digest_of(HOLISAFE_CATEGORIES)


def test_saving_does_not_seal_an_untrained_guard(tmp_path, untrained):
    untrained.save_pretrained(tmp_path / "saved")
    assert not load_file(tmp_path / "saved" / "model.safetensors")[DIGEST].any()


def test_training_seals_the_guard(untrained):
    names = digest_of(HOLISAFE_CATEGORIES)
    assert digest(untrained) == [0] * 32
    assert digest(train(untrained)) == names


def saved(model, folder, **kwargs):
    model.save_pretrained(folder, **kwargs)
    return load_plainly(folder)


def by_accelerate(model, folder):
    Accelerator(cpu=True).save_model(model, folder)
    model.config.save_pretrained(folder)
    return load_plainly(folder)


def by_state_dict(model, folder):
    model.config.save_pretrained(folder)
    save_file(dict(model.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})
    return load_plainly(folder)


JOURNEYS = {
    "half and float": lambda model, folder: model.half().float(),
    "to bfloat16": lambda model, folder: model.to(torch.bfloat16),
    "deepcopy": lambda model, folder: copy.deepcopy(model),
    "pickle": lambda model, folder: pickle.loads(pickle.dumps(model)),
    "saved": saved,
    "saved in shards": lambda model, folder: saved(model, folder, max_shard_size="50KB"),
    "loaded as float16": lambda model, folder: load_plainly(saved(model, folder).name_or_path, dtype=torch.float16),
    "device_map": lambda model, folder: load_plainly(saved(model, folder).name_or_path, device_map="auto"),
    "accelerate's save_model": by_accelerate,
    "save_file(state_dict)": by_state_dict,
}


@pytest.mark.parametrize("journey", JOURNEYS)
def test_the_digest_survives(tmp_path, released, journey):
    arrived = JOURNEYS[journey](load_plainly(released), tmp_path)
    assert arrived.state_dict()[DIGEST].dtype == torch.uint8
    assert digest(arrived) == digest_of(HOLISAFE_CATEGORIES)
    assert arrived.refusal() is None
    arrived.config.safety_categories = PERMUTED
    assert "other categories" in arrived.refusal()


# ----------------------------------------------------------------------------------------------- names that contradict


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("names", [PERMUTED, OTHER], ids=["permuted", "other"])
def test_other_names_in_the_config_of_a_folder_with_a_digest_do_not_judge(tmp_path, released, route, names):
    load_plainly(released).save_pretrained(tmp_path / "saved")
    edit_config(tmp_path / "saved", safety_categories=names)
    assert_refuses(ROUTES[route](tmp_path / "saved", dtype=torch.float32), REFUSAL)


def test_names_that_are_only_written_differently_are_other_names(tmp_path, released):
    """The digest takes where a name ends for what it is."""
    load_plainly(released).save_pretrained(tmp_path / "saved")
    joined = ["safe gender_discrimination", "x", *HOLISAFE_CATEGORIES[2:]]
    edit_config(tmp_path / "saved", safety_categories=joined)
    assert_refuses(load_plainly(tmp_path / "saved"), REFUSAL)


def test_other_names_that_are_given_when_loading_released_weights_do_not_judge(tmp_path, state_dict, released):
    for loaded in (
        ROUTES["AutoModel"](released, safety_categories=PERMUTED, dtype=torch.float32),
        load_plainly(released, safety_categories=OTHER),
        load_plainly(released, config=nested_config(safety_categories=OTHER)),
        load_plainly(released, config=SafeQwen2_5_VLConfig.from_pretrained(released, safety_categories=OTHER)),
    ):
        assert_refuses(loaded, REFUSAL)
    own = write_released_folder(tmp_path / "own", state_dict, safety_categories=OTHER)
    assert_refuses(load_plainly(own, config=nested_config()), REFUSAL)
    assert verdict(load_plainly(own)).isfinite().all()


def test_what_does_not_judge_does_not_judge_after_it_was_saved(tmp_path, released):
    load_plainly(released, safety_categories=OTHER).save_pretrained(tmp_path / "saved")
    assert_refuses(load_plainly(tmp_path / "saved"), REFUSAL)
    saved_digest = load_file(tmp_path / "saved" / "model.safetensors")[DIGEST].tolist()
    assert saved_digest == digest_of(HOLISAFE_CATEGORIES)


def test_names_that_are_changed_on_a_model_do_not_judge(released):
    model = load_plainly(released)
    model.config.safety_categories = list(OTHER)
    assert_refuses(model, REFUSAL)
    model.config.safety_categories = list(HOLISAFE_CATEGORIES)
    assert verdict(model).isfinite().all()


@pytest.mark.parametrize("names", [["safe", "harm"], [*HOLISAFE_CATEGORIES, "other"]])
def test_more_or_fewer_categories_than_columns_are_refused(tmp_path, released, names):
    edit_config(released, safety_categories=names, num_safety_categories=len(names))
    with pytest.raises(RuntimeError):
        load_plainly(released)
    loaded = load_plainly(released, ignore_mismatched_sizes=True)
    assert_refuses_without_threshold(loaded, UNTRAINED)


def assert_refuses_without_threshold(model, message):
    for call in (lambda: model(**INPUTS, do_safety=True), lambda: model.guard(**INPUTS)):
        with pytest.raises(RuntimeError, match=message):
            call()


# ------------------------------------------------------------------------------------------------ training other names


def test_a_guard_of_other_names_is_not_trained_on(released):
    model = load_plainly(released, safety_categories=OTHER)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        ValueError, match="cannot go on training: .* other categories, .* ignore_mismatched_sizes=True"
    ):
        train(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_with_ignore_mismatched_sizes_a_guard_of_as_many_other_names_starts_anew(tmp_path, released, stock):
    torch.manual_seed(0)
    model = load_plainly(released, safety_categories=OTHER, ignore_mismatched_sizes=True)
    assert_refuses(model, UNTRAINED)
    assert digest(model) == [0] * 32
    assert torch.equal(model(**INPUTS).logits, stock(**for_stock(INPUTS)).logits)
    train(model, steps=30)
    assert verdict(model).argmax(-1).tolist() == [3, 7]
    model.save_pretrained(tmp_path / "trained")
    again = load_plainly(tmp_path / "trained")
    assert again.config.safety_categories == OTHER and digest(again) == digest_of(OTHER)
    assert torch.equal(verdict(again), verdict(model))


def test_with_ignore_mismatched_sizes_a_guard_of_these_names_is_kept(released, model):
    loaded = load_plainly(released, ignore_mismatched_sizes=True)
    assert torch.equal(verdict(loaded), verdict(model))


@pytest.mark.parametrize("way", ["safety_categories", "config"])
def test_another_number_of_categories_renews_the_guard_alone_and_does_not_judge(released, stock, way):
    names = ["safe", "cat", "dog"]
    options = {"safety_categories": names}
    if way == "config":
        options = {"config": SafeQwen2_5_VLConfig.from_pretrained(released, safety_categories=names)}
    for route in ROUTES if way == "safety_categories" else ["class"]:
        loaded = ROUTES[route](released, **options, ignore_mismatched_sizes=True, dtype=torch.float32)
        assert loaded.config.num_safety_categories == 3
        assert not any("safety" in name for name in vars(loaded.generation_config))
        assert loaded.img_safety_head.mlp[-1].weight.shape == (3, 32)
        assert_refuses(loaded, UNTRAINED)
        assert torch.equal(loaded(**INPUTS).logits, stock(**for_stock(INPUTS)).logits)


# ------------------------------------------------------------------------------------- renaming, and declaring trained


def test_renamed_categories_keep_their_columns_and_their_verdicts(tmp_path, released):
    model = load_plainly(released)
    expected = verdict(model)
    model.mark_trained(OTHER)
    assert model.config.safety_categories == OTHER and model.config.id2label == dict(enumerate(OTHER))
    assert torch.equal(verdict(model), expected)
    model.save_pretrained(tmp_path / "saved")
    again = ROUTES["AutoModel"](tmp_path / "saved", dtype=torch.float32)
    assert again.config.safety_categories == OTHER and digest(again) == digest_of(OTHER)
    assert torch.equal(verdict(again), expected)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["safe", "harm"], "num_safety_categories is 20, but safety_categories are 2"),
        ([*OTHER[:-1], "safe"], "none twice"),
        ([*OTHER[:-1], " "], "none empty"),
    ],
)
def test_names_that_make_no_sense_are_not_taken(released, names, message):
    model = load_plainly(released)
    with pytest.raises(ValueError, match=message):
        model.mark_trained(names)
    assert model.config.safety_categories == list(HOLISAFE_CATEGORIES) and model.refusal() is None


@pytest.fixture
def declared(tmp_path, state_dict):
    """A guard that was trained, but for its last bias: as after LoRA on its layers."""
    model = build_guarded({**state_dict, "img_safety_head.mlp.3.bias": torch.zeros(20)})
    assert_refuses(model, UNTRAINED)
    model.mark_trained()
    return model


def test_a_guard_that_is_declared_trained_judges_wherever_it_goes(tmp_path, declared):
    expected = verdict(declared)
    assert digest(declared) == digest_of(HOLISAFE_CATEGORIES)
    for journey in JOURNEYS:
        if journey != "half and float" and journey != "to bfloat16":
            folder = tmp_path / journey.replace("/", "")
            folder.mkdir()
            arrived = JOURNEYS[journey](declared, folder)
            assert torch.allclose(verdict(arrived), expected, atol=0.01), journey


def test_a_guard_that_is_declared_trained_is_not_so_for_other_names(tmp_path, declared):
    declared.save_pretrained(tmp_path)
    edit_config(tmp_path, safety_categories=OTHER)
    loaded = load_plainly(tmp_path)
    assert_refuses(loaded, "guard")
    with pytest.raises(ValueError, match="cannot go on training"):
        train(loaded)


def test_a_guard_that_is_declared_trained_can_be_renamed(declared):
    expected = verdict(declared)
    declared.mark_trained(OTHER)
    assert torch.equal(verdict(declared), expected)


def test_training_a_guard_that_was_declared_trained_goes_on(declared):
    assert verdict(train(declared)).isfinite().all()
    assert declared.img_safety_head.mlp[-1].bias.any()


def test_a_saved_config_says_what_the_digest_is_of(tmp_path, released):
    load_plainly(released).save_pretrained(tmp_path / "saved")
    names = json.loads((tmp_path / "saved" / "config.json").read_text())["safety_categories"]
    assert load_file(tmp_path / "saved" / "model.safetensors")[DIGEST].tolist() == digest_of(names)
