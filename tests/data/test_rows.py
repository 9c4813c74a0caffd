"""Rows become examples: what is wrong is said of every row, and the fingerprint is that of what is learnt."""

import pickle
import shutil

import pytest
import torch
from chats import (
    ANSWERED,
    CLIP,
    GOOD,
    PICTURE,
    SAID,
    SYSTEM,
    TAXONOMY,
    assistant,
    chat,
    messages_with,
    noise,
    pieces,
    text_part,
    user,
    write_rows,
    write_video,
)
from PIL import Image

from safeqwen.data.collator import SafetyCollator
from safeqwen.data.rows import IGNORED, BadData, read_rows
from safeqwen.data.taxonomy import Taxonomy
from safeqwen.hub.configuration_safeqwen import HOLISAFE_CATEGORIES


def test_pictures_have_labels_of_their_own_in_the_order_of_the_batch(tmp_path, collator):
    two = {"images": ["1.png", "2.png"], "picture_categories": ["suicide", None]}
    rows = read_rows([write_rows(tmp_path, [two, GOOD, {**two, "safety_label": "suicide"}])], TAXONOMY, collator)
    suicide = TAXONOMY.column("suicide")
    batch = collator(rows.examples)
    assert batch["safety_labels"].tolist() == [IGNORED, 0, suicide]
    assert batch["picture_categories"].tolist() == [suicide, IGNORED, IGNORED, suicide, IGNORED]
    assert batch["picture_rows"].tolist() == [0, 0, 1, 2, 2]
    assert collator(rows.examples[:2])["picture_rows"].tolist() == [0, 0, 1]
    assert rows.verdict_labels == [IGNORED, suicide, IGNORED, 0, suicide, suicide, IGNORED]
    assert "picture_categories" not in collator(rows.examples[1:2])
    assert rows.blank().picture_categories == [IGNORED, IGNORED]
    relabelled = [{**two, "picture_categories": [None, "suicide"]}, GOOD, {**two, "safety_label": "suicide"}]
    assert read_rows([write_rows(tmp_path, relabelled)], TAXONOMY, collator).sha256 != rows.sha256


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
    ({"images": ["1.png", "2.png"], "picture_safety_labels": ["safe", None]}, "name is 'picture_categories' now"),
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
    (
        messages_with({"role": "user", "content": [{**text_part("x"), "image": "1.png"}]}),
        "part of type text with a field",
    ),
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
                "content": [{"type": "image", "image": None, "text": None}, {**text_part("What?"), "image": None}],
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
    assert pieces(processor, collator([first]))[0][1].endswith(
        f"user\n{PICTURE}{PICTURE}Same?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert pieces(processor, collator([second]))[0][1].endswith(f"user\n{CLIP}Hi<|im_end|>\n<|im_start|>assistant\n")
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
    assert pieces(processor, collator([rows[0]])) == [
        (False, f"{SYSTEM}<|im_start|>user\n{PICTURE}How do I do that?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "I can't help with that.<|im_end|>"),
        (False, "\n"),
    ]


def test_image_safe_means_nothing_to_a_taxonomy_without_safe(tmp_path, collator):
    row = {**HOLISAFE_ROW, "image_safety_label": "logo"}
    assert read_rows([write_rows(tmp_path, [row])], Taxonomy(["none", "logo"]), collator).labels == [1]


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
