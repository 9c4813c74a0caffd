"""Each benchmark in its own layout: what its rows become."""

import json

import datasets
import pytest
from layouts import (
    HOLISAFE_ROWS,
    SCENARIOS,
    UNSAFEBENCH_ROWS,
    png,
    with_pictures,
    write_holisafe,
    write_jsonl,
    write_llavaguard,
    write_mm_safetybench,
    write_picture,
    write_siuo,
    write_vlguard,
    write_vlsbench,
)

from safeqwen import CATEGORIES
from safeqwen.evaluation.benchmarks import BENCHMARKS, load_benchmark
from safeqwen.pictures import read_image


NAMES = [category.name for category in CATEGORIES]


@pytest.fixture(autouse=True)
def copies_of_parquet_files_stay_here(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def load(name, data, **settings):
    return load_benchmark(name, data, **{"categories": NAMES, **settings})


def table_of(benchmark):
    """id -> (unsafe, category, type, expected) of the rows, none of which may be an error."""
    rows = list(benchmark.examples)
    assert [row.error for row in rows] == [None] * len(rows)
    for row in rows:
        assert read_image(row.image)[0].size == (28, 28)
    return {row.id: (row.unsafe, row.category, row.type, row.expected) for row in rows}


# ------------------------------------------------------------------------------------------------------------ HoliSafe

HOLISAFE_TABLE = {
    "5": (False, "safe", "SSS", "answer"),
    "7": (False, "safe", "SSU", "refuse"),  # the pair is harmful, the picture is not
    "8": (False, "safe", "SUU", "refuse"),
    "16": (True, "sexual_content", "USU", "refuse"),
    "27": (True, "gender_discrimination", "UUU", "refuse"),
}


def test_holisafe_is_read_from_its_file_beside_its_images(tmp_path):
    benchmark = load("holisafe-bench", write_holisafe(tmp_path / "bench"))
    assert table_of(benchmark) == HOLISAFE_TABLE
    row = list(benchmark.examples)[3]
    assert row.image == tmp_path / "bench" / "images" / "hate" / "gender" / "gender_16.jpg"
    assert row.image_name == "images/hate/gender/gender_16.jpg"
    assert benchmark.root / row.image_name == row.image
    assert row.query == "Question 16?" and row.their_category == "sexual_content"
    assert row.metadata == {"category": "hate", "subcategory": "gender", "image_safety_label": 17}
    assert benchmark.num_rows_published == {"on the Hub": 4031, "in the paper": 4163}
    assert (benchmark.name, benchmark.split, benchmark.has_queries) == ("holisafe-bench", "test", True)


def test_holisafe_is_read_from_the_file_itself_and_by_any_spelling_of_its_name(tmp_path):
    file = write_holisafe(tmp_path) / "holisafe_bench.json"
    assert table_of(load("HoliSafe_Bench", str(file))) == HOLISAFE_TABLE


@pytest.mark.parametrize("kind", ["parquet folder", "parquet file", "saved", "saved splits", "object", "splits"])
def test_holisafe_is_read_from_rows_of_a_dataset(tmp_path, kind):
    rows = [{**row, "image": {"bytes": png(row["id"]), "path": "x.png"}} for row in HOLISAFE_ROWS]
    data = dataset = with_pictures(rows)
    if kind.startswith("parquet"):
        data = tmp_path / "bench"
        (data / "data").mkdir(parents=True)
        dataset.select([0, 1]).to_parquet(data / "data" / "test-00000-of-00002.parquet")
        dataset.select([2, 3, 4]).to_parquet(data / "data" / "test-00001-of-00002.parquet")
        dataset.select([0]).to_parquet(data / "data" / "train-00000-of-00001.parquet")
        if kind == "parquet file":
            dataset.to_parquet(tmp_path / "test-00000-of-00001.parquet")
            data = tmp_path / "test-00000-of-00001.parquet"
    elif kind != "object":
        data = dataset if kind == "saved" else datasets.DatasetDict(test=dataset, train=dataset.select([0]))
        if kind.startswith("saved"):
            data.save_to_disk(tmp_path / "bench")
            data = tmp_path / "bench"
    benchmark = load("holisafe-bench", data)
    assert table_of(benchmark) == HOLISAFE_TABLE
    assert [row.image for row in benchmark.examples] == [png(row["id"]) for row in HOLISAFE_ROWS]
    assert benchmark.split == "test" and benchmark.root is None


def test_holisafes_label_is_a_column_of_holisafe_whatever_the_models_order(tmp_path):
    benchmark = load("holisafe-bench", write_holisafe(tmp_path), categories=NAMES[::-1])
    assert table_of(benchmark) == HOLISAFE_TABLE


# ---------------------------------------------------------------------------------------------------- other benchmarks


def test_unsafebench_is_read_from_the_hubs_parquet_files(tmp_path):
    dataset = with_pictures(UNSAFEBENCH_ROWS)
    (tmp_path / "data").mkdir()
    dataset.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    benchmark = load("unsafebench", tmp_path)
    assert table_of(benchmark) == {
        "row 1": (False, "safe", None, None),
        "row 2": (True, None, None, None),
        "row 3": (True, "sexual_content", None, None),
        "row 4": (True, None, None, None),
    }
    rows = list(benchmark.examples)
    assert [row.their_category for row in rows] == ["Hate", "Hate", "Sexual", "Self-harm"]
    assert "two of ours" in rows[3].metadata["no counterpart"] and "no counterpart" not in rows[0].metadata
    assert rows[0].metadata == {"source": "Laion5B", "text": "a sign"}
    assert not benchmark.has_queries and benchmark.num_rows_published["test"] == 2037


def test_vlguard_has_a_row_for_each_question(tmp_path):
    benchmark = load("vlguard", write_vlguard(tmp_path))
    assert table_of(benchmark) == {
        "08346/safe_instruction": (False, "safe", None, "answer"),
        "08346/unsafe_instruction": (False, "safe", None, "refuse"),
        "42605/instruction": (True, "sexual_content", None, "refuse"),
        "Ads_333539/instruction": (True, None, None, "refuse"),
    }
    rows = list(benchmark.examples)
    assert [row.query for row in rows] == ["What is shown?", "Who is that?", "Share this.", "Make it believable."]
    assert [row.metadata["subset"] for row in rows] == ["safe_safes", "safe_unsafes", "unsafes", "unsafes"]
    assert rows[2].their_category == "risky behavior/sexually explicit"
    assert rows[0].image_name == "test/hatefulMemes/08346.png"


def test_vlguards_other_split_has_files_of_its_own(tmp_path):
    benchmark = load("vlguard", write_vlguard(tmp_path, split="train"), split="train")
    assert benchmark.split == "train" and len(benchmark.examples) == 4


def test_llavaguard_has_no_label_under_a_rewritten_policy(tmp_path):
    benchmark = load("llavaguard", write_llavaguard(tmp_path))
    assert table_of(benchmark) == {
        "smid_1": (False, "safe", None, None),
        "real_2": (True, "animal_abuse", None, None),
        "real_2_v2": (None, None, None, None),
        "real_3": (False, "safe", None, None),
        "real_4": (True, None, None, None),
    }
    rows = list(benchmark.examples)
    assert rows[0].image_name == "images/smid 1.jpg"
    assert rows[0].metadata == {"rating": "Safe", "rationale": "Nothing, really."}
    assert rows[2].metadata["rating"] == "Safe" and rows[2].their_category is None


def test_safeeditbench_labels_a_picture_by_policy(tmp_path):
    levels = [f"Policy L{level}" for level in range(1, 6)]
    rows = [
        {"image_path": "test_images/1.jpg", "safety_label": 0, "policy_name": 0, "policy": "All is allowed."},
        {"image_path": "test_images/1.jpg", "safety_label": 1, "policy_name": 4, "policy": "Nothing is."},
    ]
    dataset = with_pictures(
        rows,
        safety_label=datasets.ClassLabel(names=["safe", "unsafe"]),
        policy_name=datasets.ClassLabel(names=levels),
    )
    dataset.to_parquet(tmp_path / "test-00000-of-00001.parquet")
    benchmark = load("safeeditbench", tmp_path, split="Policy L1")
    assert table_of(benchmark) == {"row 1": (False, "safe", None, None)} and benchmark.split == "Policy L1"
    benchmark = load("safeeditbench", tmp_path, split="Policy L5")
    assert table_of(benchmark) == {"row 2": (True, None, None, None)}
    (row,) = benchmark.examples
    assert row.metadata["policy_name"] == "Policy L5" and row.image_name == "test_images/1.jpg"
    for split in (None, "test"):  # one figure over rows that contradict each other would look like a result
        with pytest.raises(ValueError, match="name one of them as the split, 'Policy L1'"):
            load("safeeditbench", tmp_path, split=split)


def test_a_folder_a_class_takes_the_models_names_and_holisafes(tmp_path):
    for name in ("safe/a.png", "gender/deep/b.png", "suicide/c.png", "suicide/.hidden", ".git/d.png"):
        write_picture(tmp_path / name)
    assert table_of(load("folder", tmp_path)) == {
        "gender/deep/b.png": (True, "gender_discrimination", None, None),
        "safe/a.png": (False, "safe", None, None),
        "suicide/c.png": (True, "suicide", None, None),
    }


def test_rows_of_ones_own_say_what_they_know(tmp_path):
    write_picture(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "unsafe": False},
        {"image": "./a.png", "category": "gender", "id": "x"},
        {"image": "a.png", "unsafe": True, "query": "Who?", "expected": "refuse", "metadata": {"who": "me"}},
        {"image": "a.png", "query": "What?", "type": "SSS", "unsafe": None},
        {"image": str(tmp_path / "a.png"), "category": "safe", "type": "SSU"},
    ]
    benchmark = load("jsonl", write_jsonl(tmp_path / "rows.jsonl", rows))
    assert table_of(benchmark) == {
        "line 1": (False, "safe", None, None),
        "x": (True, "gender_discrimination", None, None),
        "line 3": (True, None, None, "refuse"),
        "line 4": (None, None, "SSS", "answer"),
        "line 5": (False, "safe", "SSU", "refuse"),
    }
    assert benchmark.has_picture_labels and benchmark.has_queries
    assert list(benchmark.examples)[2].metadata == {"who": "me"}


@pytest.mark.parametrize("name", ["own.jsonl", "./own.jsonl", "../here/own.jsonl"])
def test_data_may_be_named_from_where_one_stands(tmp_path, monkeypatch, name):
    write_picture(tmp_path / "here" / "a.png")
    write_jsonl(tmp_path / "here" / "own.jsonl", [{"image": "a.png", "unsafe": True}])
    monkeypatch.chdir(tmp_path / "here")
    (row,) = load("jsonl", name).examples
    assert row.error is None and row.image == tmp_path / "here" / "a.png" and row.image_name == "a.png"


def test_rows_of_ones_own_without_labels_are_for_answers_alone(tmp_path):
    write_picture(tmp_path / "a.png")
    benchmark = load("jsonl", write_jsonl(tmp_path / "r.jsonl", [{"image": "a.png", "query": "Why?"}]))
    assert not benchmark.has_picture_labels and benchmark.has_queries
    assert benchmark.directions == {"attack_success_rate": "lower"}


# ------------------------------------------------------------------------------------------------------- answers alone


@pytest.mark.parametrize(
    ("split", "question"),
    [(None, "The bottom of the image shows"), ("SD", "The image shows"), ("TYPO", "The bottom of the image shows")],
)
def test_mm_safetybench_is_read_from_its_questions_and_images(tmp_path, split, question):
    benchmark = load("mm-safetybench", write_mm_safetybench(tmp_path), split=split)
    kind = split or "SD_TYPO"
    assert table_of(benchmark) == {
        f"{scenario}/{kind}/{number}": (None, None, None, "refuse") for scenario in SCENARIOS for number in range(2)
    }
    row = list(benchmark.examples)[0]
    assert row.query.startswith(question) and row.their_category == "01-Illegal_Activitiy"
    assert row.image_name == f"imgs/01-Illegal_Activitiy/{kind}/0.jpg"
    assert not benchmark.has_picture_labels and benchmark.split == kind


def test_mm_safetybench_is_read_from_the_hubs_files(tmp_path):
    for scenario in SCENARIOS:
        folder = tmp_path / "data" / scenario.split("-")[1]
        folder.mkdir(parents=True)
        with_pictures([{"id": "0", "question": "Why?"}]).to_parquet(folder / "SD.parquet")
    benchmark = load("mm-safetybench", tmp_path, split="SD")
    assert table_of(benchmark) == {f"{scenario}/SD/0": (None, None, None, "refuse") for scenario in SCENARIOS}


@pytest.mark.parametrize(("name", "write"), [("siuo", write_siuo), ("vlsbench", write_vlsbench)])
def test_siuo_and_vlsbench_have_no_labels_of_pictures(tmp_path, name, write):
    benchmark = load(name, write(tmp_path))
    assert list(table_of(benchmark).values()) == [(None, None, None, "refuse")]
    row = list(benchmark.examples)[0]
    assert row.their_category in ("self-harm", "Illegal Activity")
    assert row.metadata.get("safety_warning", "The user stands on a roof.") == "The user stands on a roof."
    assert not benchmark.has_picture_labels and "no label" in benchmark.label_rule


def test_vlsbench_is_read_from_rows_of_a_dataset():
    row = {"instruction_id": 0, "instruction": "How?", "image_path": "imgs/0.png", "category": "Hate"}
    benchmark = load("vlsbench", with_pictures([row]))
    assert table_of(benchmark) == {"0": (None, None, None, "refuse")}


# ----------------------------------------------------------------------------------------------------------------- all


def test_rows_can_be_counted_and_gone_through_twice_and_changed_by_nobody(tmp_path):
    benchmark = load("holisafe-bench", write_holisafe(tmp_path))
    first = list(benchmark.examples)
    for row in first:
        row.unsafe, row.error = None, "spoilt"
        row.metadata.clear()
    assert table_of(benchmark) == HOLISAFE_TABLE and len(benchmark.examples) == 5
    assert all(row.metadata for row in benchmark.examples)


def test_facts_are_json_and_tell_nothing_of_this_machine(tmp_path):
    facts = load("holisafe-bench", write_holisafe(tmp_path)).facts()
    assert str(tmp_path) not in json.dumps(facts)
    assert facts["title"] == "HoliSafe-Bench" and "2506.04704" in facts["source"]
    assert facts["directions"]["auroc"] == "higher" and facts["directions"]["brier"] == "lower"


def test_each_benchmark_has_a_module_that_states_its_facts():
    import importlib

    for name in BENCHMARKS:
        module = importlib.import_module(f"safeqwen.evaluation.benchmarks.{name.replace('-', '_')}")
        for fact in ("title", "version", "source", "licence", "label_rule"):
            assert module.FACTS[fact], (name, fact)


def test_ten_thousand_rows_are_checked_without_opening_a_picture(tmp_path):
    write_holisafe(tmp_path, [{**HOLISAFE_ROWS[0], "id": number} for number in range(10_000)])
    (tmp_path / "images" / HOLISAFE_ROWS[0]["image"]).write_bytes(b"no picture")
    benchmark = load("holisafe-bench", tmp_path)
    assert len(benchmark.examples) == 10_000 and all(row.error is None for row in benchmark.examples)
