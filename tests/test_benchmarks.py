"""The arithmetic of the benchmarks, by hand, and that the GPU's suite runs; nothing here depends on how fast."""

import json

import pytest
import torch
from tiny import ROOT

from benchmarks import memory, report
from benchmarks.__main__ import main
from benchmarks.figures import FIGURES
from benchmarks.measure import fit_exponent, interleave, peak_memory, summarize
from benchmarks.models import Workload, build_inputs, build_models
from benchmarks.package import write_pictures


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
    ]
    assert report.figures_table(rows).splitlines() == [
        "| figure | against | on | must reach | mid | demo |",
        "|---|---|---|---|---|---|",
        "| `guard()` | forward | 1 picture | <= 0.75 | 0.750 (0.625-0.875) | 0.800 missed |",
        "| pictures/s | ready | 300 files | >= 0.80 | 0.850 |  |",
        "| help |  | a process | <= 0.50 s | 0.062 s |  |",
        "| other |  |  | <= 0.50 |  | 0.900 |",
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
def test_the_readme_shows_the_results_beside_it():
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    start, end = report.MARKS
    shown = (ROOT / "README.md").read_text(encoding="utf-8").split(f"{start}\n")[1].split(end)[0]
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


def test_the_peak_is_what_was_in_use_at_once():
    def use():
        for _ in range(4):
            torch.ones(2**24)  # 64 MiB each, one at a time

    assert peak_memory(use, "cpu") == 64 * 2**20


def test_a_process_of_its_own_finds_at_least_the_cards_logits():
    peak = memory.measure_in_child("guard", "theirs", "tiny")
    assert peak > 4 * (10 + 258 + 20) * 640 * 4  # prompts x tokens x vocabulary x bytes


def test_pictures_are_of_mixed_size_and_format(tmp_path):
    paths = write_pictures(tmp_path, 10, longest=300)
    assert len(paths) == 10 and {path.rpartition(".")[2] for path in paths} == {"jpg", "png", "webp"}


def test_the_gpus_suite_runs_dry(tmp_path, capsys):
    assert main(["--suite", "gpu", "--dry", "--out", str(tmp_path / "results.json")]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    text = (tmp_path / "results.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert results["dry"] and "dry run" in text and "missed" not in text
    for figure in FIGURES.values():
        assert f"| {figure.name} | {figure.against} |" in text
    assert all(row["value"] > 0 for row in results["figures"] if "quartiles" in row)
    assert set(results["growth"]) == {"prompts", "picture_tokens", "pictures"}
    settings = {row["setting"] for row in results["throughput"]}
    assert {"bfloat16, sdpa", "float16, sdpa, torch.compile", "bfloat16, sdpa, bitsandbytes nf4"} <= settings
    for row in results["throughput"]:
        assert "error" not in row or "int4" in row["setting"], row  # torchao packs int4 for GPUs
