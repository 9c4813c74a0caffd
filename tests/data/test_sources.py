"""Files and Hugging Face datasets, as they come."""

import json
import pickle

import datasets
import pytest
import torch
from chats import GOOD, PICTURE, SYSTEM, TAXONOMY, chat, noise, pieces, text_part, user, write_rows, write_video
from PIL import Image

from safeqwen.data.rows import IGNORED, BadData, read_rows
from safeqwen.data.sources import Cell, raw_rows


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
    assert read[0].messages[0]["content"][1] == text_part("Zeile\u2028zwei ünd 日本")
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
    ('{"image": "1.png",', "is no valid JSON (Expecting"),
    ("{'image': '1.png'}", "is no valid JSON"),
    ('[{"image": "1.png", "safety_label": 0}]', "must be an object, got list"),
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
    with pytest.raises(OSError, match=r"none\.jsonl cannot be read: there is no such file$"):
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
    assert pieces(processor, collator([rows[0]])) == [
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
