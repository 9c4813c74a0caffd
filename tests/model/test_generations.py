"""transformers 4.57 and 5.x give one verdict and one answer, and load what the other saved bit for bit.

`make test` runs the suite under each and names the other's interpreter in SAFEQWEN_OTHER_PYTHON.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from judge_folder import inputs_from_picture, judge_and_answer
from safetensors.torch import load_file, save_file
from tiny import (
    DIGEST,
    IMAGE,
    ROOT,
    TEXT_CONFIG,
    VERSION_4,
    VIDEO,
    Pic,
    assert_same_tensors,
    batch,
    build_guarded,
    digest_of,
    load_plainly,
    write_released_folder,
)
from torch.testing import assert_close
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from safeqwen import DEMO_CHECKPOINT, SafeQwen2_5_VLConfig, SafeQwen2_5_VLForConditionalGeneration
from safeqwen.hub.configuration_safeqwen import ARCHITECTURE, HOLISAFE_CATEGORIES
from tools.demo.pictograms import draw


# The videos stand last: stock 4.57 and 5.x number the tokens after a clip differently.
INPUTS = batch([5, Pic(4, 6, seed=1), 7, Pic(8, 4, seed=3)], [Pic(4, 4, seed=2), 9], [3, Pic(4, 4, seed=4, frames=2)])
STILLS = slice(0, 2)


@pytest.fixture(scope="module")
def other_python():
    other = os.environ.get("SAFEQWEN_OTHER_PYTHON")
    if other is None:
        pytest.skip("needs a second generation of transformers: run `make test`")
    return str(ROOT / other)


def on_the_other_generation(other_python, folder, inputs, tmp_path):
    if isinstance(inputs, dict):
        save_file(inputs, tmp_path / "inputs.safetensors")
        inputs = tmp_path / "inputs.safetensors"
    script = Path(__file__).with_name("judge_folder.py")
    command = [other_python, script, folder, inputs, tmp_path / "outputs.safetensors", tmp_path / "saved_by_the_other"]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = load_file(tmp_path / "outputs.safetensors")
    assert results.pop("version") == (5 if VERSION_4 else 4)
    return results


def types_of(input_ids):
    return (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()


@pytest.mark.parametrize("layout", ["released", "saved", "saved, tied"])
@pytest.mark.parametrize("token_types", ["without token types", "with token types"])
def test_both_generations_agree(tmp_path, other_python, state_dict, model, layout, token_types):
    folder = tmp_path / "folder"
    if layout == "released":
        write_released_folder(folder, state_dict)
    else:
        if layout == "saved, tied":
            tied = {"tie_word_embeddings": True}
            state_dict = {**state_dict, "lm_head.weight": state_dict["model.language_model.embed_tokens.weight"]}
            # 5.x ties by the flag at the top, 4.57 by the one of the text tower
            model = build_guarded(state_dict, text_config={**TEXT_CONFIG, **(tied if VERSION_4 else {})}, **tied)
        model.save_pretrained(folder)
    inputs = dict(INPUTS)
    if token_types == "with token types":
        inputs["mm_token_type_ids"] = types_of(inputs["input_ids"])
    loaded, here = judge_and_answer(folder, inputs)
    there = on_the_other_generation(other_python, folder, inputs, tmp_path)
    assert_close(here["probs"], model(**inputs, do_safety=True).img_safety_probs)
    for field in ("probs", "guard"):
        assert_close(there[field], here[field], atol=1e-5, rtol=0)
    assert torch.equal(there["tokens"][STILLS], here["tokens"][STILLS])
    visible = inputs["attention_mask"][STILLS].bool()
    assert_close(there["logits"][STILLS][visible], here["logits"][STILLS][visible], atol=1e-4, rtol=1e-4)
    for name in set(state_dict) - {DIGEST}:
        assert torch.equal(there[f"tensor {name}"], state_dict[name]), name
    assert there[f"tensor {DIGEST}"].tolist() == digest_of(HOLISAFE_CATEGORIES)

    # and back: what the other generation saved
    again = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "saved_by_the_other", dtype="auto")
    assert_same_tensors(again, state_dict)
    assert again.state_dict()[DIGEST].tolist() == digest_of(HOLISAFE_CATEGORIES)
    assert torch.equal(again.guard(**inputs).img_safety_probs, model.guard(**inputs).img_safety_probs)
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "saved_by_the_other", dtype="auto")
    types = {} if VERSION_4 else {"mm_token_type_ids": types_of(inputs["input_ids"])}
    assert torch.equal(plain(**{**inputs, **types}).logits, model(**inputs).logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["released", "saved", "cast and saved"])
def test_both_generations_find_one_dtype_and_the_architecture_in_what_the_other_saved(
    tmp_path, other_python, state_dict, model, layout, dtype
):
    folder = tmp_path / "folder"
    if layout == "cast and saved":
        model.to(dtype).save_pretrained(folder)
    else:
        write_released_folder(folder, state_dict, dtype)
        if layout == "saved":
            load_plainly(folder, dtype="auto").save_pretrained(tmp_path / "again")
            folder = tmp_path / "again"
    there = on_the_other_generation(other_python, folder, dict(INPUTS), tmp_path)
    back = tmp_path / "saved_by_the_other"
    here = {f"tensor {name}": tensor for name, tensor in load_plainly(back, dtype="auto").state_dict().items()}
    for tensors in (there, here):
        dtypes = {name: tensors[f"tensor {name}"].dtype for name in state_dict if name != DIGEST}
        assert set(dtypes.values()) == {dtype}, dtypes
    assert json.loads(bytes(there["architectures"].tolist())) == [ARCHITECTURE]
    for config_class in (SafeQwen2_5_VLConfig, Qwen2_5_VLConfig):
        config = config_class.from_pretrained(back)
        assert config.architectures == [ARCHITECTURE]
        assert config.dtype == config.text_config.dtype == config.vision_config.dtype == dtype


def test_both_generations_agree_about_a_picture_file_from_pixels_to_answer(tmp_path, other_python):
    picture = tmp_path / "picture.png"
    draw("suicide", 2_000_000, size=300).save(picture)
    _, here = judge_and_answer(DEMO_CHECKPOINT, inputs_from_picture(DEMO_CHECKPOINT, picture))
    there = on_the_other_generation(other_python, DEMO_CHECKPOINT, picture, tmp_path)
    assert torch.equal(there["input_ids"], here["input_ids"])
    assert_close(there["pixel_values"], here["pixel_values"], atol=1e-6, rtol=0)
    assert_close(there["probs"], here["probs"], atol=1e-5, rtol=0)
    assert torch.equal(there["tokens"], here["tokens"])
