"""`safeqwen calibrate`: what it writes, what it prints, and what it refuses."""

import hashlib
import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from safeqwen.evaluation.rows import Row, pictures_digest, read_rows
from safeqwen.judging.policy import SafetyPolicy
from safeqwen_cli import main
from safeqwen_cli.calibrate import DESCRIPTION


CATEGORIES = ["safe", "weapon", "drug"]


def write_evaluation(
    folder, num_safe=100, num_unsafe=60, *, fingerprint="f" * 64, categories=CATEGORIES, category=None, seed=0
):
    """A folder as `safeqwen evaluate` leaves it."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    lines = []
    for i, score in enumerate([*rng.beta(1, 6, num_safe).tolist(), *rng.beta(4, 2, num_unsafe).tolist()]):
        unsafe = i >= num_safe
        probs = dict(zip(categories, (1 - score, 0.75 * score, 0.25 * score)))
        digest = hashlib.sha256(f"{seed} {i}".encode()).hexdigest()
        label = category if unsafe else None
        row = Row(f"{i}", image_sha256=digest, unsafe=unsafe, category=label, probs=probs)
        lines.append(json.dumps(asdict(row)))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    record = {"model": "demo", "model_fingerprint": fingerprint, "categories": categories, "num_rows": len(lines)}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def evaluation(tmp_path):
    return write_evaluation(tmp_path / "evaluation")


def calibrate(*words):
    return main(["calibrate", *map(str, words)])


def test_the_policy_is_written_and_holds_what_it_was_fitted_to_and_no_path(evaluation, tmp_path, capsys):
    out = tmp_path / "safety_policy.json"
    assert calibrate(evaluation, "--out", out, "--max-fpr", "0.1", "--seed", "3") == 0
    policy = SafetyPolicy.load(out, CATEGORIES, "f" * 64)
    digest = hashlib.sha256((evaluation / "rows.jsonl").read_bytes()).hexdigest()
    fitted = policy.fitted
    pictures = sorted(hashlib.sha256(f"0 {i}".encode()).hexdigest() for i in range(160))
    pictures = hashlib.sha256(" ".join(pictures).encode()).hexdigest()
    assert fitted["rows"] == [{"name": "evaluation", "sha256": digest, "pictures_sha256": pictures, "rows": 160}]
    assert fitted["command"] == (
        "safeqwen calibrate evaluation --out safety_policy.json --operating-point balanced --max-fpr 0.1 "
        "--confidence 0.9 --held-out 0.3 --seed 3"
    )
    assert str(tmp_path) not in out.read_text()
    assert fitted["versions"]["scikit-learn"] and fitted["date"]
    shown = capsys.readouterr()
    figure = fitted["held_out"]["policy"]["false_positive_rate"]
    assert "with probability 0.9 or more over the draw of these rows" in shown.out and "at most 0.1" in shown.out
    assert f"{figure['value']:.2%} ({figure['low']:.2%} to {figure['high']:.2%}) of 30" in shown.out
    assert "the rule for clips stays" in shown.err


def test_its_threshold_is_the_one_that_generate_stops_at(evaluation, tmp_path):
    calibrate(evaluation, "--out", tmp_path)  # into a folder, under its own name
    policy = SafetyPolicy.load(tmp_path)
    raw = policy.safety_threshold
    assert policy.decide([1 - raw, raw, 0.0]).flagged
    assert not policy.decide([1 - raw + 1e-6, raw - 1e-6, 0.0]).flagged


def test_an_operating_point_is_named_with_its_definition_and_promises_nothing(evaluation, tmp_path, capsys):
    assert calibrate(evaluation, "--out", tmp_path, "--operating-point", "high_recall") == 0
    assert "high_recall, the lowest false-positive rate" in (shown := capsys.readouterr().out)
    assert "nothing is promised" in shown


def test_rows_of_several_evaluations_of_one_model_are_put_together(evaluation, tmp_path):
    other = write_evaluation(tmp_path / "other", seed=1)
    assert calibrate(evaluation, other / "rows.jsonl", "--out", tmp_path / "policy.json") == 0
    fitted = SafetyPolicy.load(tmp_path / "policy.json").fitted
    assert [source["name"] for source in fitted["rows"]] == ["evaluation", "rows.jsonl"]
    assert fitted["pictures"]["fit"]["safe"] + fitted["pictures"]["held_out"]["safe"] == 200


def test_rows_alone_give_a_policy_for_any_weights_and_say_so(evaluation, tmp_path, capsys):
    (evaluation / "run.json").unlink()
    assert calibrate(evaluation / "rows.jsonl", "--out", tmp_path) == 0
    assert SafetyPolicy.load(tmp_path).model is None
    assert "no run.json names the weights" in capsys.readouterr().err


def refused(capsys, tmp_path, *words):
    out = tmp_path / "refused.json"
    assert calibrate(*words, "--out", out) == 2
    assert not out.exists()
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err


def test_evaluations_of_other_weights_or_categories_are_refused(evaluation, tmp_path, capsys):
    other = write_evaluation(tmp_path / "other", fingerprint="e" * 64, seed=1)
    assert "different weights" in refused(capsys, tmp_path, evaluation, other)
    foreign = write_evaluation(tmp_path / "foreign", categories=["safe", "nudity", "drug"], seed=1)
    assert "different categories" in refused(capsys, tmp_path, evaluation, foreign)
    (other / "run.json").unlink()
    assert "different weights" in refused(capsys, tmp_path, evaluation, other)


@pytest.mark.parametrize(("name", "value"), [("max_pixels", 12544), ("dtype", "bfloat16")])
def test_rows_that_were_judged_in_another_way_are_refused(evaluation, tmp_path, capsys, name, value):
    other = write_evaluation(tmp_path / "other", seed=1)
    for folder, settings in ((evaluation, {"max_pixels": None, "dtype": "float32"}), (other, {name: value})):
        record = json.loads((folder / "run.json").read_text())
        record["settings"] = {"max_pixels": None, "dtype": "float32"} | settings
        (folder / "run.json").write_text(json.dumps(record))
    assert f"are of different {name}" in refused(capsys, tmp_path, evaluation, other)


def test_a_run_that_has_not_ended_is_refused_by_folder_and_by_file(evaluation, tmp_path, capsys):
    lines = (evaluation / "rows.jsonl").read_text().splitlines(keepends=True)
    (evaluation / "rows.jsonl").write_text("".join(lines[:-1]))
    for path in (evaluation, evaluation / "rows.jsonl"):
        assert "holds 159 of 160 rows" in refused(capsys, tmp_path, path)


def test_the_same_rows_twice_are_refused(evaluation, tmp_path, capsys):
    assert "give each once" in refused(capsys, tmp_path, evaluation, evaluation / "rows.jsonl")


def test_too_few_safe_rows_for_the_promise_say_how_many_it_takes(evaluation, tmp_path, capsys):
    assert "it takes 230 or more" in refused(capsys, tmp_path, evaluation, "--max-fpr", "0.01")


def test_a_file_that_exists_is_replaced_only_by_force(evaluation, tmp_path, capsys):
    out = tmp_path / "policy.json"
    out.write_text("precious")
    assert calibrate(evaluation, "--out", out) == 2
    assert out.read_text() == "precious" and "--force replaces it" in capsys.readouterr().err
    assert calibrate(evaluation, "--out", out, "--force") == 0
    assert SafetyPolicy.load(out).model == "f" * 64


def test_a_policy_of_another_taxonomy_to_start_from_is_refused(evaluation, tmp_path, capsys):
    SafetyPolicy(categories=["safe", "nudity", "drug"]).save(tmp_path / "base.json")
    assert "another taxonomy" in refused(capsys, tmp_path, evaluation, "--policy", tmp_path / "base.json")


def test_a_kept_temperature_that_was_fitted_to_the_same_rows_is_no_ground_for_a_promise(evaluation, tmp_path, capsys):
    base = tmp_path / "base.json"
    assert calibrate(evaluation, "--out", base) == 0
    fitted = SafetyPolicy.load(base)
    assert fitted.temperature != 1
    capsys.readouterr()
    lenient = replace(fitted, actions={"unsafe": "flag", "drug": "allow"})
    lenient.save(base)
    rows = write_evaluation(tmp_path / "labelled", category="weapon", seed=1)
    words = ("--policy", base, "--max-fpr", "0.2")
    assert calibrate(rows, "--out", tmp_path / "other.json", *words) == 0  # of other rows
    capsys.readouterr()
    replace(lenient, fitted={"rows": [{"pictures_sha256": pictures_digest(read_rows(rows))}]}).save(base)
    assert "set its temperature to 1" in refused(capsys, tmp_path, rows, *words)
    replace(lenient, fitted=SafetyPolicy.load(base).fitted, temperature=1.0).save(base)
    assert calibrate(rows, "--out", tmp_path / "one.json", *words) == 0


def test_what_cannot_be_read_or_written_is_refused(evaluation, tmp_path, capsys):
    assert "nothing.jsonl" in refused(capsys, tmp_path, tmp_path / "nothing.jsonl")
    assert calibrate(evaluation, "--out", tmp_path / "no folder" / "policy.json") == 2
    assert "there is no folder" in capsys.readouterr().err
    (evaluation / "rows.jsonl").write_text('{"id": "1", "probs": {"safe": NaN}}\n')
    assert "line 1" in refused(capsys, tmp_path, evaluation / "rows.jsonl")


@pytest.mark.parametrize("name", ["--max-fpr", "--confidence", "--held-out"])
@pytest.mark.parametrize("value", ["0", "1", "nan", "5%"])
def test_a_share_that_is_none_is_wrong_usage(evaluation, tmp_path, name, value, capsys):
    with pytest.raises(SystemExit) as exit_code:
        calibrate(evaluation, "--out", tmp_path / "policy.json", name, value)
    assert exit_code.value.code == 2


def test_a_library_that_is_missing_is_named_with_the_way_to_install_it(evaluation, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'sklearn and torchmetrics is missing: pip install -e ".[evaluate]"' in refused(capsys, tmp_path, evaluation)


def test_the_help_names_the_operating_points_that_there_are():
    from safeqwen.judging.thresholds import OPERATING_POINTS

    for name, definition in OPERATING_POINTS.items():
        assert name in DESCRIPTION
        assert definition.split(" among ")[0].split(" (")[0] in " ".join(DESCRIPTION.split())
