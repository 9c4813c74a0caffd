"""`AutoModelForImageClassification` on the same folder: pictures in, the guard's logits out, by standard means."""

import json
import shutil

import pytest
import torch
from tiny import (
    CODE_FILES,
    ROOT,
    ROUTES,
    VISION_END,
    VISION_START,
    Pic,
    assert_same_tensors,
    batch,
    digest_of,
    edit_config,
    load_plainly,
    rewrite,
    write_released_folder,
)
from torch.testing import assert_close
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoProcessor, pipeline

from safeqwen import DEMO_CHECKPOINT
from safeqwen.hub.configuration_safeqwen import AUTO_MAP, HOLISAFE_CATEGORIES
from tools.demo.pictograms import draw


CAT, DOG, SUN = Pic(4, 6, seed=1), Pic(4, 4, seed=2), Pic(8, 4, seed=3)
PROMPT = {"before": [5, 6, VISION_START], "after": [VISION_END, 7, 8]}


def view_of(folder, **kwargs):
    return AutoModelForImageClassification.from_pretrained(
        folder, trust_remote_code=True, **{"dtype": torch.float32, **kwargs}
    )


def pixels_of(*pictures):
    return {
        "pixel_values": torch.cat([picture.pixels for picture in pictures]),
        "image_grid_thw": torch.tensor([picture.grid for picture in pictures]),
    }


@pytest.fixture
def folder(tmp_path, state_dict):
    return write_released_folder(tmp_path / "released", state_dict, safety_prompt_ids=PROMPT)


@pytest.mark.parametrize(
    "pictures", [[CAT], [CAT, DOG, Pic(8, 12, seed=3)], [DOG, DOG]], ids=["one", "of other sizes", "alike"]
)
def test_its_logits_are_guards_under_the_configs_prompt(folder, model, pictures):
    output = view_of(folder)(**pixels_of(*pictures))
    expected = torch.cat([model.guard(**batch([5, 6, picture, 7, 8])).img_safety_logits for picture in pictures])
    assert output.logits.dtype == torch.float32
    assert_close(output.logits, expected, atol=1e-5, rtol=1e-5)
    without_prompt = model.guard(**batch([pictures[0]])).img_safety_logits
    assert (output.logits[:1] - without_prompt).abs().max() > 1e-3


def test_it_answers_in_a_tuple_too(folder):
    view = view_of(folder)
    as_tuple = view(**pixels_of(CAT), return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], view(**pixels_of(CAT)).logits)


def test_columns_are_named_by_the_categories(tmp_path, folder):
    view = view_of(folder)
    assert view.config.id2label == dict(enumerate(HOLISAFE_CATEGORIES))
    assert view.config.num_labels == 20
    own = write_released_folder(
        tmp_path / "own",
        rewritten_columns(folder, 2),
        safety_categories=["ok", "not ok"],
        num_safety_categories=2,
        safety_prompt_ids=PROMPT,
    )
    assert view_of(own).config.id2label == {0: "ok", 1: "not ok"}


def rewritten_columns(folder, number):
    tensors = load_plainly(folder).state_dict()
    for part in ("weight", "bias"):
        tensors[f"img_safety_head.mlp.3.{part}"] = tensors[f"img_safety_head.mlp.3.{part}"][:number].clone()
    return tensors


def test_what_it_saves_is_the_whole_model_and_the_view(tmp_path, folder, state_dict):
    view = view_of(folder)
    view.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == ["SafeQwen2_5_VLForConditionalGeneration"]
    assert config["auto_map"] == AUTO_MAP and config["safety_prompt_ids"] == PROMPT
    for route in ROUTES.values():
        loaded = route(tmp_path / "saved", dtype=torch.float32)
        assert type(loaded).__name__ == "SafeQwen2_5_VLForConditionalGeneration"
        assert_same_tensors(loaded, state_dict)
    again = view_of(tmp_path / "saved")
    assert_same_tensors(again, state_dict)
    assert torch.equal(again(**pixels_of(CAT, SUN)).logits, view(**pixels_of(CAT, SUN)).logits)


def test_what_may_not_judge_does_not_judge_as_a_view(tmp_path, folder, state_dict):
    rewrite(folder, drop=["img_safety_head"])
    with pytest.raises(RuntimeError, match="guard .* never trained"):
        view_of(folder)(**pixels_of(CAT))
    names = [*HOLISAFE_CATEGORIES[1:], "safe"]
    write_released_folder(tmp_path / "other", state_dict, safety_prompt_ids=PROMPT)
    load_plainly(tmp_path / "other").save_pretrained(tmp_path / "saved")
    edit_config(tmp_path / "saved", safety_categories=names)
    with pytest.raises(RuntimeError, match="guard .* other categories"):
        view_of(tmp_path / "saved")(**pixels_of(CAT))
    with pytest.raises(RuntimeError, match=r"model.eval\(\)"):
        view_of(tmp_path / "other").train()(**pixels_of(CAT))


def test_grids_without_their_pixels_are_refused(folder):
    with pytest.raises(ValueError, match="pixels hold 24 patches, but image_grid_thw asks for 40"):
        view_of(folder)(pixels_of(CAT)["pixel_values"], pixels_of(CAT, DOG)["image_grid_thw"])


def test_a_prompt_of_another_vocabulary_is_refused(tmp_path, state_dict):
    folder = write_released_folder(tmp_path, state_dict)  # the released prompt's ids, in a vocabulary of 120
    with pytest.raises(ValueError, match="safety_prompt_ids exceed the vocabulary"):
        view_of(folder)(**pixels_of(CAT))


# ------------------------------------------------------------------------------------------------------- with pictures


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo checkpoint as any model folder, its code beside it, and its prompt around a picture without text."""
    folder = tmp_path_factory.mktemp("demo") / "copied"
    shutil.copytree(DEMO_CHECKPOINT, folder)
    for name in CODE_FILES:
        shutil.copy(ROOT / name, folder)
    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=False)
    before, after = (processor.tokenizer(part).input_ids for part in text.split("<|image_pad|>"))
    edit_config(folder, auto_map=AUTO_MAP, safety_prompt_ids={"before": before, "after": after})
    return folder, processor, text


@pytest.fixture(scope="module")
def drawings():
    sizes = (60, 84, 100, 140)
    names = ("weapon_related_violence", "safe", "suicide", "terrorism", "medical_advice", "religion_discrimination")
    return [draw(name, 2_000_000 + i, size=sizes[i % 4]) for i, name in enumerate(names)]


def probabilities_alone(folder, processor, text, pictures):
    """Each picture by itself, through the processor's prompt and `guard`."""
    model = load_plainly(folder)
    inputs = [processor(text=[text], images=[picture], return_tensors="pt") for picture in pictures]
    return torch.cat([model.guard(**one).img_safety_probs for one in inputs])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_image_classification_pipeline_judges_pictures(demo, drawings, batch_size):
    folder, *_ = demo
    classify = pipeline("image-classification", model=str(folder), trust_remote_code=True, dtype=torch.float32)
    results = classify(drawings, batch_size=batch_size, top_k=20)
    expected = probabilities_alone(*demo, drawings)
    for result, probabilities in zip(results, expected, strict=True):
        scores = {entry["label"]: entry["score"] for entry in result}
        assert set(scores) == set(HOLISAFE_CATEGORIES)
        assert_close(torch.tensor([scores[name] for name in HOLISAFE_CATEGORIES]), probabilities, atol=1e-5, rtol=0)
    assert [result[0]["label"] for result in results] == [
        "weapon_related_violence",
        "safe",
        "suicide",
        "terrorism",
        "medical_advice",
        "religion_discrimination",
    ]


def test_the_folders_image_processor_makes_what_the_view_takes(demo, drawings):
    folder, *_ = demo
    inputs = AutoImageProcessor.from_pretrained(folder)(images=drawings, return_tensors="pt")
    assert set(inputs) == {"pixel_values", "image_grid_thw"}
    probabilities = view_of(folder)(**inputs).logits.softmax(-1)
    assert_close(probabilities, probabilities_alone(*demo, drawings), atol=1e-5, rtol=0)


def test_the_order_of_a_batch_moves_no_verdict(demo, drawings):
    folder, *_ = demo
    processor, view = AutoImageProcessor.from_pretrained(folder), view_of(folder)
    together = view(**processor(images=drawings, return_tensors="pt")).logits
    backwards = view(**processor(images=drawings[::-1], return_tensors="pt")).logits
    assert_close(together, backwards.flip(0), atol=1e-4, rtol=1e-4)


def test_the_digest_is_that_of_the_view_too(folder):
    view = view_of(folder)
    assert view.img_safety_head.categories_digest.tolist() == digest_of(HOLISAFE_CATEGORIES)
