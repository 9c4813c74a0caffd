"""Run by `test_generations.py` on the other generation of transformers: `judge_folder.py FOLDER INPUTS OUTPUTS SAVED`.

Loads FOLDER, judges and answers INPUTS, a file of tensors or a picture for the folder's own processor, writes verdict,
tokens and tensors to OUTPUTS, and saves what it loads with dtype="auto" to SAVED.
"""

import json
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor


def inputs_from_picture(folder, picture):
    question = {"type": "text", "text": "What is in this picture?"}
    messages = [{"role": "user", "content": [{"type": "image", "image": str(picture)}, question]}]
    processor = AutoProcessor.from_pretrained(folder)
    return dict(
        processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    )


def judge_and_answer(folder, inputs):
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    output = model.generate(
        **inputs, do_safety=True, return_dict_in_generate=True, max_new_tokens=12, min_new_tokens=12, do_sample=False
    )
    return model, {
        "input_ids": inputs["input_ids"],
        "pixel_values": inputs["pixel_values"],
        "probs": output.img_safety_probs,
        "guard": model.guard(**inputs, granularity="image").img_safety_probs,
        "tokens": output.sequences,
        "logits": model(**inputs).logits.detach(),
        "version": torch.tensor(int(transformers.__version__.split(".")[0])),
    }


def main(folder, inputs, outputs, saved):
    inputs = load_file(inputs) if inputs.endswith(".safetensors") else inputs_from_picture(folder, inputs)
    model, results = judge_and_answer(folder, inputs)
    saving = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype="auto")
    saving.save_pretrained(saved)
    results["architectures"] = torch.tensor(list(json.dumps(saving.config.architectures).encode()))
    tensors = {f"tensor {name}": tensor.detach().clone() for name, tensor in saving.state_dict().items()}
    save_file({**results, **tensors}, outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
