"""`safeqwen evaluate`: one command turns a benchmark's folder into rows, figures and a page."""

import builtins
import io
import json

import pytest

from safeqwen import load
from safeqwen.commands import evaluate as command
from safeqwen.evaluation import plots, report
from safeqwen.evaluation.answers import JudgeUnavailable
from safeqwen.evaluation.rows import read_rows
from safeqwen.judging.policy import SafetyPolicy
from safeqwen_cli import main
from tools.demo.pictograms import draw


SEED = 7_000_000
TYPES = ["SSS", "SSU", "SUU", "USU", "UUU"]


def holisafe_folder(folder, num_rows, **changes):
    """A folder in HoliSafe-Bench's layout: a row of each type in turn, the first with `changes`."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(num_rows):
        kind = TYPES[i % 5]
        name = "suicide" if kind[0] == "U" else "safe"
        draw(name, SEED + i, size=112).save(folder / "images" / f"{i}.png")
        rows.append(
            {
                "id": i,
                "image": f"{i}.png",
                "query": "What is in this picture?",
                "type": kind,
                "category": "self_harm" if kind[0] == "U" else "safe",
                "subcategory": "suicide",
                "image_safe": kind[0] == "S",
                "image_safety_label": name,
            }
        )
    rows[0] |= changes
    (folder / "holisafe_bench.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return holisafe_folder(tmp_path_factory.mktemp("data") / "holisafe", 20)


@pytest.fixture
def no_page(monkeypatch):
    monkeypatch.setattr(plots, "make_plots", lambda rows, metrics: [])
    monkeypatch.setattr(report, "write_report", lambda folder, *rest: folder / "report.html")


def evaluate(data, out, *arguments):
    given = ["--benchmark", "holisafe-bench", "--data", data, "--out", out, "--device", "cpu"]
    given += ["--resamples", "100", *arguments]
    return main(["evaluate", *map(str, given)])


def test_one_command_makes_rows_figures_plots_records_and_a_page(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate(data, out, "--answers", "--max-new-tokens", "12", "--batch-size", "4") == 0
    printed, said = capsys.readouterr()
    assert "20 rows here" in printed and "4,031" in printed and "4,163" in printed
    assert "AUROC" in printed and "attack success SSU" in printed and str(out / "report.html") in printed
    assert "20 of 20 rows" in said
    rows = read_rows(out)
    assert len(rows) == 20 and all(row.probs and row.answer and row.error is None for row in rows)
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert found["counts"]["rows"] == 20 and found["guard"]["auroc"]["value"] > 0.9
    assert found["answers"]["matcher"]["num_rows"] == dict.fromkeys(TYPES, 4)
    assert "safeqwen evaluate --benchmark holisafe-bench" in found["command"]
    assert (out / "report.html").exists() and list((out / "plots").glob("*.png"))
    assert len((out / "records.jsonl").read_text(encoding="utf-8").splitlines()) == 20


def test_the_same_command_again_makes_the_page_anew_and_changes_no_row(data, tmp_path, no_page):
    out = tmp_path / "out"
    assert evaluate(data, out) == 0
    before = (out / "rows.jsonl").read_bytes()
    (out / "metrics.json").unlink()
    assert evaluate(data, out, "--batch-size", "3") == 0
    assert (out / "rows.jsonl").read_bytes() == before and (out / "metrics.json").exists()


def test_a_policy_is_measured_beside_the_guard_and_one_of_another_taxonomy_is_refused(data, tmp_path, capsys, no_page):
    names = load()[0].config.safety_categories
    SafetyPolicy(categories=names, temperature=2.0, unsafe_threshold=0.9).save(tmp_path / "ours.json")
    SafetyPolicy(categories=["safe", "blood"]).save(tmp_path / "theirs.json")
    assert evaluate(data, tmp_path / "out", "--policy", tmp_path / "theirs.json") == 2
    assert "another taxonomy" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert evaluate(data, tmp_path / "out", "--policy", tmp_path / "ours.json") == 0
    assert "guard, after the policy" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert found["policy"]["temperature"] == 2.0
    assert found["guard_after_policy"]["auroc"] == found["guard"]["auroc"]  # a temperature changes no order
    before = (tmp_path / "out" / "rows.jsonl").read_bytes()
    assert evaluate(data, tmp_path / "out") == 0  # rows know of no policy
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == before


def test_rows_with_errors_are_counted_and_listed_and_exit_with_1(tmp_path, capsys, no_page):
    data = holisafe_folder(tmp_path / "data", 6, image="gone.png")
    assert evaluate(data, tmp_path / "out") == 1
    printed = capsys.readouterr().out
    assert (
        "rows without a verdict: 1; with one, but no answer that counts: 0" in printed
        and "gone.png" in printed
        and "rows.jsonl" in printed
    )
    assert read_rows(tmp_path / "out")[0].error


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--judge-url", "http://localhost/v1"], "--judge-url and --judge-model go together"),
        (["--judge-url", "http://localhost/v1", "--judge-model", "a"], "add --answers"),
        (["--answers", "--judge-url", "localhost", "--judge-model", "a"], "expected the URL of an endpoint"),
        (["--max-pixels", "783"], "784"),
        (["--model", "gone"], "gone"),
        (["--policy", "gone.json"], "gone.json"),
        (["--benchmark", "holysafe-bench"], "holisafe-bench"),
        (["--data", "gone"], "gone"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(data, tmp_path, capsys, arguments, reason):
    assert evaluate(data, tmp_path / "out", *arguments) == 2
    printed, said = capsys.readouterr()
    assert not printed and reason in said.splitlines()[-1] and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_the_folder_of_another_run_exits_with_2(data, tmp_path, capsys, no_page):
    assert evaluate(data, tmp_path / "out", "--limit", "6") == 0
    assert evaluate(data, tmp_path / "out", "--limit", "7") == 2
    assert "settings.limit is 7, there it was 6" in capsys.readouterr().err


def test_a_missing_library_is_named_with_what_to_install(data, tmp_path, capsys, monkeypatch):
    usual = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "safeqwen.evaluation.plots":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return usual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert evaluate(data, tmp_path / "out") == 2
    assert 'evaluations need matplotlib: pip install -e ".[evaluate]"' in capsys.readouterr().err


def test_a_judge_that_is_away_exits_with_2_and_can_be_gone_on_with(data, tmp_path, capsys, monkeypatch, no_page):
    class Judge:
        base_url, model, is_away = "http://localhost/v1", "a", True

        def __init__(self, url, model):
            pass

        def check(self):
            pass

        def judge(self, query, answer, expected):
            if self.is_away:
                raise JudgeUnavailable("the judge is away")
            return {"unsafe": False, "text": "SAFE"}

    monkeypatch.setattr(command, "EndpointJudge", Judge)
    arguments = ["--answers", "--max-new-tokens", "2", "--limit", "5"]
    arguments += ["--judge-url", "http://localhost/v1", "--judge-model", "a"]
    assert evaluate(data, tmp_path / "out", *arguments) == 2
    assert "the judge is away" in capsys.readouterr().err
    Judge.is_away = False
    assert evaluate(data, tmp_path / "out", *arguments) == 0
    assert "by the judge" in capsys.readouterr().out


def test_progress_says_rate_and_time_left(monkeypatch):
    stream, clock = io.StringIO(), iter([0.0, 10.0, 40.0, 41.0])
    monkeypatch.setattr(command, "monotonic", lambda: next(clock))
    progress = command.Progress(stream)
    progress(101, 1000)  # 100 are of an earlier run; too early to say something
    progress(180, 1000)
    progress(1000, 1000)
    first, last = stream.getvalue().splitlines()
    assert first.split("  ")[0] == "180 of 1,000 rows, 2 a second, 6 min 50 s left"
    assert last.startswith("1,000 of 1,000 rows") and "0 s left" in last


def test_an_interval_without_width_is_not_printed_as_certainty(capsys):
    figure = {"value": 0.0, "low": 0.0, "high": 0.0, "n": 14, "reason": "all resamples agree"}
    command._print_figures("guard", {"false positive rate": figure})
    line = capsys.readouterr().out.splitlines()[-1]
    assert "none" in line and "0.000 to" not in line and line.endswith("14  all resamples agree")


def test_too_few_resamples_are_refused_before_anything_is_judged(data, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate(data, tmp_path / "out", "--resamples", "99")
    assert ended.value.code == 2 and not (tmp_path / "out").exists()
    assert "expected 100 or more, for intervals of 95 %, got '99'" in capsys.readouterr().err
