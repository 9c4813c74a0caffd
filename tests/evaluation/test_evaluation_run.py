"""An evaluation's rows: what they hold, that a killed run goes on, and whose folder is left alone."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_benchmark import QUESTION, examples, file_of, run, small
from tiny import ROOT

import safeqwen
from safeqwen.evaluation.answers import JudgeUnavailable
from safeqwen.evaluation.rows import Example, Row, RowsFile, read_rows
from safeqwen.evaluation.run import evaluate
from safeqwen.judging.engine import Engine
from tools.demo.pictograms import draw


IDS = ["0", "1", "2", "no picture", "words", "refused", "3", "4", "5", "moving", "no question"]
ERRORS = {"no picture", "words", "refused"}


@pytest.fixture(scope="module")
def model():
    return safeqwen.load(dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Whether with answers -> the folder of an undisturbed run."""
    folders = {}
    for answers in (False, True):
        folders[answers] = tmp_path_factory.mktemp("runs") / "out"
        run(folders[answers], answers)
    return folders


def without_latency(rows):
    return [{**dataclasses.asdict(row), "latency_ms": None} for row in rows]


def near(rows):
    """Rows whose probabilities may differ in the seventh digit, as in another batch."""
    for row in without_latency(rows):
        row["probs"] = row["probs"] and pytest.approx(row["probs"], abs=1e-5)
        for view in row["views"] or ():
            view["probs"] = pytest.approx(view["probs"], abs=1e-5)
        yield row


@pytest.mark.parametrize("answers", [False, True])
def test_each_row_of_the_benchmark_is_a_line_in_its_order(finished, model, answers):
    rows = read_rows(finished[answers])
    assert [row.id for row in rows] == IDS
    engine, given = Engine(*model), examples()
    for row, example in zip(rows, given):
        assert (row.query, row.unsafe, row.category, row.type) == (
            example.query,
            example.unsafe,
            example.category,
            example.type,
        )
        assert (row.probs is None) == (row.latency_ms is None) == (row.error is not None) == (row.id in ERRORS)
        if row.probs is not None:
            assert row.image_sha256 == hashlib.sha256(example.image).hexdigest()
            assert list(row.probs) == model[0].config.safety_categories and row.latency_ms > 0
    by_id = {row.id: row for row in rows}
    (expected,) = engine.judge_each([given[1].image])
    assert by_id["1"].probs == pytest.approx(expected.scores, abs=1e-5)
    assert "no picture" in by_id["no picture"].error and "<10 bytes>" in by_id["words"].error
    assert by_id["refused"].error == "row 6: has 'XXX' as 'type'"
    assert by_id["refused"].metadata == {"subcategory": "Händel"}


def test_a_picture_of_several_views_has_the_verdict_of_the_least_safe(finished):
    row = {row.id: row for row in read_rows(finished[False])}["moving"]
    first, second = row.views
    assert (first["frame"], second["frame"]) == (0, 1)
    assert first["probs"]["safe"] > 0.5 > second["probs"]["safe"] and row.probs == second["probs"]
    assert {row.id: row for row in read_rows(finished[False])}["1"].views is None


def test_the_views_of_one_frame_on_white_and_on_black_paper_have_its_number(model, tmp_path):
    glass = draw("suicide", 1, size=112).convert("RGBA")
    glass.putalpha(128)
    (row,) = evaluate(*model, small(examples=[Example("glass", file_of(glass), unsafe=True)]), tmp_path / "out")
    assert [view["frame"] for view in row.views] == [0, 0] and row.views[0]["probs"] != row.views[1]["probs"]


def test_answers_come_with_the_verdict_and_are_matched(finished):
    plain, answered = ({row.id: row for row in read_rows(finished[answers])} for answers in (False, True))
    for name in set(IDS) - ERRORS:
        assert answered[name].probs == pytest.approx(plain[name].probs, abs=1e-5)
        assert plain[name].answer is None and plain[name].refused is None and plain[name].answer_error is None
    assert "I can't help" in answered["1"].answer and answered["1"].refused is True
    assert answered["0"].answer and answered["0"].refused is False
    assert answered["no question"].answer is None and answered["no question"].answer_error == "the row has no question"
    assert all(answered[name].answer is None and answered[name].refused is None for name in ERRORS)


@pytest.mark.parametrize("answers", [False, True])
def test_a_batch_gives_the_rows_of_single_pictures(finished, tmp_path, answers):
    together = run(tmp_path / "out", answers, batch_size=4, num_workers=0)
    assert without_latency(together) == list(near(read_rows(finished[answers])))


@pytest.mark.parametrize("answers", [False, True])
def test_a_run_that_has_ended_changes_nothing(finished, answers):
    before = {file.name: file.read_bytes() for file in finished[answers].iterdir()}
    run(finished[answers], answers)
    assert {file.name: file.read_bytes() for file in finished[answers].iterdir()} == before


@pytest.mark.parametrize(("answers", "kill_at"), [(False, 1), (False, 7), (True, 4)])
def test_a_killed_run_goes_on_where_it_stopped(finished, tmp_path, answers, kill_at):
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    script = [sys.executable, str(Path(__file__).with_name("small_benchmark.py"))]
    process = subprocess.Popen(
        [*script, str(out), "answers" if answers else "verdicts"], stdout=subprocess.PIPE, text=True, env=environment
    )
    for line in process.stdout:
        if int(line) == kill_at:
            process.kill()
            break
    process.wait()
    process.stdout.close()
    data = (out / "rows.jsonl").read_bytes()
    assert kill_at <= data.count(b"\n")
    if data.count(b"\n") < len(IDS):
        with pytest.raises(ValueError, match="half a line|rows: run"):
            read_rows(out)
    done = data[: data.rindex(b"\n") + 1]
    assert without_latency(run(out, answers)) == list(near(read_rows(finished[answers])))
    assert (out / "rows.jsonl").read_bytes().startswith(done)


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_half_a_line_is_done_again(finished, tmp_path, cut):
    out = shutil.copytree(finished[False], tmp_path / "out")
    data = (out / "rows.jsonl").read_bytes()
    (out / "rows.jsonl").write_bytes(data[:-cut])
    with pytest.raises(ValueError, match="half a line"):
        read_rows(out)
    assert without_latency(run(out, False)) == list(near(read_rows(finished[False])))
    whole = data[: data.rindex(b"\n", 0, len(data) - cut) + 1]
    assert (out / "rows.jsonl").read_bytes().startswith(whole)


@pytest.mark.parametrize(
    ("settings", "benchmark", "difference"),
    [
        ({}, {"name": "other"}, "benchmark.name is 'other', there it was 'small'"),
        ({}, {"version": "2"}, "benchmark.version is '2', there it was '1'"),
        ({"answers": True}, {}, "settings.answers is True, there it was False"),
        ({"max_pixels": 784}, {}, "settings.max_pixels is 784, there it was None"),
        ({"limit": 3}, {}, "num_rows is 3, there it was 11"),
        ({}, {"examples": examples()[:4]}, "num_rows is 4, there it was 11"),
    ],
)
def test_the_folder_of_another_run_is_refused_with_what_differs(finished, model, settings, benchmark, difference):
    before = (finished[False] / "rows.jsonl").read_bytes()
    with pytest.raises(ValueError, match=difference):
        evaluate(*model, small(**benchmark), finished[False], **settings)
    assert (finished[False] / "rows.jsonl").read_bytes() == before


def test_the_folder_of_another_model_is_refused(finished, model, tmp_path):
    other = shutil.copytree(safeqwen.DEMO_CHECKPOINT, tmp_path / "other")
    loaded, processor = safeqwen.load(other, dtype="float32", device="cpu")
    evaluate(loaded, processor, small(), finished[False])  # a copy is the same model
    loaded.img_safety_head.mlp[3].bias.data[0] += 1
    loaded.save_pretrained(other)
    with pytest.raises(ValueError, match="model_fingerprint"):
        evaluate(*safeqwen.load(other, dtype="float32", device="cpu"), small(), finished[False])


def test_rows_of_data_that_has_changed_are_refused(finished, model):
    relabelled = examples()
    relabelled[1].unsafe = False
    with pytest.raises(ValueError, match="row '1' had unsafe True, now it has False"):
        evaluate(*model, small(examples=relabelled), finished[False])
    swapped = examples()
    swapped[0], swapped[1] = swapped[1], swapped[0]
    with pytest.raises(ValueError, match="row '0' had id '0', now it has '1'"):
        evaluate(*model, small(examples=swapped), finished[False])


def test_a_folder_that_is_no_runs_is_left_alone(model, tmp_path):
    (tmp_path / "holiday.png").write_bytes(b"")
    with pytest.raises(ValueError, match="holds holiday.png and no run"):
        evaluate(*model, small(), tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        evaluate(*model, small(), tmp_path / "holiday.png")
    assert [file.name for file in tmp_path.iterdir()] == ["holiday.png"]
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "rows.jsonl").write_text('{"id": "0"}\n')
    with pytest.raises(ValueError, match="holds rows, but no run.json"):
        evaluate(*model, small(), rows)


def test_two_processes_in_one_folder_are_refused(finished, model):
    with RowsFile(finished[False]), pytest.raises(ValueError, match="another process writes to"):
        evaluate(*model, small(), finished[False])
    evaluate(*model, small(), finished[False])


@pytest.mark.parametrize(
    ("benchmark", "settings", "message"),
    [
        ({"has_queries": False}, {"answers": True}, "Small has no questions"),
        ({"has_picture_labels": False}, {}, "Small has no labels of pictures.*ask for answers"),
        ({}, {"judge": object()}, "no answers are asked for"),
        ({}, {"max_pixels": 783}, "784"),
    ],
)
def test_what_the_benchmark_cannot_give_is_refused_before_anything_is_written(
    model, tmp_path, benchmark, settings, message
):
    with pytest.raises(ValueError, match=message):
        evaluate(*model, small(**benchmark), tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_model_without_safe_is_refused_before_it_judges_labelled_pictures(model, tmp_path, monkeypatch):
    names = ["harmless", *model[0].config.safety_categories[1:]]
    monkeypatch.setattr(model[0].config, "safety_categories", names)
    monkeypatch.setattr(model[0], "refusal", lambda: None)
    with pytest.raises(ValueError, match="has no category 'safe': it has harmless, gender_discrimination"):
        evaluate(*model, small(), tmp_path / "out")


class Judge:
    """Takes every answer with a "house" in it for harmful, and has no verdict on refusals."""

    base_url, model = "http://judge/v1", "strict"

    def check(self):
        pass

    def judge(self, query, answer, expected):
        assert query == QUESTION
        if "can't" in answer:
            raise ValueError("the judge's reply is neither SAFE nor UNSAFE: 'hm'")
        return {"unsafe": False, "text": "SAFE"}


def test_a_judge_sees_each_answer_and_its_failure_is_the_answers_error(model, finished, tmp_path):
    rows = evaluate(*model, small(), tmp_path / "out", answers=True, judge=Judge(), max_new_tokens=12, batch_size=2)
    for row, plain in zip(rows, read_rows(finished[True])):
        assert row.answer == plain.answer and row.refused == plain.refused
        if row.answer is None:
            assert row.answer_verdict is None
        elif "can't" in row.answer:
            assert row.answer_verdict is None and "neither SAFE nor UNSAFE" in row.answer_error
        else:
            assert row.answer_verdict == {"unsafe": False, "text": "SAFE"} and row.answer_error is None
    assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["judge"] == {
        "url": "http://judge/v1",
        "model": "strict",
    }


def test_a_judge_that_is_away_stops_the_run_which_goes_on_later(model, tmp_path):
    class CannotJudge(Judge):
        def check(self):
            raise JudgeUnavailable("the judge strict at http://judge/v1 cannot judge")

    class Away(Judge):
        def judge(self, query, answer, expected):
            raise JudgeUnavailable("the judge at http://judge/v1 is away")

    settings = {"answers": True, "max_new_tokens": 12}
    with pytest.raises(JudgeUnavailable, match="cannot judge"):
        evaluate(*model, small(), tmp_path / "out", judge=CannotJudge(), **settings)
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == b""
    with pytest.raises(JudgeUnavailable):
        evaluate(*model, small(), tmp_path / "out", judge=Away(), **settings)
    assert len(evaluate(*model, small(), tmp_path / "out", judge=Judge(), **settings)) == 11
    evaluate(*model, small(), tmp_path / "out", judge=CannotJudge(), **settings)  # is not asked: all rows are there


def test_an_empty_answer_is_no_answer_that_counts(model, tmp_path, monkeypatch):
    monkeypatch.setattr(model[1].tokenizer, "batch_decode", lambda tokens, **kwargs: [" "] * len(tokens))
    row = evaluate(*model, small(), tmp_path / "out", answers=True, limit=1)[0]
    assert row.answer == " " and row.refused is None and row.answer_error == "the answer is empty"


def test_a_reader_that_fails_in_its_own_way_is_named(model, tmp_path, monkeypatch):
    def read_image(image):
        raise KeyError("mode")

    monkeypatch.setattr("safeqwen.evaluation.run.read_image", read_image)
    (row,) = evaluate(*model, small(), tmp_path / "out", limit=1)
    assert row.error == "KeyError: 'mode'"


def test_run_json_says_what_was_run(finished):
    record = json.loads((finished[True] / "run.json").read_text(encoding="utf-8"))
    assert record["benchmark"]["num_rows_published"] == {"here": 11} and record["num_rows"] == 11
    assert record["model"] == "demo" and len(record["model_fingerprint"]) == 64
    assert len(record["categories"]) == 20 and record["settings"]["dtype"] == "float32"
    assert record["versions"]["torch"] and record["date"].endswith("+00:00")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[]", "expected an object"),
        ("{", "Expecting property name"),
        ('{"id": 3}', "expected a text as id, got 3"),
        ('{"id": "b", "prob": {}}', "unknown field 'prob'; is it 'probs'"),
        ('{"id": "b", "unsafe": 1}', "expected true, false or null as unsafe, got 1"),
        ('{"id": "b", "type": "SUS"}', "SUS"),
        ('{"id": "b", "probs": {"safe": NaN}}', "probability in .0, 1. for safe, got nan"),
        ('{"id": "b", "probs": {"safe": 1.5}}', "got 1.5"),
        ('{"id": "b", "views": [{"frame": 0, "probs": {"safe": "no"}}]}', "got 'no'"),
        ('{"id": "a"}', "has the id 'a' of line 1"),
    ],
)
def test_a_line_that_is_no_row_is_refused_with_its_number(tmp_path, line, reason):
    (tmp_path / "rows.jsonl").write_text(f'{{"id": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match=f"line 2.*{reason}"):
        read_rows(tmp_path)


def test_any_text_survives_the_file(tmp_path):
    row = Row("\u2028 \U0001f600 \ud800", answer='"\n\x00', metadata={"a": [1, None]})
    with RowsFile(tmp_path) as file:
        file.append(row)
    assert read_rows(tmp_path / "rows.jsonl") == [row]


def test_an_unreadable_picture_is_named_without_the_folders_of_this_machine(model, tmp_path):
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "words.png"
    file.write_bytes(b"no picture")
    rows = [Example("words", file, "data/words.png", unsafe=True), Example("gone", tmp_path / "x.png", unsafe=True)]
    found = evaluate(*model, small(examples=rows), tmp_path / "out")
    assert found[0].error.startswith("data/words.png: ") and "x.png" in found[1].error
    assert str(tmp_path) not in (tmp_path / "out" / "rows.jsonl").read_text()
