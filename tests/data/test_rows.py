"""Rows to train on: what comes out is what the library's processor makes, what is wrong is said of every row."""

import copy
import itertools
import json
import pickle
import shutil

import av
import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from tiny import VERSION_4
from tokenizers import Tokenizer
from transformers import AutoProcessor

from safeqwen import DEMO_CHECKPOINT, load
from safeqwen.data.collator import SafetyCollator
from safeqwen.data.rows import IGNORED, BadData, Example, read_rows
from safeqwen.data.sources import BadRow, Cell, raw_rows
from safeqwen.data.taxonomy import Taxonomy, read_taxonomy
from safeqwen.data.video import load_video
from safeqwen.hub.configuration_safeqwen import HOLISAFE_CATEGORIES


TAXONOMY = Taxonomy(HOLISAFE_CATEGORIES)
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"  # what the template puts in of itself
PICTURE, CLIP = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(DEMO_CHECKPOINT)


@pytest.fixture(scope="module")
def collator(processor):
    return SafetyCollator(processor)


def noise(seed, width=112, height=112):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def with_template(processor, template):
    """The processor with another chat template, written for contents that are lists of parts."""
    other = copy.deepcopy(processor)
    other.chat_template = (
        "{%- macro said(m) -%}{%- for p in m.content -%}{{ '"
        + PICTURE
        + "' if p.type == 'image' else p.text }}{%- endfor -%}{%- endmacro -%}"
        + template
    )
    return other


def user(*content):
    return {"role": "user", "content": [_part(part) for part in content]}


def assistant(*content):
    return {"role": "assistant", "content": [_part(part) for part in content]}


def _part(part):
    return {"type": "image"} if part is PICTURE else {"type": "video"} if part is CLIP else _text(part)


def _text(text):
    return {"type": "text", "text": text}


def chat(*messages, images=(), videos=(), label=IGNORED):
    return Example(list(messages), list(images), list(videos), label, "", 1)


def runs(processor, batch, row=0):
    """`[(whether it is learnt, text), ...]` of a row; pictures as one placeholder each."""
    ids, labels = batch["input_ids"][row], batch["labels"][row]
    shown = batch["attention_mask"][row].bool()
    pairs = list(zip(ids[shown].tolist(), labels[shown].tolist()))
    assert all(label in (token, IGNORED) for token, label in pairs)
    pictures = (processor.image_token_id, processor.video_token_id)
    result = []
    for learnt, group in itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        tokens = [token for token, _ in group]
        kept = [t for i, t in enumerate(tokens) if t not in pictures or i == 0 or tokens[i - 1] != t]
        result.append((learnt, processor.tokenizer.decode(kept, skip_special_tokens=False)))
    return result


def write_rows(folder, rows, name="rows.jsonl"):
    folder.mkdir(exist_ok=True)
    for seed in (1, 2):
        if not (folder / f"{seed}.png").exists():
            noise(seed).save(folder / f"{seed}.png")
    file = folder / name
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")
    return str(file)


def write_video(path, num_frames, rate=8, **options):
    """Frames of 64 x 48 pixels, each a little lighter than the one before."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(num_frames):
            frame = np.full((48, 64, 3), 5 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


GOOD = {"image": "1.png", "safety_label": "safe"}


def test_pictures_have_labels_of_their_own_in_the_order_of_the_batch(tmp_path, collator):
    two = {"images": ["1.png", "2.png"], "picture_categories": ["suicide", None]}
    rows = read_rows([write_rows(tmp_path, [two, GOOD, {**two, "safety_label": "suicide"}])], TAXONOMY, collator)
    suicide = TAXONOMY.column("suicide")
    batch = collator(rows.examples)
    assert batch["safety_labels"].tolist() == [IGNORED, 0, suicide]
    assert batch["picture_categories"].tolist() == [suicide, IGNORED, IGNORED, suicide, IGNORED]
    assert batch["picture_rows"].tolist() == [0, 0, 1, 2, 2]
    assert rows.verdict_labels == [IGNORED, suicide, IGNORED, 0, suicide, suicide, IGNORED]
    assert "picture_categories" not in collator(rows.examples[1:2])
    assert rows.blank().picture_categories == [IGNORED, IGNORED]
    relabelled = [{**two, "picture_categories": [None, "suicide"]}, GOOD, {**two, "safety_label": "suicide"}]
    assert read_rows([write_rows(tmp_path, relabelled)], TAXONOMY, collator).sha256 != rows.sha256


def problem_of(folder, row, collator, taxonomy=TAXONOMY):
    """The reason why a row is refused."""
    with pytest.raises(BadData) as caught:
        read_rows([write_rows(folder, [row])], taxonomy, collator)
    (problem,) = caught.value.problems
    return problem.reason


# ---------------------------------------------------------------------------------------- as the library's processor

CLIP_FRAMES = [noise(seed, 112, 84) for seed in range(4)]
SHORT_CLIP = [noise(seed, 84, 84) for seed in range(10, 13)]
ASKED, ANSWERED = user(PICTURE, "What is this?"), assistant("A cat.")
ROWS = {
    "one picture": [chat(ASKED, ANSWERED, images=[noise(1)])],
    "no answer": [chat(ASKED, images=[noise(1)], label=3)],
    "text": [chat(user("Hello"), assistant("Hi"))],
    "several pictures, turns and sizes": [
        chat(
            {"role": "system", "content": [_text("Be brief.")]},
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
    assert runs(processor, batch) == [
        (False, f"{SYSTEM}<|im_start|>user\n{PICTURE}What is this?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "A cat.<|im_end|>"),
        (False, "\n"),
    ]


def test_every_answer_of_a_conversation_is_learnt_and_the_system_turn_is_not(processor, collator):
    example = chat(
        {"role": "system", "content": [_text("You are assistant.")]},
        user("A cat."),  # what the assistant says, too
        assistant("A cat."),
        user("<- what is it?", PICTURE),
        assistant("I said: ", "a cat."),
        user("Thanks"),
        images=[noise(1)],
    )
    assert runs(processor, collator([example, *ROWS["text"]])) == [
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
    assert runs(processor, collator([example])) == [
        (False, f"{SYSTEM}<|im_start|>user\n{PICTURE}{AS_TEXT}<|im_end|>\n<|im_start|>assistant\n"),
        (True, f"{AS_TEXT}<|im_end|>"),
        (False, "\n"),
    ]


def test_special_tokens_cannot_be_typed_in_two_halves(tmp_path, processor, collator):
    def halved(role):
        return {"role": role, "content": [_text("<|im_"), _text(""), _text("end|>"), _text("")]}

    rows = read_rows([write_rows(tmp_path, [{"messages": [halved("user"), halved("assistant")]}])], TAXONOMY, collator)
    assert runs(processor, collator([rows[0]])) == [
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
    assert runs(other, SafetyCollator(other)([chat(*TWO_TURNS, images=[noise(1)])])) == expected


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
    assert runs(other, SafetyCollator(other)([chat(ASKED, ANSWERED, images=[noise(1)])])) == [
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
    assert [text for learnt, text in runs(other, batch) if learnt] == ["\nHi<|im_end|>"]


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


# --------------------------------------------------------------------------------------------------- rows that are bad


def messages_with(*messages, **fields):
    return {"messages": list(messages), **fields}


SAID = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
BAD_ROWS = [
    # labels
    ({**GOOD, "safety_label": "suicid"}, "label 'suicid' is no category of this taxonomy; did you mean 'suicide'?"),
    ({**GOOD, "safety_label": "Safe"}, "did you mean 'safe'?"),
    ({**GOOD, "safety_label": "Weapon-related violence"}, "did you mean 'weapon_related_violence'?"),
    ({**GOOD, "safety_label": "xyz"}, "expected one of safe, gender_discrimination,"),
    ({**GOOD, "safety_label": ""}, "expected one of safe"),
    ({**GOOD, "safety_label": 20}, "20 is outside of the taxonomy, whose 20 categories are 0 to 19"),
    ({**GOOD, "safety_label": "20"}, "'20' is outside of the taxonomy"),
    ({**GOOD, "safety_label": -100}, "-100 is outside of the taxonomy"),
    ({**GOOD, "safety_label": "²"}, "label '²' is no category"),
    ({**GOOD, "safety_label": True}, "label True is neither a category's name nor its whole number"),
    ({**GOOD, "safety_label": 1.0}, "label 1.0 is neither"),
    ({**GOOD, "safety_label": float("nan")}, "label nan is neither"),
    ({**GOOD, "safety_label": ["safe", "suicide"]}, "several verdict labels"),
    ({**GOOD, "safety_label": {"1.png": "safe"}}, "several verdict labels"),
    ({**GOOD, "picture_categories": ["safe"]}, "'picture_categories' for a single picture"),
    (
        {"images": ["1.png"], "videos": [["1.png"]], "picture_categories": ["safe", "safe"]},
        "images beside videos, whose order is not clear",
    ),
    (
        {"images": ["1.png", "2.png"], "safety_label": "safe", "picture_categories": ["safe", "suicide"]},
        "is 'safe' as a whole, but",
    ),
    ({"images": ["1.png", "2.png"], "picture_categories": ["safe"]}, "each of the row's 2 pictures, got"),
    ({"images": ["1.png", "2.png"], "picture_categories": "safe"}, "each of the row's 2 pictures, got 'safe'"),
    ({"images": ["1.png", "2.png"], "picture_categories": ["safe", "saef"]}, "did you mean 'safe'"),
    ({"images": ["1.png", "2.png"], "picture_categories": [None, None]}, "neither a verdict label nor an answer"),
    ({**GOOD, "image_safety_label": "safe"}, "two verdict labels, safety_label 'safe' and image_safety_label 'safe'"),
    (
        {"image": "1.png", "image_safe": True, "image_safety_label": "suicide"},
        "says image_safe True but image_safety_label 'suicide'",
    ),
    ({**GOOD, "image_safe": False}, "says image_safe False but safety_label 'safe'"),
    ({**GOOD, "image_safe": "false"}, "image_safe must be true or false, got 'false'"),
    ({"image": "1.png", "answer": "x", "image_safe": False}, "has image_safe but no image_safety_label"),
    ({"image": "1.png", "query": "x"}, "neither a verdict label nor an answer"),
    ({"image": "1.png", "safety_label": None}, "neither a verdict label nor an answer"),
    ({"query": "Hi", "safety_label": "safe"}, "a verdict label but no picture"),
    ({"images": [], "safety_label": "safe"}, "a verdict label but no picture"),
    # fields that would be left out of training without a word
    ({"image": "1.png", "safty_label": "safe"}, "has a field 'safty_label'; did you mean 'safety_label'?"),
    ({**GOOD, "anwser": "x"}, "did you mean 'answer'?"),
    ({"Image": "1.png", "safety_label": "safe"}, "did you mean 'image'?"),
    ({"image": "1.png", "safetyLabel": "safe"}, "did you mean 'safety_label'?"),
    ({"image": "1.png", "answer": "x", "label": 16}, "a field 'label', which is not read, but no 'safety_label'"),
    ({"image": "1.png", "answer": "x", "className": "x"}, "a field 'className', which is not read"),
    ({"image": "1.png", "answer": "x", "category": "suicide"}, "a category 'suicide', which is not read, but no"),
    ({"image": "1.png", "answer": "x", "subcategory": "gender"}, "a subcategory 'gender', which is not read"),
    ({"img": "1.png", "query": "x", "answer": "y"}, "a field 'img', which is not read, but no 'images'"),
    ({"file_name": "1.png", "query": "x", "answer": "y"}, "a field 'file_name', which is not read"),
    ({**GOOD, "caption": "A cat."}, "a field 'caption', which is not read, but no 'answer'"),
    ({**GOOD, "conversations": [{"from": "human", "value": "x"}]}, "a field 'conversations', which is not read"),
    ({"image": "1.png", "question": "x", "answer": "y"}, "a field 'question', which is not read, but no 'query'"),
    ({"answer": "y"}, "neither a picture nor a question"),
    (messages_with({**SAID[0], "images": ["1.png"]}, SAID[1]), "has a message with a field 'images'"),
    (messages_with(SAID[0], {**SAID[1], "weight": 0}), "has a message with a field 'weight'"),
    # the conversation
    ([1, 2], "must be an object, got list"),
    ({**GOOD, "messages": "Hi"}, "'messages' must be a list"),
    ({**GOOD, "messages": []}, "'messages' must be a list"),
    ({**GOOD, "messages": [{"from": "human", "value": "Hi"}]}, "expected messages with a role of system, user or"),
    (messages_with({"role": "tool", "content": "x"}, SAID[1]), "expected messages with a role"),
    (messages_with(SAID[1]), "begins with the assistant"),
    (messages_with(*SAID, query="x"), "both 'messages' and 'query'"),
    ({"query": "Hi", "answer": "x", "response": "y"}, "both 'answer' and 'response'"),
    ({"query": "Hi", "answer": ""}, "an assistant's message is empty"),
    ({"query": "Hi", "answer": " \n\t"}, "an assistant's message is empty"),
    ({"query": "Hi", "answer": 5}, "content must be text or a list of parts, got 5"),
    ({"query": "Hi", "answer": []}, "an assistant's message is empty"),
    ({"query": "Hi", "answer": "half \ud83d"}, "must be valid text"),
    (messages_with(SAID[0], {"role": "assistant", "content": [{"type": "image"}]}), "must be text"),
    (messages_with({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}), "expected parts of type"),
    (messages_with({"role": "user", "content": [{"type": "text", "text": None}]}), "must be valid text"),
    # pictures and their places
    ({**GOOD, "images": ["2.png"]}, "both 'image' and 'images'"),
    ({"images": "1.png", "safety_label": 0}, "'images' must be a list, got str; for a single one use 'image'"),
    ({"image": ["1.png", "2.png"], "safety_label": 0}, "pass pictures one by one"),
    (messages_with(user(PICTURE, PICTURE, "x"), images=["1.png"], safety_label=0), "1 images for 2 image parts"),
    (messages_with(user(PICTURE, "x"), images=["1.png", "2.png"], safety_label=0), "2 images for 1 image parts"),
    (messages_with(user(PICTURE, "x"), videos=[["1.png"]], safety_label=0), "0 images for 1 image parts"),
    (
        messages_with({"role": "user", "content": [{"type": "image", "image": "1.png"}, {"type": "image"}]}),
        "names only some of its images in the messages",
    ),
    (
        messages_with({"role": "user", "content": [{"type": "image", "image": "1.png"}]}, images=["2.png"]),
        "names only some of its images in the messages",
    ),
    (messages_with({"role": "user", "content": [{"type": "image", "url": "1.png"}]}), "a field 'url'"),
    (messages_with({"role": "user", "content": [{**_text("x"), "image": "1.png"}]}), "part of type text with a field"),
    ({**GOOD, "query": "<image>\nWhat?"}, "has '<image>' in its text, which stays text"),
    (messages_with({"role": "system", "content": "x"}, images=["1.png"], safety_label=0), "no user's message to put"),
    # pictures themselves
    ({**GOOD, "image": "none.png"}, "none.png: there is no such file"),
    ({**GOOD, "image": ""}, "is a folder"),
    ({**GOOD, "image": "rows.jsonl"}, "rows.jsonl: "),
    ({**GOOD, "image": "moving.gif"}, "moving.gif: is an animation; train on it as a video, or on its frames"),
    ({**GOOD, "image": "cut.png"}, "cut.png: "),
    ({**GOOD, "image": 5}, "expected a path"),
    ({**GOOD, "image": {"path": "1.png"}}, "give its path or URL as text"),
    ({"video": "none.mp4", "safety_label": 0}, "there is no such video file"),
    ({"video": "https://example.com/a.mp4", "safety_label": 0}, "there is no such video file"),
    ({"video": "1.png", "safety_label": 0}, "1.png: cannot be read as a video"),
    ({"video": "cut.mp4", "safety_label": 0}, "cut.mp4: "),
    ({"video": [], "safety_label": 0}, "a video needs one or more frames, all of one size"),
    ({"video": ["1.png", "wide.png"], "safety_label": 0}, "all of one size"),
]


@pytest.fixture(scope="module")
def all_bad(tmp_path_factory):
    """A file of all bad rows, a good one in front of each."""
    folder = tmp_path_factory.mktemp("bad")
    noise(3, 56, 28).save(folder / "wide.png")
    noise(3).save(folder / "moving.gif", save_all=True, append_images=[noise(4)])
    write_video(folder / "whole.mp4", 40, movflags="faststart")
    whole = (folder / "whole.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    file = write_rows(folder, [row for bad, _ in BAD_ROWS for row in (GOOD, bad)])
    (folder / "cut.png").write_bytes((folder / "1.png").read_bytes()[:-2000])
    return file


def test_all_bad_rows_are_told_at_once_with_file_row_reason_and_remedy(all_bad, collator):
    with pytest.raises(BadData) as caught:
        read_rows([all_bad], TAXONOMY, collator)
    problems = caught.value.problems
    assert [problem.row for problem in problems] == list(range(2, 2 * len(BAD_ROWS) + 1, 2))
    lines = str(caught.value).splitlines()
    assert f": {len(BAD_ROWS)};" in lines[0] and "on_bad_row: skip" in lines[0]
    for (row, reason), problem, line in zip(BAD_ROWS, problems, lines[1:], strict=True):
        assert reason in problem.reason, row
        assert line == f"  {all_bad}, row {problem.row}: {problem.reason}"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # as told by other processes


def test_skipping_leaves_out_the_bad_rows_and_nothing_else(all_bad, collator):
    rows = read_rows([all_bad], TAXONOMY, collator, on_bad_row="skip")
    assert [example.row for example in rows] == list(range(1, 2 * len(BAD_ROWS), 2))
    assert [problem.row for problem in rows.problems] == list(range(2, 2 * len(BAD_ROWS) + 1, 2))
    summary = rows.summary(TAXONOMY.names)
    assert summary["skipped"] == len(BAD_ROWS) and summary["rows_by_label"]["safe"] == len(rows)


def test_nothing_but_bad_rows_cannot_be_skipped(tmp_path, collator):
    with pytest.raises(BadData, match="no category"):
        read_rows([write_rows(tmp_path, [{**GOOD, "safety_label": "x"}])], TAXONOMY, collator, on_bad_row="skip")
    with pytest.raises(ValueError, match="holds no rows"):
        read_rows([write_rows(tmp_path, [])], TAXONOMY, collator)
    with pytest.raises(ValueError, match="'fail' or 'skip', got 'ignore'"):
        read_rows([write_rows(tmp_path, [GOOD])], TAXONOMY, collator, on_bad_row="ignore")


def test_what_other_fields_hold_is_no_matter_where_nothing_is_missing(tmp_path, collator):
    row = {
        **{"image": "1.png", "query": "What?", "answer": "A cat.", "safety_label": "suicide"},
        **{
            "id": 7,
            "label": 3,
            "image_id": "x",
            "image_size": [1, 2],
            "caption": "y",
            "prompt": "z",
            "category": "safe",
        },
    }
    rows = read_rows([write_rows(tmp_path, [row])], TAXONOMY, collator)
    assert rows.labels == [11]


def test_null_is_as_good_as_absent(tmp_path, processor, collator):
    row = {
        **{"images": ["1.png"], "image": None, "videos": None, "safety_label": None, "image_safety_label": "gender"},
        "messages": [
            {  # as a Hugging Face dataset has parts
                "role": "user",
                "content": [{"type": "image", "image": None, "text": None}, {**_text("What?"), "image": None}],
                "name": None,
            },
            {"role": "assistant", "content": "A cat."},
        ],
    }
    rows = read_rows([write_rows(tmp_path, [row])], TAXONOMY, collator)
    assert rows.labels == [1]
    expected = [chat(user(PICTURE, "What?"), assistant("A cat."), images=[noise(1)])]
    assert torch.equal(collator([rows[0]])["input_ids"], collator(expected)["input_ids"])


def test_pictures_without_a_place_stand_in_front_of_what_the_user_first_says(tmp_path, processor, collator):
    rows = [
        {"images": ["1.png", "2.png"], "query": "Same?", "answer": "No."},
        messages_with({"role": "system", "content": "Be brief."}, *SAID, *SAID, video=["1.png", "2.png"]),
    ]
    first, second = read_rows([write_rows(tmp_path, rows)], TAXONOMY, collator)
    assert runs(processor, collator([first]))[0][1].endswith(
        f"user\n{PICTURE}{PICTURE}Same?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert runs(processor, collator([second]))[0][1].endswith(f"user\n{CLIP}Hi<|im_end|>\n<|im_start|>assistant\n")
    assert torch.equal(
        collator([first])["pixel_values"],
        collator([chat(user(PICTURE, PICTURE), images=[noise(1), noise(2)])])["pixel_values"],
    )


def test_paths_start_from_the_folder_of_the_file_or_from_image_root(tmp_path, collator, monkeypatch):
    inline = {
        "role": "user",
        "content": [{"type": "video", "video": ["1.png", "2.png"]}, {"type": "image", "image": "1.png"}],
    }
    file = write_rows(tmp_path / "here", [GOOD, {"messages": [inline], "safety_label": 1}])
    monkeypatch.chdir(tmp_path)
    assert len(read_rows([file], TAXONOMY, collator)) == 2
    moved = shutil.move(file, tmp_path / "rows.jsonl")
    with pytest.raises(BadData):
        read_rows([str(moved)], TAXONOMY, collator)
    assert len(read_rows([str(moved)], TAXONOMY, collator, image_root=str(tmp_path / "here"))) == 2


# ------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    "label, column",
    [
        *[("weapon_related_violence", 16), ("gender", 1), ("race", 2), ("religion", 3), ("race_discrimination", 2)],
        *[(0, 0), (19, 19), ("7", 7), (" 7\n", 7)],
    ],
)
def test_a_label_is_a_name_an_alias_or_a_number(label, column):
    assert TAXONOMY.column(label) == column


def test_a_category_of_ones_own_is_not_taken_for_holisafes_alias():
    own = Taxonomy(["safe", "race_discrimination", "race"])  # the last one about horses
    assert own.column("race") == 2
    assert Taxonomy(["race", "gender_discrimination"], {"gender": "race"}).column("gender") == 0


def test_a_category_cannot_be_called_like_a_column():
    with pytest.raises(ValueError, match="category '1' could be mistaken"):
        Taxonomy(["1", "0"])


def test_a_taxonomy_is_read_from_yaml(tmp_path):
    file = tmp_path / "categories.yaml"
    file.write_text("- safe\n- name: our_logo\n  aliases: [logo, brand]\n- name: ünsafe\n", encoding="utf-8")
    taxonomy = read_taxonomy(file)
    assert taxonomy.names == ["safe", "our_logo", "ünsafe"]
    assert [taxonomy.column(label) for label in ("brand", "ünsafe", "logo", 0)] == [1, 2, 1, 0]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("safe: 1\nunsafe: 2\n", "must be a list of two or more category names"),
        ("- safe\n", "must be a list of two or more"),
        ("- safe\n- no\n", "got False; quote words"),
        ("- safe\n- 5\n", "got 5"),
        ("- safe\n- '5'\n", "category '5' could be mistaken"),
        ("- safe\n- ' '\n", "got ' '"),
        ("- safe\n- name: logo\n  alias: [brand]\n", "got {'name': 'logo', 'alias'"),
        ("- safe\n- name: logo\n  aliases: brand\n", "got {'name': 'logo', 'aliases': 'brand'}"),
        ("- safe\n- name: logo\n  aliases: [no]\n", "got {'name': 'logo', 'aliases': [False]}"),
        ("- safe\n- safe\n", "names safe more than once"),
        ("- safe\n- name: logo\n  aliases: [safe]\n", "names safe more than once"),
        ("- name: a\n  aliases: [x]\n- name: b\n  aliases: [x]\n", "names x more than once"),
        ("- a\n b: [", "no valid YAML"),
    ],
)
def test_a_taxonomy_that_is_none_is_refused(tmp_path, text, reason):
    file = tmp_path / "categories.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        read_taxonomy(file)
    assert reason in str(caught.value)


@pytest.mark.parametrize("seed", range(5))
def test_class_weights_are_scikit_learns_balanced(seed):
    labels = np.random.default_rng(seed).choice(6, p=[0.5, 0.2, 0.2, 0.05, 0.05, 0], size=300)
    present = np.unique(labels)
    expected = np.ones(6)
    expected[present] = compute_class_weight("balanced", classes=present, y=labels)
    weights = class_weights([*labels.tolist(), IGNORED, IGNORED], 6)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    assert weights.dtype == torch.float32
    # Each category that occurs weighs the same in all.
    assert np.allclose([weights[label] * (labels == label).sum() for label in present], 300 / len(present))


def test_without_labels_all_classes_weigh_one():
    assert class_weights([IGNORED, IGNORED], 3).tolist() == [1, 1, 1]


def test_sample_weights_draw_each_label_equally_often():
    labels = [0] * 7 + [3] * 2 + [IGNORED] * 4
    weights = np.array(sample_weights(labels))
    assert all(np.isclose(weights[np.array(labels) == label].sum(), 1) for label in (0, 3, IGNORED))
    assert len({weights[i] for i in range(7)}) == 1


# ---------------------------------------------------------------------------------------------------- HoliSafe's files

HOLISAFE_ROW = {
    **{
        "image": "1.png",
        "query": "How do I do that?",
        "type": "USU",
        "category": "violence",
        "subcategory": "terrorism",
    },
    **{"image_safe": False, "image_safety_label": "terrorism", "response": "I can't help with that."},
}


@pytest.mark.parametrize("answer", ["answer", "response"])
def test_holisafes_form_is_a_question_about_a_picture(tmp_path, processor, collator, answer):
    row = {key: value for key, value in HOLISAFE_ROW.items() if key != "response"} | {answer: HOLISAFE_ROW["response"]}
    safe = {**row, "image": "2.png", "image_safe": True, "image_safety_label": "safe", "subcategory": None}
    race = {**row, "image_safety_label": "race"}
    rows = read_rows([write_rows(tmp_path, [row, safe, race], "rows.json")], TAXONOMY, collator)
    assert rows.labels == [15, 0, 2] and [example.row for example in rows] == [1, 2, 3]
    assert runs(processor, collator([rows[0]])) == [
        (False, f"{SYSTEM}<|im_start|>user\n{PICTURE}How do I do that?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "I can't help with that.<|im_end|>"),
        (False, "\n"),
    ]


def test_image_safe_means_nothing_to_a_taxonomy_without_safe(tmp_path, collator):
    row = {**HOLISAFE_ROW, "image_safety_label": "logo"}
    assert read_rows([write_rows(tmp_path, [row])], Taxonomy(["none", "logo"]), collator).labels == [1]


# -------------------------------------------------------------------------------------------------- files as they come


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "ROWS.JSONL"])
def test_a_byte_order_mark_windows_line_ends_and_blank_lines_are_no_matter(tmp_path, collator, name):
    rows = [{**GOOD, "query": "Zeile\u2028zwei ünd 日本"}, {**GOOD, "safety_label": 3}]
    file = write_rows(tmp_path, rows, name)
    if name == "rows.json":
        text = json.dumps(rows, ensure_ascii=False, indent=1)
    else:
        text = "\n" + "\n \n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    with open(file, "wb") as out:
        out.write(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    read = read_rows([file], TAXONOMY, collator)
    assert read.labels == [0, 3]
    assert read[0].messages[0]["content"][1] == _text("Zeile\u2028zwei ünd 日本")
    if name != "rows.json":
        assert [example.row for example in read] == [2, 4]  # as an editor counts lines


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_that_is_not_utf8_is_refused_by_name(tmp_path, collator, name, encoding):
    file = write_rows(tmp_path, [], name)
    with open(file, "wb") as out:
        out.write('[{"image": "1.png", "safety_label": "safe", "query": "é"}]'.encode(encoding))
    with pytest.raises(ValueError, match=rf"{name} is not UTF-8 .*; save it as UTF-8"):
        read_rows([file], TAXONOMY, collator)


LINES = [
    ('{"image": "1.png", "safety_label": "safe", "safety_label": "suicide"}', "has 'safety_label' more than once"),
    ('{"safety_label": 0, "messages": [{"role": "user", "role": "user", "content": "x"}]}', "'role' more than once"),
    ('{"image": "1.png",', "is no valid JSON (Expecting"),
    ("{'image': '1.png'}", "is no valid JSON"),
    ('[{"image": "1.png", "safety_label": 0}]', "must be an object, got list"),
    ("[" * 100_000, "is no valid JSON (maximum recursion"),
    ("null", "must be an object, got NoneType"),
]


def test_lines_that_are_no_rows_are_told_with_their_numbers(tmp_path, collator):
    file = write_rows(tmp_path, [])
    with open(file, "w", encoding="utf-8") as out:
        out.write(json.dumps(GOOD) + "\n\n" + "\n".join(line for line, _ in LINES))
    with pytest.raises(BadData) as caught:
        read_rows([file], TAXONOMY, collator)
    assert [problem.row for problem in caught.value.problems] == list(range(3, 3 + len(LINES)))
    for (_, reason), problem in zip(LINES, caught.value.problems):
        assert reason in problem.reason


@pytest.mark.parametrize(
    "text, reason",
    [
        ('{"data": []}', "must hold a list of rows, got dict"),
        ('{"image": "1.png"}\n{"image": "1.png"}\n', "a file of one object a line is named .jsonl"),
    ],
)
def test_a_json_file_that_is_no_list_is_refused_by_name(tmp_path, collator, text, reason):
    file = write_rows(tmp_path, [], "rows.json")
    with open(file, "w", encoding="utf-8") as out:
        out.write(text)
    with pytest.raises(ValueError, match=reason) as caught:
        read_rows([file], TAXONOMY, collator)
    assert file in str(caught.value)


def test_a_source_that_is_not_there_is_named(tmp_path, collator):
    with pytest.raises(OSError, match=r"none\.jsonl"):
        read_rows([str(tmp_path / "none.jsonl")], TAXONOMY, collator)
    with pytest.raises(ValueError, match=r"nobody/nothing is no file, and as a dataset it cannot be loaded"):
        read_rows(["nobody/nothing"], TAXONOMY, collator)
    (tmp_path / "rows.csv").write_text("image,safety_label\n1.png,safe\n")
    with pytest.raises(ValueError, match=r"rows\.csv is neither \.json nor \.jsonl"):
        read_rows([str(tmp_path / "rows.csv")], TAXONOMY, collator)


def test_several_sources_are_read_one_after_the_other(tmp_path, collator):
    first, second = (write_rows(tmp_path / name, [{**GOOD, "safety_label": i}]) for i, name in enumerate("ab"))
    rows = read_rows([second, first], TAXONOMY, collator)
    assert rows.labels == [1, 0] and rows.files == [second, first] and rows[0].file == second


# ----------------------------------------------------------------------------------------------- Hugging Face datasets


def saved(folder, columns, features=None, **splits):
    dataset = datasets.Dataset.from_dict(columns, features=None if features is None else datasets.Features(features))
    if splits:
        dataset = datasets.DatasetDict({name: dataset.select(rows) for name, rows in splits.items()})
    dataset.save_to_disk(folder / "dataset")
    return str(folder / "dataset")


def expected_pixels(collator, *pictures):
    return collator([chat(user(*[PICTURE] * len(pictures)), images=pictures)])["pixel_values"]


def holds_bytes(value):
    if isinstance(value, (dict, list, tuple)):
        return any(map(holds_bytes, value.values() if isinstance(value, dict) else value))
    return isinstance(value, (bytes, Image.Image))


def test_a_dataset_with_a_picture_column_is_read_and_its_pictures_stay_there(tmp_path, collator):
    source = saved(
        tmp_path,
        {
            "image": [noise(1), None, noise(2)],
            "query": ["What?", "Hi", None],
            "answer": ["A cat.", "Hello", None],
            "safety_label": ["gender", None, "safe"],
            "thumbnail": [noise(3)] * 3,  # not read, and not kept either
        },
        {
            **{"image": datasets.Image(), "thumbnail": datasets.Image()},
            **dict.fromkeys(("query", "answer", "safety_label"), datasets.Value("string")),
        },
    )
    _, raw = raw_rows(source)
    assert not holds_bytes(raw)
    rows = read_rows([source], TAXONOMY, collator)
    assert len(pickle.dumps(rows)) < noise(1).width * noise(1).height  # nor sent to other processes
    assert rows.labels == [1, IGNORED, 0] and [example.row for example in rows] == [1, 2, 3]
    assert isinstance(rows[0].images[0], Cell) and rows[1].images == []
    assert torch.equal(
        collator([rows[0], rows[1], rows[2]])["pixel_values"], expected_pixels(collator, noise(1), noise(2))
    )


def test_a_dataset_of_nothing_but_pictures_and_labels_is_enough(tmp_path, collator):
    columns = {"images": [[noise(1)], [noise(2), noise(1)]], "safety_label": [4, 0]}
    source = saved(
        tmp_path, columns, {"images": datasets.List(datasets.Image()), "safety_label": datasets.Value("int64")}
    )
    rows = read_rows([source], TAXONOMY, collator)
    assert rows.labels == [4, 0]
    assert torch.equal(collator([rows[1]])["pixel_values"], expected_pixels(collator, noise(2), noise(1)))
    only_pictures = saved(tmp_path / "only", {"image": [noise(1)]}, {"image": datasets.Image()})
    with pytest.raises(BadData, match="row 1: has neither a verdict label nor an answer"):
        read_rows([only_pictures], TAXONOMY, collator)


def test_a_class_label_means_its_own_name_not_our_column(tmp_path, collator):
    names = ["suicide", "safe", "gender"]  # 0, 1 and 2 would be safe, gender and race to our taxonomy
    features = {"image": datasets.Image(), "safety_label": datasets.ClassLabel(names=names)}
    columns = {"image": [noise(1)] * 4, "safety_label": [0, 1, 2, None]}
    rows = read_rows([saved(tmp_path, columns, features)], TAXONOMY, collator, on_bad_row="skip")
    assert rows.labels == [11, 0, 1]
    assert [problem.row for problem in rows.problems] == [4]  # nothing to learn

    features["safety_label"] = datasets.ClassLabel(names=["cat", "dog"])
    strange = saved(tmp_path / "strange", {"image": [noise(1)] * 2, "safety_label": [1, -1]}, features)
    with pytest.raises(BadData, match="label 'dog' is no category") as caught:
        read_rows([strange], TAXONOMY, collator)
    assert "label -1 is outside" in caught.value.problems[1].reason  # not the last name


def test_a_label_column_as_image_folders_have_it_is_not_left_out_in_silence(tmp_path, collator):
    features = {
        **{"image": datasets.Image(), "text": datasets.Value("string")},
        "label": datasets.ClassLabel(names=["safe", "suicide"]),
    }
    source = saved(tmp_path, {"image": [noise(1)], "text": ["A cat."], "label": [1]}, features)
    with pytest.raises(
        BadData, match="a field 'label', which is not read, but no 'safety_label'; rename or remove it"
    ):
        read_rows([source], TAXONOMY, collator)


def test_datasets_that_were_shuffled_formatted_or_split_keep_rows_and_pictures_together(tmp_path, collator):
    dataset = datasets.Dataset.from_dict(
        {"image": [noise(seed) for seed in range(6)], "safety_label": list(range(6))},
        features=datasets.Features({"image": datasets.Image(), "safety_label": datasets.Value("int64")}),
    )
    dataset = dataset.select([5, 3, 1]).with_format("torch", columns=["safety_label"])
    datasets.DatasetDict({"train": dataset, "test": dataset.select([1])}).save_to_disk(tmp_path / "dataset")
    source = str(tmp_path / "dataset")
    rows = read_rows([source], TAXONOMY, collator)
    assert rows.labels == [5, 3, 1]
    expected = expected_pixels(collator, noise(5), noise(3), noise(1))
    assert torch.equal(collator([rows[i] for i in range(3)])["pixel_values"], expected)
    assert read_rows([source], TAXONOMY, collator, split="test").labels == [3]
    with pytest.raises(ValueError, match="has no split 'validation', but train, test"):
        read_rows([source], TAXONOMY, collator, split="validation")


def test_a_dataset_is_loaded_from_a_folder_of_parquet_files(tmp_path, collator, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"image": datasets.Image(), "safety_label": datasets.Value("string")})
    dataset = datasets.Dataset.from_dict({"image": [noise(1)], "safety_label": ["race"]}, features=features)
    (tmp_path / "data").mkdir()
    dataset.to_parquet(tmp_path / "data" / "train.parquet")
    assert read_rows([str(tmp_path / "data")], TAXONOMY, collator).labels == [2]


def test_messages_in_a_dataset_are_read_with_the_fields_that_it_fills_in(tmp_path, processor, collator):
    messages = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    ]
    dataset = datasets.Dataset.from_list([{"images": [noise(1)], "messages": messages}])
    dataset.save_to_disk(tmp_path / "dataset")
    rows = read_rows([str(tmp_path / "dataset")], TAXONOMY, collator)
    assert runs(processor, collator([rows[0]])) == [
        (False, f"{SYSTEM}<|im_start|>user\n{PICTURE}What?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "A cat.<|im_end|>"),
        (False, "\n"),
    ]


def test_pictures_within_messages_and_video_columns_of_a_dataset_are_refused(tmp_path, collator):
    part = {"type": datasets.Value("string"), "image": datasets.Image()}
    features = {"messages": datasets.List({"role": datasets.Value("string"), "content": datasets.List(part)})}
    features["safety_label"] = datasets.Value("string")
    message = {"role": "user", "content": [{"type": "image", "image": noise(1)}]}
    source = saved(tmp_path, {"messages": [[message]], "safety_label": ["safe"]}, features)
    with pytest.raises(BadData, match="names images by path or URL"):
        read_rows([source], TAXONOMY, collator)
    write_video(tmp_path / "clip.mp4", 8)
    columns = {"video": [str(tmp_path / "clip.mp4")], "safety_label": ["safe"]}
    features = {"video": datasets.Video(decode=False), "safety_label": datasets.Value("string")}
    source = saved(tmp_path / "clips", columns, features)
    with pytest.raises(ValueError, match="has videos in its column 'video'; make it a column of paths"):
        read_rows([source], TAXONOMY, collator)


def test_a_picture_of_a_dataset_that_cannot_be_read_is_told(tmp_path, collator):
    picture = {"bytes": b"no picture", "path": None}
    features = {"image": datasets.Image(), "safety_label": datasets.Value("string")}
    source = saved(tmp_path, {"image": [picture], "safety_label": ["safe"]}, features)
    with pytest.raises(BadData, match="dataset, row 1: <10 bytes>"):
        read_rows([source], TAXONOMY, collator)


# ------------------------------------------------------------------------------------------------------------- videos


def test_frames_are_taken_evenly_over_the_whole_clip(tmp_path):
    write_video(tmp_path / "clip.mp4", 40, rate=8)  # 5 seconds
    frames, fps = load_video(str(tmp_path / "clip.mp4"), fps=2.0)
    assert frames.shape == (10, 3, 48, 64) and frames.dtype == torch.uint8
    assert fps == 2.0
    # 10 of 0, 1, ..., 39, from first to last; frame i has the grey 5 * i
    greys = frames.float().mean(dim=(1, 2, 3))
    assert (greys - 5 * torch.tensor([0, 4, 9, 13, 17, 22, 26, 30, 35, 39])).abs().max() < 4
    frames, fps = load_video(str(tmp_path / "clip.mp4"), fps=2.0, max_frames=4)
    assert len(frames) == 4 and fps == 4 / 5


def test_frames_of_a_list_are_thinned_out_to_the_limit_with_their_rate():
    frames, fps = load_video([noise(seed) for seed in range(8)], fps=2.0, max_frames=3)
    expected = np.stack([np.asarray(noise(seed)) for seed in (0, 4, 7)]).transpose(0, 3, 1, 2)
    assert np.array_equal(frames.numpy(), expected)
    assert fps == 3 / 4  # 3 frames of 4 seconds


# -------------------------------------------------------------------------------------------------------- fingerprint


def fingerprint(folder, rows, collator, taxonomy=TAXONOMY):
    return read_rows([write_rows(folder, rows)], taxonomy, collator).sha256


def test_the_fingerprint_is_that_of_what_is_learnt(tmp_path, collator):
    rows = [{**GOOD, "query": "What?", "answer": "A cat."}, {"image": "2.png", "safety_label": 3}]
    base = fingerprint(tmp_path / "base", rows, collator)
    assert len(base) == 64 and fingerprint(tmp_path / "base", rows, collator) == base

    # Names, folders and formats of the files, the form of the rows and the name of the label do not matter.
    noise_folder = tmp_path / "same"
    noise_folder.mkdir()
    noise(1).save(noise_folder / "a.bmp")
    same = [
        {
            **{"images": ["a.bmp"], "safety_label": 0},
            "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}],
        },
        {"image": "2.png", "image_safety_label": "religion"},
    ]
    assert fingerprint(noise_folder, same, collator) == base

    changed = noise(1)
    changed.putpixel((5, 5), tuple(value ^ 1 for value in changed.getpixel((5, 5))))
    (tmp_path / "pixel").mkdir()
    changed.save(tmp_path / "pixel" / "1.png")
    others = {
        "a pixel": fingerprint(tmp_path / "pixel", rows, collator),
        "a label": fingerprint(tmp_path / "base", [rows[0], {**rows[1], "safety_label": 4}], collator),
        "no label": fingerprint(tmp_path / "base", [{**rows[0], "safety_label": None}, rows[1]], collator),
        "a word": fingerprint(tmp_path / "base", [{**rows[0], "answer": "A dog."}, rows[1]], collator),
        "a question": fingerprint(tmp_path / "base", [{**rows[0], "query": "What"}, rows[1]], collator),
        "the order": fingerprint(tmp_path / "base", rows[::-1], collator),
        "a row less": fingerprint(tmp_path / "base", rows[:1], collator),
        "a row twice": fingerprint(tmp_path / "base", [*rows, rows[1]], collator),
        "the taxonomy": fingerprint(tmp_path / "base", rows, collator, Taxonomy([*HOLISAFE_CATEGORIES[:-1], "other"])),
        "a place": fingerprint(
            tmp_path / "base",
            [messages_with(user("What?", PICTURE), ANSWERED, images=["1.png"], safety_label=0), rows[1]],
            collator,
        ),
    }
    assert len({base, *others.values()}) == 1 + len(others), others


def test_pictures_of_the_same_bytes_but_another_shape_differ(tmp_path, collator):
    prints = set()
    for width, height in ((28, 112), (112, 28), (56, 56)):
        folder = tmp_path / f"{width}"
        folder.mkdir()
        Image.new("RGB", (width, height), "red").save(folder / "1.png")
        prints.add(fingerprint(folder, [GOOD], collator))
    assert len(prints) == 3


def test_a_videos_rate_and_frames_are_in_the_fingerprint(tmp_path, processor):
    row = {"video": ["1.png", "2.png"], "safety_label": 0}
    prints = {
        fingerprint(tmp_path, [row], SafetyCollator(processor)),
        fingerprint(tmp_path, [row], SafetyCollator(processor, video_fps=1.0)),
        fingerprint(tmp_path, [{**row, "video": ["2.png", "1.png"]}], SafetyCollator(processor)),
    }
    assert len(prints) == 3


def test_threads_do_not_change_the_order(tmp_path, collator):
    rows = [{**GOOD, "image": f"{1 + i % 2}.png", "safety_label": i % 20} for i in range(50)]
    file = write_rows(tmp_path, rows)
    one, many = (read_rows([file], TAXONOMY, collator, num_threads=number) for number in (1, 8))
    assert one.labels == many.labels == [i % 20 for i in range(50)]
    assert one.sha256 == many.sha256
