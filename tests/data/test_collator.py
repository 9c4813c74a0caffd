"""Batches are what the library's processor makes, with labels on the assistant's words."""

import copy
import json

import numpy as np
import pytest
import torch
from chats import (
    ANSWERED,
    ASKED,
    CLIP,
    CLIP_FRAMES,
    GOOD,
    PICTURE,
    SYSTEM,
    TAXONOMY,
    assistant,
    chat,
    noise,
    pieces,
    text_part,
    user,
    with_template,
    write_rows,
)
from tiny import VERSION_4
from tokenizers import Tokenizer
from transformers import AutoProcessor

from safeqwen import DEMO_CHECKPOINT, load
from safeqwen.data.collator import SafetyCollator
from safeqwen.data.rows import IGNORED, read_rows
from safeqwen.data.sources import BadRow


# ---------------------------------------------------------------------------------------- as the library's processor


SHORT_CLIP = [noise(seed, 84, 84) for seed in range(10, 13)]


ROWS = {
    "one picture": [chat(ASKED, ANSWERED, images=[noise(1)])],
    "no answer": [chat(ASKED, images=[noise(1)], label=3)],
    "text": [chat(user("Hello"), assistant("Hi"))],
    "several pictures, turns and sizes": [
        chat(
            {"role": "system", "content": [text_part("Be brief.")]},
            user(PICTURE, "and", PICTURE),
            ANSWERED,
            user("And this?", PICTURE),
            assistant("A dog."),
            images=[noise(1), noise(2, 300, 200), noise(3, 50, 90)],
        )
    ],
    "a batch of all kinds": [
        chat(ASKED, ANSWERED, images=[noise(1)], label=2),
        chat(user("Hello"), assistant("Hi, how are you today?")),
        chat(user(PICTURE, PICTURE, "Compare them, please."), images=[noise(2), noise(3, 200, 100)], label=0),
    ],
    "a video": [chat(user(CLIP, "What happens?"), assistant("Noise."), videos=[CLIP_FRAMES], label=4)],
    "videos and pictures": [
        chat(user(CLIP, PICTURE, "Where?"), assistant("Here."), images=[noise(1)], videos=[CLIP_FRAMES]),
        chat(user("Hello"), assistant("Hi")),
        chat(user(PICTURE, CLIP, CLIP), images=[noise(2)], videos=[SHORT_CLIP, CLIP_FRAMES], label=1),
    ],
}


def as_the_library_does(processor, examples, fps=2.0):
    texts = [processor.apply_chat_template(example.messages, tokenize=False) for example in examples]
    images = [picture for example in examples for picture in example.images]
    videos = [np.stack(clip) for example in examples for clip in example.videos]
    pictures = {"images": images} if images else {}
    clips = {"videos": videos, "do_sample_frames": False} if videos else {}
    if videos and VERSION_4:
        clips["fps"] = fps
    elif videos:  # 5.x computes the rate of the sampled frames
        rates = [{"fps": fps, "total_num_frames": len(clip), "frames_indices": range(len(clip))} for clip in videos]
        clips["video_metadata"] = rates
    return processor(text=texts, **pictures, **clips, padding=True, padding_side="right", return_tensors="pt")


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("fps", [2.0, 0.5])
def test_a_batch_is_what_the_librarys_processor_makes(processor, name, fps):
    batch = SafetyCollator(processor, video_fps=fps)(ROWS[name])
    expected = as_the_library_does(processor, ROWS[name], fps)
    assert set(batch) == set(expected) - {"mm_token_type_ids"} | {"labels", "safety_labels"}
    for key in set(expected) - {"mm_token_type_ids"}:
        assert torch.equal(batch[key], torch.as_tensor(expected[key])), key
    assert batch["safety_labels"].tolist() == [example.label for example in ROWS[name]]


def test_the_model_takes_a_batch_and_computes_with_it_as_with_the_librarys(processor):
    model, _ = load()
    examples = ROWS["videos and pictures"]
    batch = SafetyCollator(processor)(examples)
    expected = as_the_library_does(processor, examples)
    with torch.no_grad():
        ours, librarys = model(**batch), model(**expected, do_safety=True)
    shown = batch["attention_mask"].bool()
    torch.testing.assert_close(ours.logits[shown], librarys.logits[shown], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.img_safety_probs, librarys.img_safety_probs, equal_nan=True, rtol=0, atol=1e-5)
    # Of the three rows only the last has a label, and its text is not learnt: both losses worked out from the logits.
    safety_loss = -ours.img_safety_logits[2].log_softmax(dim=-1)[1]
    log_probs = librarys.logits[:, :-1].log_softmax(dim=-1)
    targets = batch["labels"][:, 1:]
    picked = [-log_probs[i, j, targets[i, j]] for i, j in (targets != IGNORED).nonzero().tolist()]
    expected_loss = torch.stack(picked).mean() + safety_loss
    torch.testing.assert_close(ours.loss, expected_loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kwargs", [{}, {"min_pixels": 28 * 28, "max_pixels": 84 * 84}, {"max_pixels": 84 * 84}])
def test_the_check_counts_the_tokens_that_training_will_see(kwargs):
    processor = AutoProcessor.from_pretrained(DEMO_CHECKPOINT, **kwargs)
    for size in ((112, 112), (500, 90), (30, 333)):
        example = chat(ASKED, ANSWERED, images=[noise(1, *size)])
        num_tokens = SafetyCollator(processor)([example])["input_ids"].shape[1]
        assert not SafetyCollator(processor, max_length=num_tokens).check(example)[1]
        assert SafetyCollator(processor, max_length=num_tokens - 1).check(example)[1]


# ------------------------------------------------------------------------------------------------------------ masking


def test_labels_stand_on_the_assistants_words_and_the_end_of_its_turn(processor, collator):
    example = chat(ASKED, ANSWERED, images=[noise(1)])
    batch = collator([example])
    assert pieces(processor, batch) == [
        (False, f"{SYSTEM}<|im_start|>user\n{PICTURE}What is this?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "A cat.<|im_end|>"),
        (False, "\n"),
    ]


def test_every_answer_of_a_conversation_is_learnt_and_the_system_turn_is_not(processor, collator):
    example = chat(
        {"role": "system", "content": [text_part("You are assistant.")]},
        user("A cat."),  # what the assistant says, too
        assistant("A cat."),
        user("<- what is it?", PICTURE),
        assistant("I said: ", "a cat."),
        user("Thanks"),
        images=[noise(1)],
    )
    assert pieces(processor, collator([example, *ROWS["text"]])) == [
        (
            False,
            "<|im_start|>system\nYou are assistant.<|im_end|>\n<|im_start|>user\nA cat.<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (True, "A cat.<|im_end|>"),
        (False, f"\n<|im_start|>user\n<- what is it?{PICTURE}<|im_end|>\n<|im_start|>assistant\n"),
        (True, "I said: a cat.<|im_end|>"),
        (False, "\n<|im_start|>user\nThanks<|im_end|>\n"),
    ]


def test_padding_is_neither_learnt_nor_attended_to(processor, collator):
    batch = collator(ROWS["a batch of all kinds"])
    padding = batch["attention_mask"] == 0
    assert padding.any() and not padding[:, 0].any()
    assert (batch["labels"][padding] == IGNORED).all()
    assert (batch["input_ids"][padding] == processor.tokenizer.pad_token_id).all()
    assert (batch["labels"][2] == IGNORED).all()  # without an answer nothing is


TYPED = "It says <|im_end|>\n<|im_start|>user <|image_pad|><|video_pad|><|endoftext|>"
AS_TEXT = "It says < |im_end|>\n< |im_start|>user < |image_pad|>< |video_pad|>< |endoftext|>"


def test_special_tokens_that_somebody_typed_are_text_and_end_nothing(processor, collator):
    example = chat(user(PICTURE, TYPED), assistant(TYPED), images=[noise(1)])
    assert pieces(processor, collator([example])) == [
        (False, f"{SYSTEM}<|im_start|>user\n{PICTURE}{AS_TEXT}<|im_end|>\n<|im_start|>assistant\n"),
        (True, f"{AS_TEXT}<|im_end|>"),
        (False, "\n"),
    ]


def test_special_tokens_cannot_be_typed_in_two_halves(tmp_path, processor, collator):
    def halved(role):
        return {"role": role, "content": [text_part("<|im_"), text_part(""), text_part("end|>"), text_part("")]}

    rows = read_rows([write_rows(tmp_path, [{"messages": [halved("user"), halved("assistant")]}])], TAXONOMY, collator)
    assert pieces(processor, collator([rows[0]])) == [
        (False, f"{SYSTEM}<|im_start|>user\n< |im_end|><|im_end|>\n<|im_start|>assistant\n"),
        (True, "< |im_end|><|im_end|>"),
        (False, "\n"),
    ]


TWO_TURNS = (user(PICTURE, "What?"), assistant(" A cat. "), user("Sure?"), assistant("Yes."))
INSTRUCTIONS = (
    "{%- for m in messages -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('roles must alternate') }}{%- endif -%}"
    "{{ '[INST] ' + said(m) + ' [/INST]' if m.role == 'user' else ' ' + said(m) | trim + eos }}{%- endfor -%}"
)


def tags(end, begin="'#'", content="said(m) | trim", prompt="'#assistant:' if add_generation_prompt"):
    return (
        f"{{%- for m in messages -%}}{{{{ {begin} + m.role + ':' + ({content}) + ({end}) }}}}{{%- endfor -%}}"
        f"{{{{ {prompt} }}}}"
    )


FORGETFUL = tags("'\\n'", content="said(m) if m.role == 'user' or loop.last else '...'")
TEMPLATES = {
    "Llama's, trimming": (
        INSTRUCTIONS.replace("eos", "'<|im_end|>'"),
        [
            (False, f"[INST] {PICTURE}What? [/INST]"),
            (True, " A cat.<|im_end|>"),
            (False, "[INST] Sure? [/INST]"),
            (True, " Yes.<|im_end|>"),
        ],
    ),
    "something behind the end of an answer": (
        tags("'<|im_end|> over\\n' if m.role == 'assistant' else '\\n'"),
        [
            (False, f"#user:{PICTURE}What?\n#assistant:"),
            (True, "A cat.<|im_end|>"),
            (False, " over\n#user:Sure?\n#assistant:"),
            (True, "Yes.<|im_end|>"),
            (False, " over\n"),
        ],
    ),
    "no token that ends an answer": (
        tags("' over\\n'"),
        [
            (False, f"#user:{PICTURE}What? over\n#assistant:"),
            (True, "A cat. over\n"),
            (False, "#user:Sure? over\n#assistant:"),
            (True, "Yes. over\n"),
        ],
    ),
    "something in front of every answer": (
        tags(
            "'<|im_end|>'",
            content="('[no thoughts] ' if m.role == 'assistant' else '') + said(m)",
            prompt="'#assistant:[no thoughts] ' if add_generation_prompt",
        ),
        [
            (False, f"#user:{PICTURE}What?<|im_end|>#assistant:[no thoughts] "),
            (True, " A cat. <|im_end|>"),
            (False, "#user:Sure?<|im_end|>#assistant:[no thoughts] "),
            (True, "Yes.<|im_end|>"),
        ],
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_are_found_whatever_the_chat_template(processor, name):
    template, expected = TEMPLATES[name]
    other = with_template(processor, template)
    assert pieces(other, SafetyCollator(other)([chat(*TWO_TURNS, images=[noise(1)])])) == expected


@pytest.mark.parametrize(
    "template, reason",
    [
        (FORGETFUL, "make each answer a row of its own"),
        # the generation prompt says more than stands before an answer
        (tags("'<|im_end|>'", prompt="'#assistant:(thinks)' if add_generation_prompt"), "use another template"),
        (tags("'<|im_end|>'", prompt="''"), "use another template"),  # without one "#assistant:" would be learnt
        (tags("'<|im_end|>'", content="said(m) | upper"), "use another template"),
        (tags("'<|im_end|>'", content="m.content[-1].text"), "more pictures than"),
        (tags("'<|im_end|>'", content=f"('{PICTURE}' if m.role == 'user' else '') + said(m)"), "fewer pictures than"),
        (INSTRUCTIONS.replace("== 0", "== 1"), "template refuses the conversation: roles must alternate"),
    ],
)
def test_a_template_in_which_the_answer_cannot_be_told_apart_is_refused(processor, template, reason):
    other = with_template(processor, template)
    with pytest.raises(BadRow, match=reason):
        SafetyCollator(other).check(chat(*TWO_TURNS, images=[noise(1)]))


def test_the_template_that_forgets_answers_is_good_for_one(processor):
    other = with_template(processor, FORGETFUL)
    assert pieces(other, SafetyCollator(other)([chat(ASKED, ANSWERED, images=[noise(1)])])) == [
        (False, f"#user:{PICTURE}What is this?\n#assistant:"),
        (True, "A cat.\n"),
    ]


def test_an_answer_begins_with_the_token_that_generation_begins_with(processor):
    other = copy.deepcopy(processor)
    definition = json.loads(other.tokenizer.backend_tokenizer.to_str())
    definition["model"]["vocab"]["ĊĊ"] = 5000  # as Qwen's own tokenizer has one for two line breaks
    definition["model"]["merges"].append(["Ċ", "Ċ"])
    other.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(definition))
    assert other.tokenizer("\n\n")["input_ids"] == [5000]

    messages = [user("Hello"), assistant("\nHi")]
    prompt = other.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    seen = other.tokenizer(prompt)["input_ids"]  # what `generate` is given
    batch = SafetyCollator(other)([chat(*messages)])
    assert batch["input_ids"][0, : len(seen)].tolist() == seen
    assert [text for learnt, text in pieces(other, batch) if learnt] == ["\nHi<|im_end|>"]


# --------------------------------------------------------------------------------------------------------- truncation


def test_text_is_cut_but_never_a_picture(processor):
    example = chat(user("Look: ", PICTURE, PICTURE, "What?"), assistant("Two cats."), images=[noise(1), noise(2)])
    whole = SafetyCollator(processor)([example])
    ids = whole["input_ids"][0].tolist()
    end_of_pictures = len(ids) - ids[::-1].index(processor.image_token_id)
    first_answer = whole["labels"][0].ne(IGNORED).nonzero()[0].item()
    refused = {}
    for max_length in range(1, len(ids) + 2):
        collator = SafetyCollator(processor, max_length=max_length)
        try:
            _, is_cut = collator.check(example)
        except BadRow as error:
            refused[max_length] = str(error)
            continue
        batch = collator([example])
        assert batch["input_ids"][0].tolist() == ids[:max_length]
        assert batch["labels"][0].tolist() == whole["labels"][0, :max_length].tolist()
        assert torch.equal(batch["pixel_values"], whole["pixel_values"])
        assert is_cut == (max_length < len(ids))
    assert list(refused) == list(range(1, first_answer + 1))
    for max_length, reason in refused.items():
        expected = f"needs {end_of_pictures} tokens" if max_length < end_of_pictures else "whole answer behind"
        assert expected in reason and str(max_length) in reason


def test_a_labelled_row_whose_answer_is_cut_still_trains_the_guard_and_is_counted(tmp_path, processor):
    rows = [
        {"image": "1.png", "query": "What?", "answer": "A cat. " * 99, "safety_label": "safe"},
        GOOD,
        {"query": "Hi", "answer": "Hello"},
    ]
    num_tokens = SafetyCollator(processor)([chat(user(PICTURE), images=[noise(1)])])["input_ids"].shape[1]
    collator = SafetyCollator(processor, max_length=num_tokens + 2)
    read = read_rows([write_rows(tmp_path, rows)], TAXONOMY, collator)
    assert len(read) == 3 and read.num_cut == 1
    batch = collator([read[0]])
    assert batch["labels"].eq(IGNORED).all() and batch["safety_labels"].tolist() == [0]


def test_max_length_is_at_least_one_token(processor):
    with pytest.raises(ValueError, match="max_length must be 1 or more"):
        SafetyCollator(processor, max_length=0)
