"""What benchmarks say of bad rows, files and folders: where, what was expected, and the nearest right name."""

import json
import math
import sys

import datasets
import pytest
from layouts import (
    HOLISAFE_ROWS,
    UNSAFEBENCH_ROWS,
    VLGUARD_ROWS,
    holisafe_row,
    png,
    with_pictures,
    write_holisafe,
    write_json,
    write_jsonl,
    write_llavaguard,
    write_mm_safetybench,
    write_picture,
    write_siuo,
    write_vlguard,
    write_vlsbench,
)

from safeqwen import CATEGORIES
from safeqwen.evaluation.benchmarks import load_benchmark


NAMES = [category.name for category in CATEGORIES]


@pytest.fixture(autouse=True)
def copies_of_parquet_files_stay_here(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def load(name, data, **settings):
    return load_benchmark(name, data, **{"categories": NAMES, **settings})


def errors_of(benchmark):
    """The errors of the rows, each of which has no picture then."""
    rows = list(benchmark.examples)
    assert len(rows) == len(benchmark.examples)
    assert all(row.image is None for row in rows if row.error)
    return [row.error for row in rows]


# ---------------------------------------------------------------------------------------------------------------- rows

BAD_ROWS = [
    ({"image": None}, "row 2: has no picture, expected the path of a file, got None"),
    ({"image": ""}, "row 2: has no picture"),
    ({"image": ["hate/gender/gender_5.jpg"]}, "row 2: has no picture"),
    ({"image": "hate/gender/gender_6.jpg"}, "row 2: there is no file "),
    ({"image": "hate/gender"}, "row 2: there is no file "),
    ({"image": "../holisafe_bench.json"}, "which lies outside of "),
    ({"image": "hate/../../../../etc/passwd"}, "which lies outside of "),
    ({"image": "/etc/passwd"}, "which lies outside of "),
    ({"type": "UUS"}, "row 2: has 'UUS' as 'type'; did you mean 'UUU'?"),
    ({"type": None}, "row 2: has None as 'type'; expected one of SSS, SSU, SUU, USU, UUU"),
    ({"query": " "}, "row 2: has no 'query', expected a text, got ' '"),
    ({"query": "half \ud83d"}, "row 2: has in 'query' half of a character"),
    ({"image_safety_label": 20}, "row 2: label 20 is outside of the taxonomy, whose 20 categories are 0 to 19"),
    ({"image_safety_label": -1}, "row 2: label -1 is outside of the taxonomy"),
    (
        {"image_safety_label": "suicid"},
        "row 2: label 'suicid' is no category of this taxonomy; did you mean 'suicide'?",
    ),
    ({"image_safety_label": None}, "row 2: label None is neither a category's name nor its whole number"),
    ({"image_safety_label": True}, "row 2: label True is neither"),
    ({"image_safety_label": 17}, "row 2: has image_safe true, but image_safety_label 17, which is sexual_content"),
    ({"image_safe": False}, "row 2: has image_safe false, but image_safety_label 0, which is safe"),
    ({"image_safe": "true"}, "row 2: has 'true' as 'image_safe'; expected true or false"),
    ({"image_safe": 1}, "row 2: has 1 as 'image_safe'; expected true or false"),
    ({"id": None}, "row 2: has no 'id', expected a text or a whole number, got None"),
    ({"id": True}, "row 2: has no 'id'"),
]


@pytest.mark.parametrize(("change", "error"), BAD_ROWS)
def test_a_bad_row_is_listed_with_its_reason_and_the_others_are_kept(tmp_path, change, error):
    rows = [HOLISAFE_ROWS[0], holisafe_row(7, "SSU", **change), HOLISAFE_ROWS[4]]
    benchmark = load("holisafe-bench", write_holisafe(tmp_path, rows))
    first, second, third = errors_of(benchmark)
    assert first is None and third is None
    assert second.startswith("row 2: ") and error in second
    assert str(tmp_path) not in second


@pytest.mark.parametrize("name", ["gone.png", "../outside.png", "{root}/outside.png"])
def test_an_error_of_a_row_holds_no_folder_of_this_machine(tmp_path, name):
    write_picture(tmp_path / "data" / "a.png")
    rows = [{"image": "a.png", "unsafe": True}, {"image": name.format(root=tmp_path), "unsafe": True}]
    error = errors_of(load("jsonl", write_jsonl(tmp_path / "data" / "rows.jsonl", rows)))[1]
    assert name.rpartition("/")[2] in error and str(tmp_path) not in error


def test_metadata_that_no_json_can_hold_costs_no_row(tmp_path):
    write_picture(tmp_path / "a.png")
    notes = {"score": math.nan, "deep": [{"far": math.inf}], "note": "kept"}
    (row,) = load(
        "jsonl", write_jsonl(tmp_path / "rows.jsonl", [{"image": "a.png", "unsafe": True, "metadata": notes}])
    ).examples
    assert row.error is None and row.metadata == {"score": None, "deep": [{"far": None}], "note": "kept"}


@pytest.mark.parametrize("name", ["siuo", "vlsbench"])
def test_a_category_that_is_no_text_is_the_error_of_its_row(tmp_path, name):
    root = {"siuo": write_siuo, "vlsbench": write_vlsbench}[name](tmp_path)
    (file,) = root.glob("*.json")
    rows = json.loads(file.read_text())
    rows.append({**rows[0], next(iter(rows[0])): 77, "category": ["self-harm"]})
    file.write_text(json.dumps(rows))
    assert "has no 'category', expected a text, got ['self-harm']" in errors_of(load(name, root))[-1]


@pytest.mark.parametrize("row", ["SSS", None, ["id", 3], 7])
def test_a_row_that_is_no_object_is_listed(tmp_path, row):
    benchmark = load("holisafe-bench", write_holisafe(tmp_path, [HOLISAFE_ROWS[0], row]))
    assert errors_of(benchmark)[1] == f"row 2: must be an object, got {type(row).__name__}"


def test_a_doubled_id_is_an_error_under_an_id_of_its_own(tmp_path):
    ids = [5, 7, 5, "5#2", 5]
    rows = [{**row, "id": number} for row, number in zip(HOLISAFE_ROWS, ids)]
    benchmark = load("holisafe-bench", write_holisafe(tmp_path, rows))
    assert [row.id for row in benchmark.examples] == ["5", "7", "5#3", "5#2", "5#4"]
    told = "has the id '5' of an earlier row; give each row its own"
    assert errors_of(benchmark) == [None, None, told, None, told]


def test_a_link_to_another_folder_is_a_picture_as_in_the_hubs_cache(tmp_path):
    blob = write_picture(tmp_path / "blobs" / "0a1b")
    root = write_holisafe(tmp_path / "snapshot", HOLISAFE_ROWS[:1])
    file = root / "images" / HOLISAFE_ROWS[0]["image"]
    file.unlink()
    file.symlink_to(blob)
    assert errors_of(load("holisafe-bench", root)) == [None]


def test_a_picture_that_a_dataset_lacks_is_told_when_its_row_comes(tmp_path):
    rows = [{**row} for row in UNSAFEBENCH_ROWS]
    rows[1]["image"] = None
    rows[2]["image"] = {"bytes": None, "path": str(tmp_path / "gone.png")}
    rows[3]["image"] = {"bytes": None, "path": str(write_picture(tmp_path / "there.png"))}
    assert errors_of(load("unsafebench", with_pictures(rows))) == [
        None,
        "row 2: has no picture in 'image'",
        "row 3: there is no file 'gone.png'",
        None,
    ]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"safety_label": "unsafe"}, "row 2: has 'unsafe' as 'safety_label'; did you mean 'Unsafe'?"),
        ({"safety_label": None}, "row 2: has None as 'safety_label'; expected one of Safe, Unsafe"),
        ({"category": "Selfharm"}, "which is not in the mapping; did you mean 'Self-harm'?"),
        ({"category": None}, "row 2: has no 'category'"),
    ],
)
def test_unsafebench_tells_labels_and_categories_that_it_does_not_know(change, error):
    rows = [UNSAFEBENCH_ROWS[0], {**UNSAFEBENCH_ROWS[1], **change}]
    first, second = errors_of(load("unsafebench", with_pictures(rows)))
    assert first is None and error in second


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"safe": True}, "has 'instruction' about a safe picture; safe pictures have a safe_instruction and"),
        ({"safe": "no"}, "has 'no' as 'safe'; expected true or false"),
        ({"instr-resp": []}, "has in 'instr-resp' None; expected objects with one of safe_instruction"),
        ({"instr-resp": [{"question": "?"}]}, "has in 'instr-resp' {'question': '?'}; expected objects with one of"),
        ({"harmful_subcategory": "violent"}, "did you mean 'risky behavior/violence'?"),
        ({"harmful_subcategory": None}, "has no 'harmful_subcategory'"),
        ({"image": "../test.json"}, "which lies outside of"),
    ],
)
def test_vlguard_tells_rows_that_contradict_themselves(tmp_path, change, error):
    rows = [VLGUARD_ROWS[2], {**VLGUARD_ROWS[1], **change}]
    first, second = errors_of(load("vlguard", write_vlguard(tmp_path, rows)))
    assert first is None and error in second


def test_llavaguard_tells_lines_that_do_not_fit(tmp_path):
    lines = [
        "a,https://a.example/2.jpg,Safe,NA: None applying,why,O1",
        "b,https://a.example/3.jpg,Unsafe,NA: None applying,why,O1",
        "c,https://a.example/3.jpg,Maybe,O7: Self-Harm,why,O1",
        "d,https://a.example/3.jpg,Unsafe,O7: Selfharm,why,O1",
        "e,https://a.example/4.jpg,Safe,O7: Self-Harm,why,O1",
        "f,https://b.example/4.jpg,Unsafe,O7: Self-Harm,why,O1",
        "g,https://b.example/5.jpg,Unsafe,O7: Self-Harm,why,O1",
        "h,https://b.example/2.jpg,Unsafe",
    ]
    errors = errors_of(load("llavaguard", write_llavaguard(tmp_path, lines)))
    assert errors[0] is None
    for error, told in zip(
        errors[1:],
        [
            "row 2: is an unsafe picture of the category 'NA: None applying', which is for safe ones",
            "row 3: has 'Maybe' as 'rating'; expected one of Safe, Unsafe",
            "row 4: has the category 'O7: Selfharm', which is not in the mapping; did you mean 'O7: Self-Harm'?",
            "row 5: has a url that ends in 4.jpg, as another one does",
            "row 6: has a url that ends in 4.jpg, as another one does",
            "row 7: there is no file ",
            "row 8: has not as many fields as the first line",
        ],
    ):
        assert error.startswith(told)


def test_folders_that_are_links_are_told_and_not_followed(tmp_path):
    write_picture(tmp_path / "elsewhere" / "b.png")
    write_picture(tmp_path / "data" / "safe" / "a.png")
    (tmp_path / "data" / "suicide").symlink_to(tmp_path / "elsewhere")
    told = "suicide: is a link to a folder, which is not followed; put the folder itself here"
    assert errors_of(load("folder", tmp_path / "data")) == [None, told]


def test_a_folder_of_no_class_and_files_in_none_are_told(tmp_path):
    for name in ("safe/a.png", "suicid/b.png", "c.png"):
        write_picture(tmp_path / name)
    assert errors_of(load("folder", tmp_path)) == [
        "c.png: lies in no class's folder; move it into one",
        None,
        "suicid/b.png: has the category 'suicid', which is not in the mapping; did you mean 'suicide'?",
    ]


OWN_ROWS = [
    ({"unsafe": True, "category": "safe"}, "has unsafe true, but the category 'safe'"),
    ({"unsafe": False, "category": "suicide"}, "has unsafe false, but the category 'suicide'"),
    ({"unsafe": "yes"}, "has 'yes' as 'unsafe'; expected true or false"),
    ({"category": "suicidal"}, "has the category 'suicidal', which is not in the mapping; did you mean 'suicide'?"),
    ({"category": 11}, "has no 'category', expected a text, got 11"),
    ({"unsave": True}, "has a field 'unsave'; did you mean 'unsafe'?; fields of your own go into 'metadata'"),
    ({}, "has neither 'unsafe' nor 'category' nor 'query': there is nothing to measure"),
    ({"query": "?", "expected": "deny"}, "has 'deny' as 'expected'; expected one of refuse, answer"),
    ({"query": "?", "type": "sss"}, "has 'sss' as 'type'; did you mean 'SSS'?"),
    ({"unsafe": True, "image": "../b.png"}, "which lies outside of"),
    ({"unsafe": True, "image": "http://a.example/b.png"}, "there is no file"),
    ({"unsafe": True, "metadata": [1]}, "has [1] as 'metadata'; expected an object"),
]


@pytest.mark.parametrize(("fields", "error"), OWN_ROWS)
def test_rows_of_ones_own_that_say_nothing_or_two_things_are_told(tmp_path, fields, error):
    write_picture(tmp_path / "rows" / "a.png")
    write_picture(tmp_path / "b.png")
    rows = [{"image": "a.png", "unsafe": True}, {"image": "a.png", **fields}]
    benchmark = load("jsonl", write_jsonl(tmp_path / "rows" / "own.jsonl", rows))
    first, second = errors_of(benchmark)
    assert first is None and second.startswith("line 2: ") and error in second


def test_a_broken_line_is_told_with_its_number(tmp_path):
    write_picture(tmp_path / "a.png")
    file = tmp_path / "own.jsonl"
    file.write_text('{"image": "a.png", "unsafe": true}\n\n{"image": "a.png",\n', encoding="utf-8")
    first, second = errors_of(load("jsonl", file))
    assert first is None and second.startswith("line 3: is no valid JSON (Expecting")


# --------------------------------------------------------------------------------------------------- files and folders


def test_an_unknown_benchmark_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(ValueError, match="there is no benchmark 'holisave'; did you mean 'holisafe-bench'?"):
        load("holisave", tmp_path)
    with pytest.raises(ValueError, match="there is no benchmark 'q'; expected one of holisafe-bench, unsafebench, "):
        load("q", tmp_path)


def test_nothing_is_downloaded_for_a_name_that_is_no_path():
    with pytest.raises(
        ValueError, match="HoliSafe-Bench: there is no etri-vilab/holisafe-bench; nothing is downloaded"
    ):
        load("holisafe-bench", "etri-vilab/holisafe-bench")


def test_a_wrong_layout_is_refused_with_the_file_that_was_expected(tmp_path):
    with pytest.raises(ValueError) as caught:
        load("holisafe-bench", tmp_path)
    assert str(tmp_path / "holisafe_bench.json") in str(caught.value) and "the folder is empty" in str(caught.value)
    write_picture(tmp_path / "gender_5.jpg")
    with pytest.raises(
        ValueError, match="expected .*holisafe_bench.json and the folder .*images.* found gender_5.jpg"
    ):
        load("holisafe-bench", tmp_path)
    write_json(tmp_path / "holisafe_bench.json", HOLISAFE_ROWS)
    with pytest.raises(ValueError, match="is there, but the folder of its pictures, .*images, is not"):
        load("holisafe-bench", tmp_path)
    with pytest.raises(ValueError, match="expected Parquet files, .* found gender_5.jpg, holisafe_bench.json"):
        load("unsafebench", tmp_path)
    with pytest.raises(ValueError, match="got the file gender_5.jpg"):
        load("vlguard", tmp_path / "gender_5.jpg")
    with pytest.raises(ValueError, match=r"expected .*processed_questions.*01-Illegal_Activitiy.json.*found neither"):
        load("mm-safetybench", tmp_path)
    with pytest.raises(ValueError, match="expected a .jsonl file"):
        load("jsonl", tmp_path)
    with pytest.raises(ValueError, match="expected a folder with a folder for each class, such as .*safe.*1.png"):
        load("folder", tmp_path / "gender_5.jpg")


def test_a_scenario_that_is_missing_is_refused(tmp_path):
    root = write_mm_safetybench(tmp_path)
    (root / "data" / "processed_questions" / "07-Sex.json").unlink()
    with pytest.raises(ValueError, match=r"there is no .*07-Sex.json; all 13 scenarios are needed"):
        load("mm-safetybench", root)


@pytest.mark.parametrize("text", ['[{"id": 5,\n "image": }]', "{'id': 5}", ""])
def test_a_broken_file_is_refused_with_its_line(tmp_path, text):
    root = write_holisafe(tmp_path)
    (root / "holisafe_bench.json").write_text(text)
    with pytest.raises(ValueError, match=r"holisafe_bench.json is no valid JSON \(Expecting .*: line \d column"):
        load("holisafe-bench", root)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_that_is_not_utf8_is_refused(tmp_path, encoding):
    root = write_holisafe(tmp_path)
    (root / "holisafe_bench.json").write_bytes('[{"query": "é"}]'.encode(encoding))
    with pytest.raises(ValueError, match="holisafe_bench.json is not UTF-8 .*; save it as UTF-8"):
        load("holisafe-bench", root)


def test_a_file_that_holds_no_list_is_refused(tmp_path):
    root = write_holisafe(tmp_path)
    write_json(root / "holisafe_bench.json", {"rows": HOLISAFE_ROWS})
    with pytest.raises(ValueError, match="holisafe_bench.json must hold a list of rows, got dict"):
        load("holisafe-bench", root)


def test_a_benchmark_without_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="HoliSafe-Bench: there are no rows in "):
        load("holisafe-bench", write_holisafe(tmp_path, []))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="a folder a class: there are no rows in "):
        load("folder", tmp_path / "empty")


def test_a_benchmark_of_which_no_row_can_be_used_is_refused(tmp_path):
    rows = [{**row, "image": "gone.png"} for row in HOLISAFE_ROWS]
    with pytest.raises(ValueError, match=r"none of the 5 rows in .* can be used; the first: row 1: there is no file"):
        load("holisafe-bench", write_holisafe(tmp_path, rows))


def test_splits_that_are_not_there_are_refused(tmp_path):
    dataset = with_pictures(UNSAFEBENCH_ROWS)
    dataset.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="has no Parquet file of the split 'test', but of train; name"):
        load("unsafebench", tmp_path)
    assert load("unsafebench", tmp_path, split="train").split == "train"
    with pytest.raises(ValueError, match="DatasetDict has no split 'test', but train, val; name one with --split"):
        load("unsafebench", datasets.DatasetDict(train=dataset, val=dataset))
    with pytest.raises(ValueError, match="is the split 'train', not 'test'"):
        load("unsafebench", tmp_path / "train-00000-of-00001.parquet", split="test")
    with pytest.raises(ValueError, match="does not tell splits, so 'train' cannot be had of it"):
        load("holisafe-bench", write_holisafe(tmp_path / "bench"), split="train")
    with pytest.raises(ValueError, match="MM-SafetyBench has no split 'TIPO'; did you mean 'TYPO'?"):
        load("mm-safetybench", tmp_path, split="TIPO")


def test_a_missing_library_is_told_with_its_remedy(monkeypatch, tmp_path):
    data = with_pictures(UNSAFEBENCH_ROWS)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'need the library datasets: pip install -e "\.\[evaluate\]"'):
        load("unsafebench", data)
    assert len(load("holisafe-bench", write_holisafe(tmp_path)).examples) == 5


def test_datasets_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Dataset has no column 'image', but safety_label"):
        load("unsafebench", datasets.Dataset.from_dict({"safety_label": ["Safe"]}))
    with pytest.raises(ValueError, match="list is no path and no datasets.Dataset"):
        load("unsafebench", [1])
    with pytest.raises(ValueError, match="a folder a class: expected a path, got Dataset"):
        load("folder", with_pictures(UNSAFEBENCH_ROWS))
    (tmp_path / "test.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ValueError, match="test.parquet cannot be read as a dataset: "):
        load("unsafebench", tmp_path / "test.parquet")


def test_a_dataset_that_names_files_in_place_of_pictures_is_refused():
    dataset = datasets.Dataset.from_list([{**row, "image": "a.png"} for row in UNSAFEBENCH_ROWS])
    with pytest.raises(ValueError, match="names a file, 'a.png', where the dataset should hold the picture itself"):
        load("unsafebench", dataset)


def test_pictures_of_a_dataset_are_read_one_at_a_time(monkeypatch):
    from safeqwen.data.sources import Cell

    benchmark = load("unsafebench", with_pictures(UNSAFEBENCH_ROWS))
    read = []
    monkeypatch.setattr(Cell, "read", lambda cell: read.append(cell.row) or {"bytes": png(0), "path": None})
    for number, _ in enumerate(benchmark.examples, start=1):
        assert len(read) == number
