"""transformers' pipeline and Trainer and TRL's SFTTrainer take the model as any Qwen2.5-VL."""

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from torch.testing import assert_close
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, Trainer, TrainingArguments, pipeline
from trl import SFTConfig, SFTTrainer

from safeqwen import CATEGORIES, DEMO_CHECKPOINT, SafeQwen2_5_VLForConditionalGeneration
from tools.demo.pictograms import draw


NAMES = [category.name for category in CATEGORIES]


def load_demo(model_class=SafeQwen2_5_VLForConditionalGeneration, folder=DEMO_CHECKPOINT):
    return model_class.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(DEMO_CHECKPOINT)


def chat(picture, answer=None):
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What is in this picture?"}],
        }
    ]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


# ----------------------------------------------------------------------------------------------------------- pipeline


def test_the_text_pipeline_says_what_it_says_with_stock(processor):
    chats = [chat(draw(name, 2_000_000)) for name in ("suicide", "safe", "terrorism")]
    answers = {}
    for model_class in (SafeQwen2_5_VLForConditionalGeneration, Qwen2_5_VLForConditionalGeneration):
        ask = pipeline("image-text-to-text", model=load_demo(model_class), processor=processor)
        answers[model_class] = ask(text=chats, max_new_tokens=30, do_sample=False, return_full_text=False)
    ours, stocks = answers.values()
    texts = [answer[0]["generated_text"] for answer in ours]
    assert texts == [answer[0]["generated_text"] for answer in stocks]
    assert len(set(texts)) > 1  # the pictures were seen


# ------------------------------------------------------------------------------------------------------------ Trainer


@pytest.fixture(scope="module")
def examples(processor):
    """One drawing of each category, as the processor returns it, with its answer and its category."""
    examples = []
    for label, name in enumerate(NAMES):
        picture = draw(name, 3_000_000)
        text = processor.apply_chat_template(chat(picture, f"This is {name}."), tokenize=False)
        inputs = dict(processor(text=[text], images=[picture], return_tensors="pt"))
        examples.append({**inputs, "labels": inputs["input_ids"].clone(), "safety_labels": torch.tensor([label])})
    return examples


def collate(examples):
    length = max(example["input_ids"].shape[1] for example in examples)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100, "mm_token_type_ids": 0}

    def joined(key):
        rows = [example[key] for example in examples]
        if key in fill:
            rows = [torch.nn.functional.pad(row, (0, length - row.shape[1]), value=fill[key]) for row in rows]
        return torch.cat(rows)

    return {key: joined(key) for key in examples[0]}


def arguments(folder, **kwargs):
    return TrainingArguments(
        folder,
        **{
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 5,
            "learning_rate": 3e-4,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "max_steps": 10,
            "save_steps": 5,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 1,
            **kwargs,
        },
    )


def trainer_of(folder, examples, model=None, **kwargs):
    return Trainer(
        model=model or load_demo(),
        args=arguments(folder, **kwargs),
        train_dataset=examples,
        eval_dataset=examples,
        data_collator=collate,
    )


def logged(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trainer_trains_saves_resumes_and_what_it_saved_judges(tmp_path, examples):
    trainer = trainer_of(tmp_path / "run", examples)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    losses = logged(trainer)
    assert len(losses) == 10 and sum(losses[5:]) < 0.9 * sum(losses[:5])  # an epoch is 5 steps
    for name, parameter in trainer.model.img_safety_head.named_parameters(prefix="img_safety_head"):
        assert not torch.equal(parameter, before[name]), name

    resumed = trainer_of(tmp_path / "run", examples)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-5"))
    for name, tensor in resumed.model.state_dict().items():
        assert_close(tensor, trainer.model.state_dict()[name], msg=name)

    saved = load_demo(folder=tmp_path / "run" / "checkpoint-10")
    inputs = {key: tensor for key, tensor in collate(examples).items() if key not in ("labels", "safety_labels")}
    assert torch.equal(saved.guard(**inputs).img_safety_probs, trainer.model.eval().guard(**inputs).img_safety_probs)


def test_evaluation_reports_the_loss_and_predictions_hold_the_verdicts(tmp_path, examples):
    trainer = trainer_of(tmp_path, examples)
    trainer.model.eval()
    stock, losses, verdicts = load_demo(Qwen2_5_VLForConditionalGeneration), [], []
    for start in range(0, 20, 5):
        inputs = collate(examples[start : start + 5])
        categories = inputs.pop("safety_labels")
        logits = trainer.model.guard(**{key: tensor for key, tensor in inputs.items() if key != "labels"})
        verdicts.append(logits.img_safety_probs)
        with torch.no_grad():
            lm_loss = stock(**inputs).loss
        losses.append(lm_loss - verdicts[-1][torch.arange(5), categories].log().mean())
    expected, verdicts = torch.stack(losses).mean().item(), torch.cat(verdicts)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    predicted = trainer.predict(examples)
    assert predicted.metrics["test_loss"] == pytest.approx(expected, rel=1e-5)
    logits, *_, probs, safety_loss = predicted.predictions
    assert logits.shape[0] == 20
    assert_close(torch.tensor(probs), verdicts, atol=1e-5, rtol=1e-5)
    labels, safety_labels = predicted.label_ids
    assert safety_labels.tolist() == list(range(20))
    assert labels.shape[0] == 20


def test_evaluation_without_safety_labels_reports_stocks_loss(tmp_path, examples):
    """By default Trainer wants every argument named *label* before it reports a loss: name the ones there are."""
    plain = [{key: tensor for key, tensor in example.items() if key != "safety_labels"} for example in examples]
    losses = []
    for model_class in (SafeQwen2_5_VLForConditionalGeneration, Qwen2_5_VLForConditionalGeneration):
        trainer = trainer_of(tmp_path, plain, load_demo(model_class), label_names=["labels"])
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[0] == losses[1]


def test_accumulated_gradients_are_those_of_one_batch(tmp_path, examples):
    def cut(example):  # answers of one length, so that all batches weigh alike, and wrong categories
        kept = torch.arange(example["labels"].shape[1]) < 8
        labels = example["labels"].masked_fill(~kept, -100)
        return {**example, "labels": labels, "safety_labels": example["safety_labels"] + 7}

    examples = [cut(example) for example in examples[:2]] * 2
    moved = []
    for batch_size, steps in ((4, 1), (2, 2)):
        model = load_demo()
        for module in model.img_safety_head.mlp:
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer_of(
            tmp_path / str(steps),
            examples,
            model,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=1e9,
        ).train()
        moved.append(model.state_dict())
    start = load_demo().state_dict()
    assert (moved[0]["img_safety_head.mlp.3.bias"] - start["img_safety_head.mlp.3.bias"]).abs().max() > 0.01
    for name, tensor in moved[0].items():
        assert_close(tensor - start[name], moved[1][name] - start[name], atol=1e-5, rtol=1e-3, msg=name)


# ---------------------------------------------------------------------------------------------------------------- TRL


@pytest.fixture(scope="module")
def vision_dataset():
    """What TRL's vision examples use: pictures in one column, a conversation in another."""
    rows = []
    for name in NAMES[:8]:
        question = {"role": "user", "content": "What is in this picture?"}
        answer = {"role": "assistant", "content": f"This is {name}."}
        rows.append({"images": [draw(name, 3_000_000)], "prompt": [question], "completion": [answer]})
    turn = [{"role": Value("string"), "content": Value("string")}]
    features = Features({"images": List(Image()), "prompt": turn, "completion": turn})
    return Dataset.from_list(rows, features=features)


def fine_tune(folder, model, processor, dataset, **kwargs):
    settings = {
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "max_steps": 4,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "max_length": None,
        "label_names": ["labels"],
        **kwargs,
    }
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(str(folder), **settings),
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=processor,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("gradient_checkpointing", [True, False])
def test_sft_trainer_fine_tunes_it_as_it_does_stock(tmp_path, processor, vision_dataset, gradient_checkpointing):
    losses, weights = [], []
    for model_class in (SafeQwen2_5_VLForConditionalGeneration, Qwen2_5_VLForConditionalGeneration):
        kwargs = {"gradient_checkpointing": gradient_checkpointing}
        folder = tmp_path / model_class.__name__
        trainer = fine_tune(folder, load_demo(model_class), processor, vision_dataset, **kwargs)
        losses.append([*logged(trainer), trainer.evaluate()["eval_loss"]])
        weights.append(trainer.model.state_dict())
    assert losses[0] == losses[1]
    assert losses[0][3] < losses[0][0]
    for name, tensor in weights[1].items():
        assert torch.equal(weights[0][name], tensor), name
    folder = tmp_path / SafeQwen2_5_VLForConditionalGeneration.__name__ / "checkpoint-4"
    assert load_demo(folder=folder).state_dict().keys() == weights[0].keys()
