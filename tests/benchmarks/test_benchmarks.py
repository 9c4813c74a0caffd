"""The arithmetic of the benchmarks, by hand, and that the GPU's suite runs; nothing here depends on how fast."""

import gc
import json
import time

import pytest
import torch
from tiny import ROOT
from torch.testing import assert_close

from benchmarks import cpu, curves, gpu, memory, package, report
from benchmarks.__main__ import main
from benchmarks.figures import FIGURES
from benchmarks.measure import PARTS, fit_exponent, interleave, peak_memory, summarize, time_parts
from benchmarks.models import Models, Workload, build_inputs, build_models


RESULTS = ROOT / "benchmarks" / "results.json"
MEASURED = {"ratio": 0.75, "quartiles": [0.625, 0.875], "num_pairs": 3}


def test_a_figure_is_the_median_of_the_pairs_ratios_not_the_ratio_of_medians():
    assert summarize([(1, 2), (3, 4), (4, 4)]) == {**MEASURED, "ours": 3, "theirs": 4}
    summary = summarize([(1.0, 2.0), (1.0, 1.0), (3.0, 2.0), (20.0, 10.0)])  # ratios 0.5, 1, 1.5, 2
    assert summary["ratio"] == 1.25
    assert summary["quartiles"] == [0.875, 1.625]  # a quarter of three steps of 0.5 from either end
    assert (summary["ours"], summary["theirs"]) == (2.0, 2.0)


def test_runs_are_interleaved_and_every_other_pair_goes_the_other_way_round():
    calls = []

    def runner(name, seconds):
        def run(i):
            calls.append(f"{name}{i}")
            return seconds

        return run

    pairs = interleave(runner("a", 1.0), runner("b", 4.0), num_pairs=3, seconds=0, num_warmups=1)
    assert pairs == [(1.0, 4.0)] * 3
    assert calls == ["a0", "b0", "a0", "b0", "b1", "a1", "a2", "b2"]


def test_with_time_left_there_are_more_pairs_but_not_without_end():
    assert len(interleave(lambda i: 1.0, lambda i: 1.0, num_pairs=3, seconds=600, num_warmups=0)) == 30


def test_the_exponent_is_the_slope_between_logarithms():
    assert fit_exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert fit_exponent([64, 128], [5, 5]) == pytest.approx(0)
    # logs 0, 1, 2 and 0, 1, 3: (-1 * -4/3 + 1 * 5/3) / 2
    assert fit_exponent([1, 10, 100], [1, 10, 1000]) == pytest.approx(1.5)


@pytest.mark.parametrize(
    "value, bar, at_least, met",
    [
        (0.74, 0.75, False, True),
        (0.75, 0.75, False, True),
        (0.76, 0.75, False, False),
        (0.79, 0.8, True, False),
        (0.8, 0.8, True, True),
    ],
)
def test_a_bar_is_met_from_the_right_side(value, bar, at_least, met):
    assert report.make_row("a", "b", "c", "mid", bar, {"ratio": value}, at_least=at_least)["met"] is met


def test_the_table_has_a_line_a_figure_and_a_column_a_model():
    rows = [
        report.make_row("`guard()`", "forward", "1 picture", "mid", 0.75, MEASURED),
        report.make_row("`guard()`", "forward", "1 picture", "demo", 0.75, {"ratio": 0.8}),
        report.make_row("pictures/s", "ready", "300 files", "mid", 0.8, {"ratio": 0.85}, at_least=True),
        report.make_row("help", "", "a process", "mid", 0.5, {"ratio": 0.0621}, unit=" s"),
        report.make_row("other", "", "", "demo", 0.5, {"ratio": 0.9}, judged=False),
        report.make_row("one more", "", "", "mid", None, {"ratio": 0.3}),
    ]
    assert report.figures_table(rows).splitlines() == [
        "| figure | against | on | must reach | mid | demo |",
        "|---|---|---|---|---|---|",
        "| `guard()` | forward | 1 picture | <= 0.75 | 0.750 (0.625-0.875) | 0.800 missed |",
        "| pictures/s | ready | 300 files | >= 0.80 | 0.850 |  |",
        "| help |  | a process | <= 0.50 s | 0.062 s |  |",
        "| other |  |  | <= 0.50 |  | 0.900, no bar |",
        "| one more |  |  |  | 0.300 |  |",
    ]


def test_results_are_put_between_the_marks_of_a_readme_and_nowhere_else(tmp_path):
    readme = tmp_path / "README.md"
    start, end = report.MARKS
    readme.write_text(f"before\n{start}\nold\n{end}\nafter\n")
    for _ in range(2):
        report.put_into_readme("| 1\\2 |\n", readme)
        assert readme.read_text() == f"before\n{start}\n| 1\\2 |\n{end}\nafter\n"
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="no place for the results"):
        report.put_into_readme("new\n", readme)


@pytest.mark.skipif(not RESULTS.exists(), reason="nothing was measured yet")
def test_the_page_of_benchmarks_shows_the_results():
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    start, end = report.MARKS
    shown = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").split(f"{start}\n")[1].split(end)[0]
    assert not results["dry"] and shown == report.markdown(results)


def test_all_models_have_the_same_weights_and_say_the_same():
    models = build_models("tiny")
    guarded = dict(models.guarded.named_parameters())
    inputs = build_inputs(Workload(prompts=2, pictures=2, picture_tokens=8))
    with torch.no_grad():
        output = models.guarded(**inputs, do_safety=True)
        assert torch.equal(models.stock(**inputs).logits, output.logits)
        assert torch.equal(models.card(**inputs, do_safety=True).img_safety_probs, output.img_safety_probs)
    for twin in (models.stock, models.card):
        for name, parameter in twin.named_parameters():
            assert parameter.data_ptr() == guarded[name].data_ptr(), name


def test_prompts_hold_what_their_workload_says():
    inputs = build_inputs(Workload(prompts=3, pictures=2, picture_tokens=128, words_after=7))
    assert inputs["input_ids"].shape == (3, 10 + 2 * (128 + 2) + 7)
    assert inputs["image_grid_thw"].tolist() == [[1, 16, 32]] * 6  # patches; 2 x 2 make a token
    assert inputs["pixel_values"].shape == (6 * 512, 1176)


def test_a_card_forward_keeps_all_hidden_states_and_logits():
    models, workload = build_models("tiny"), Workload(picture_tokens=16)
    inputs = build_inputs(workload)
    with torch.no_grad():
        output = FIGURES["guard"].theirs(models, inputs, workload)
    assert len(output.hidden_states) == 3  # two layers, and what goes into the first
    assert output.logits.shape[:2] == inputs["input_ids"].shape
    assert output.past_key_values.get_seq_length() == inputs["input_ids"].shape[1]
    assert output.img_safety_probs.shape == (1, 20)


def test_the_peak_is_what_was_in_use_at_once_and_none_at_all_is_no_peak():
    def use():
        for _ in range(4):
            torch.ones(2**24)  # 64 MiB each, one at a time

    assert peak_memory(use, "cpu") == 64 * 2**20
    with pytest.raises(RuntimeError, match="no allocation was seen"):
        peak_memory(lambda: None, "cpu")


def test_a_process_of_its_own_finds_the_inputs_and_the_cards_logits():
    peak = memory.measure_in_child("guard", "theirs", "tiny")
    logits = 4 * (10 + 258 + 20) * 640 * 4  # prompts x tokens x vocabulary x bytes
    assert peak > logits + 4 * 1024 * 1176 * 4  # and prompts x patches x values x bytes


def test_a_time_is_told_by_the_parts_of_the_model_that_it_goes_to():
    models = build_models("tiny")
    models.guarded.lm_head.register_forward_hook(lambda *_: time.sleep(0.02))
    inputs = build_inputs(Workload(picture_tokens=16))

    def call():
        time.sleep(0.03)
        models.guarded(**inputs), models.guarded(**inputs)
        models.guarded.model.visual(inputs["pixel_values"], inputs["image_grid_thw"])

    with torch.no_grad():
        parts = time_parts(call, [models.guarded, models.stock], num_runs=1)
    assert parts["logits"] >= 40 and parts["all"] - sum(parts[name] for name in PARTS) >= 30
    assert min(parts.values()) > 0 and not models.stock.lm_head._forward_hooks
    row = report.make_row("guard", "card", "", "mid", 0.5, {"ratio": 1.0})
    row["parts"] = {"ours": {"all": 30.0, "logits": 10.0, "vision tower": 12.5}, "theirs": {"all": 20.0, "logits": 5}}
    ours, theirs = "30.0 ms (logits 10.0, vision tower 12.5, all else 7.5)", "20.0 ms (logits 5.0, all else 15.0)"
    assert report.parts_text([row]).splitlines()[-1] == f"- on mid: guard {ours}; card {theirs}"


def test_questions_on_one_prefill_are_answered_as_those_with_the_picture_each():
    models, workload = build_models("tiny"), Workload(prompts=3, picture_tokens=16, words_after=7)
    inputs = build_inputs(workload)
    inputs["input_ids"][1, -3] = inputs["input_ids"][0, 2]  # another question
    inputs["pixel_values"] = inputs["pixel_values"][:64].repeat(3, 1)
    figure = FIGURES["questions"]
    with torch.no_grad():
        each, once = [FIGURES[key].theirs(models, inputs, workload) for key in ("harms", "questions")]
    assert figure.time_bar is None and not torch.equal(each[0], each[1])
    assert_close(once, each, atol=1e-5, rtol=1e-5)


def test_growth_is_fitted_over_all_sizes_and_over_the_last_step(monkeypatch):
    seconds = {4: 1.0, 8: 4.0}
    monkeypatch.setattr(curves, "WAYS", {"squared": lambda models, inputs, workload: seconds[workload.prompts]})
    monkeypatch.setattr(curves, "SWEEPS", {"prompts": None})
    assert curves.measure_growth(build_models("tiny"), dry=True)["prompts"]["squared"]["exponent"] == pytest.approx(2)
    seconds |= {1: 1.0, 2: 1.0, 4: 1.0}
    sweep = [Workload(prompts=n, picture_tokens=4) for n in (1, 2, 4, 8)]
    monkeypatch.setattr(curves, "SWEEPS", {"prompts": sweep})
    growth = curves.measure_growth(build_models("tiny"))["prompts"]["squared"]
    assert growth["seconds"] == [1.0, 1.0, 1.0, 4.0] and growth["last_exponent"] == pytest.approx(2)
    assert growth["exponent"] == pytest.approx(0.6)  # by powers of 2: (-1.5 * 0 - 0.5 * 0 + 0.5 * 0 + 1.5 * 2) / 5


def test_a_ratio_of_speeds_is_that_of_the_times_the_other_way_round(tmp_path, monkeypatch):
    pairs = [(1.0, 2.0)] * 2  # seconds of guard() on tensors, and of the pipeline on files
    monkeypatch.setattr(package, "interleave", lambda *ways, **settings: pairs)
    measured = package.measure_pipeline("tiny", ["a.png"] * 8, num_chunks=2)
    assert (measured["ratio"], measured["ours"], measured["theirs"]) == (0.5, 2.0, 1.0)
    assert (measured["pictures_per_s"], measured["guard_pictures_per_s"]) == (2.0, 4.0)


def test_growth_is_told_over_all_sizes_and_over_the_last_step():
    curve = {"seconds": [1.0, 2.0, 8.0], "exponent": 1.5, "last_exponent": 2.0}
    text = report.growth_text({"prompts": {"sizes": [1, 2, 4], "guard()": curve}})
    assert text.endswith("batch 1-4 (2-4): guard() 1.50 (2.00).")


def test_changes_since_the_commit_the_machine_and_its_load_are_told():
    machine = {"processor": "CPU", "cores": 2, "gpu": "H100", "memory_gib": 24, "python": "3.11", "versions": {}}
    machine |= {"commit": "0123456789abcdef-dirty", "load_average": 0.5}
    results = {"suite": "cpu", "dry": False, "machine": machine, "date": "today", "minutes": 1.0}
    text = report.machine_text(results)
    assert "commit 0123456789ab-dirty;" in text and text.startswith("CPU, 2 cores") and "load 0.5" in text
    assert report.machine_text({**results, "suite": "gpu"}).startswith("H100, ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="it has a GPU")
def test_without_a_gpu_its_suite_says_so(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit):
        main(["--suite", "gpu", "--out", str(tmp_path / "results.json")])
    assert "needs a GPU that torch can use; --dry" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dry", "--only", "gaurd"], "--only gaurd: the figures of this suite are forward"),
        (["--dry", "--readme", "README.md"], "--readme shows a whole run"),
        (["--only", "help", "--readme", "README.md"], "--readme shows a whole run"),
    ],
)
def test_a_published_table_is_not_lost_to_a_partial_run(tmp_path, capsys, words, message):
    pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit):
        main(["--suite", "cpu", "--out", str(tmp_path / "results.json"), *words])
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_what_was_measured_is_kept_where_the_next_figure_fails(tmp_path, monkeypatch):
    def run(wanted, dry):
        yield "figures", [report.make_row("a", "b", "c", "mid", 0.5, {"ratio": 0.4})]
        raise RuntimeError("the card went back")

    monkeypatch.setattr(cpu, "run", run)
    with pytest.raises(RuntimeError, match="went back"):
        main(["--suite", "cpu", "--dry", "--out", str(tmp_path / "results.json")])
    assert json.loads((tmp_path / "results.json").read_text())["figures"][0]["value"] == 0.4


def test_pictures_are_of_mixed_size_and_format(tmp_path):
    paths = package.write_pictures(tmp_path, 10, longest=300)
    assert len(paths) == 10 and {path.rpartition(".")[2] for path in paths} == {"jpg", "png", "webp"}


def test_the_gpus_suite_runs_dry(tmp_path, capsys, monkeypatch):
    alive_before_throughput, count_flops = [], gpu.count_flops

    def counted(*args):
        gc.collect()
        alive_before_throughput.extend(thing for thing in gc.get_objects() if type(thing) is Models)
        return count_flops(*args)

    monkeypatch.setattr(gpu, "count_flops", counted)
    assert main(["--suite", "gpu", "--dry", "--out", str(tmp_path / "results.json")]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    text = (tmp_path / "results.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert results["dry"] and "dry run" in text and "missed" not in text
    for figure in FIGURES.values():
        assert f"| {figure.name} | {figure.against} |" in text
    assert not alive_before_throughput  # their weights would stand beside those of each setting
    assert all(row["value"] > 0 for row in results["figures"] if "quartiles" in row)
    assert set(results["growth"]) == {"prompts", "picture_tokens", "pictures"}
    settings = {row["setting"] for row in results["throughput"]}
    assert {"bfloat16, sdpa", "float16, sdpa, torch.compile", "bfloat16, sdpa, bitsandbytes nf4"} <= settings
    for row in results["throughput"]:
        assert "error" not in row or "mslk, which is not installed" in row["error"], row
