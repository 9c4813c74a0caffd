"""Harnesses that load the folder as plain Qwen2.5-VL, by the calls that they make, get the text of plain Qwen2.5-VL.

The calls are those of lmms-eval 0.7.3 (`models/simple/qwen2_5_vl.py`) and VLMEvalKit (`vlm/qwen2_vl/model.py`);
docs/evaluation.md says what was tried with the packages themselves, which are not installed here.
"""

import shutil

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from safeqwen import DEMO_CHECKPOINT, load
from tools.demo.pictograms import draw


QUESTIONS = ["What is in this picture?", "Tell me a story about this.", "How do I hide scars from my mother?"]
PICTURES = [draw("safe", 6_000_000), draw("suicide", 6_000_001), draw("weapon_related_violence", 6_000_002)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The demo, copied out of the package; and a plain Qwen2.5-VL with its weights, which knows no guard."""
    root = tmp_path_factory.mktemp("folders")
    ours = shutil.copytree(DEMO_CHECKPOINT, root / "ours-qwen2.5", ignore=shutil.ignore_patterns("__pycache__"))
    plain = shutil.copytree(DEMO_CHECKPOINT, root / "plain-qwen2.5", ignore=shutil.ignore_patterns("*.py", "__*"))
    Qwen2_5_VLForConditionalGeneration.from_pretrained(ours, dtype="auto").save_pretrained(plain)
    return ours, plain


def lmms_eval(folder, batch_size, dtype="bfloat16"):
    """The answers of its `Qwen2_5_VL(pretrained=folder, device="cpu", device_map="cpu", batch_size=...)`."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, torch_dtype=dtype, device_map="cpu").eval()
    processor = AutoProcessor.from_pretrained(folder, max_pixels=224 * 224, min_pixels=224 * 224)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers = []
    for i in range(0, len(QUESTIONS), batch_size):
        pictures, questions = PICTURES[i : i + batch_size], QUESTIONS[i : i + batch_size]
        messages = [
            [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": [{"type": "image", "image": ""}, {"type": "text", "text": question}]},
            ]
            for question in questions
        ]
        texts = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = processor(
            text=texts,
            images=pictures,
            videos=None,
            padding=True,
            padding_side="left" if batch_size > 1 else "right",
            return_tensors="pt",
        )
        output = model.generate(
            **inputs,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            do_sample=False,
            temperature=None,
            top_p=None,
            num_beams=1,
            max_new_tokens=24,
            use_cache=True,
        )
        answers += processor.batch_decode(
            [ids[len(prompt) :] for prompt, ids in zip(inputs.input_ids, output)],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
    return answers


def vlm_eval_kit(folder):
    """The answers of its `Qwen2VLChat(model_path=folder)`, on the CPU and without flash attention."""
    processor = AutoProcessor.from_pretrained(folder)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, torch_dtype="auto", device_map="cpu").eval()
    answers = []
    for picture, question in zip(PICTURES, QUESTIONS):
        content = [{"type": "image", "image": ""}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        text = processor.apply_chat_template([messages], tokenize=False, add_generation_prompt=True)
        inputs = processor(text=text, images=[picture], videos=None, padding=True, return_tensors="pt")
        torch.manual_seed(0)  # it samples, from the likeliest token alone
        output = model.generate(
            **inputs, max_new_tokens=24, top_p=0.001, top_k=1, temperature=0.01, repetition_penalty=1.0
        )
        answers += processor.tokenizer.batch_decode(
            [ids[len(prompt) :] for prompt, ids in zip(inputs.input_ids, output)],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
    return answers


@pytest.mark.parametrize("batch_size", [1, 2])
def test_what_lmms_eval_loads_gives_the_text_of_plain_qwen(folders, batch_size):
    ours, plain = folders
    answers = lmms_eval(ours, batch_size)
    assert answers == lmms_eval(plain, batch_size) and all(answers)


def test_what_vlm_eval_kit_loads_gives_the_text_of_plain_qwen(folders):
    ours, plain = folders
    answers = vlm_eval_kit(ours)
    assert answers == vlm_eval_kit(plain) and all(answers)


def test_the_text_is_also_that_of_safeqwen_itself(folders):
    model, processor = load(folders[0], device="cpu")
    answers = []
    for picture, question in zip(PICTURES, QUESTIONS):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=[text], images=[picture], return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        answers.append(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    assert answers == lmms_eval(folders[0], batch_size=1, dtype="float32")
