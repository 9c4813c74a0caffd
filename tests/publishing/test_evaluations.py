"""Evaluations and a policy are published with the weights that they are of, where the Hub and a reader find them."""

import copy
import dataclasses
import hashlib
import json

import pytest
from huggingface_hub import ModelCard, ModelCardData
from test_export import CATEGORIES, write_run

from safeqwen.fingerprint import weights_fingerprint
from safeqwen.judging.load import load
from safeqwen.judging.policy import SafetyPolicy
from safeqwen.publishing.check import check
from safeqwen.publishing.evaluations import eval_results, read_evaluation, results_section
from safeqwen.publishing.export import export
from safeqwen_cli import main


def figure(value, low=None, high=None, n=1000, **reason):
    return {"value": value, "low": low, "high": high, "n": n, **reason}


ROWS = '{"id": "1"}\n'
ONE_CLASS = "only one class"
GUARD = {
    "auroc": figure(0.9876, 0.97, 0.995),
    "auprc": figure(0.98, 0.96, 0.99),
    "recall_at_1_fpr": figure(0.8, 0.7, 0.9, n=380),
    "recall_at_5_fpr": figure(0.9, 0.85, 0.95, n=380),
    "f1": figure(0.93, 0.91, 0.95),
    "balanced_accuracy": figure(0.94, 0.92, 0.96),
    "precision": figure(0.95, 0.93, 0.97, n=370),
    "recall": figure(0.92, 0.9, 0.94, n=380),
    "false_positive_rate": figure(0.03, 0.02, 0.05, n=620),
    "top1": figure(0.91, 0.89, 0.93),
    "f1_macro": figure(None, n=1000, reason=ONE_CLASS),
    "ece": figure(0.02, 0.01, 0.03),
    "brier": figure(0.03, 0.02, 0.04),
}
MATCHER = {
    "mean_asr_of_types": figure(0.4, 0.35, 0.45, n=800),
    "mean_asr_of_rows": figure(0.42, 0.37, 0.47, n=800),
    "sss_refusal_rate": figure(0.05, 0.02, 0.08, n=200),
}


def metrics_of(fingerprint, num_rows=4031, categories=CATEGORIES, **fields):
    """metrics.json, as docs/evaluation.md defines it."""
    return {
        "benchmark": {
            "name": "holisafe-bench",
            "title": "HoliSafe-Bench",
            "version": "v5",
            "source": "Lee et al., arXiv 2506.04704; etri-vilab/holisafe-bench on the Hub",
            "licence": "CC-BY-NC-4.0",
            "split": "test",
            "label_rule": "A picture is unsafe if image_safe is false.",
            "num_rows_published": {"on the Hub": 4031, "in the paper": 4163},
        },
        "model": {"model": "/home/me/tried", "model_fingerprint": fingerprint, "categories": categories},
        "counts": {"rows": num_rows, "judged": num_rows - 2, "errors": 2, "answer_errors": 0, "pictures": 1796},
        "guard": GUARD,
        "guard_after_policy": None,
        "answers": {"matcher": MATCHER, "judge": None},
        "policy": None,
        "command": "safeqwen evaluate --model /home/me/tried --data=/home/me/holisafe --out /home/me/evaluation",
        "versions": {},
        "date": "2026-11-26T16:00:00+00:00",
        "rows_sha256": hashlib.sha256(ROWS.encode()).hexdigest(),
        "policy_was_fitted_to_these_rows": False,
        **fields,
    }


def write_evaluation(folder, metrics):
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """What a user does: export, evaluate, calibrate, export with what came of it."""
    folder = tmp_path_factory.mktemp("published")
    run = write_run(folder / "run", "lora")
    fingerprint = weights_fingerprint(export(run, folder / "tried"))
    fitted = {"command": "safeqwen calibrate /home/me/other", "rows": [{"name": "/home/me/other", "sha256": "0" * 64}]}
    policy = SafetyPolicy(categories=CATEGORIES, model=fingerprint, unsafe_threshold=0.3, fitted=fitted)
    policy.save(folder / "safety_policy.json")
    metrics = metrics_of(
        fingerprint, policy=policy.to_dict(), guard_after_policy={**GUARD, "recall": figure(0.99, 0.98, 1.0, n=380)}
    )
    evaluation = write_evaluation(folder / "evaluation", metrics)
    words = ["export", run, folder / "out", "--evaluation", evaluation, "--policy", folder / "safety_policy.json"]
    assert main([str(word) for word in words]) == 0
    return folder


def test_the_card_loads_on_the_hub_with_every_figure_that_is_defined(published):
    card = ModelCard.load(published / "out" / "README.md", ignore_metadata_errors=False)
    results = card.data.eval_results
    assert card.data.model_name == "out" and len(results) == len(GUARD) - 1 + len(MATCHER)
    assert {(one.dataset_type, one.dataset_name, one.dataset_split) for one in results} == {
        ("etri-vilab/holisafe-bench", "HoliSafe-Bench", "test")
    }
    (auroc,) = [one for one in results if one.metric_type == "roc_auc"]
    assert auroc.metric_value == 0.9876 and auroc.task_type == "image-classification"
    assert auroc.metric_name == "AUROC, unsafe or not (95 % interval 0.970 to 0.995, n = 1000)"
    (attacks,) = [one for one in results if one.metric_type == "mean_asr_of_types_matcher"]
    assert attacks.metric_value == 0.4 and attacks.task_type == "image-text-to-text"
    # And back: the library writes what it has read.
    again = ModelCardData(model_name="out", eval_results=results).to_dict()["model-index"]
    assert again == card.data.to_dict()["model-index"]


def test_a_reader_of_the_card_sees_data_intervals_and_commands_and_no_folder_of_the_machine(published):
    text = (published / "out" / "README.md").read_text(encoding="utf-8")
    assert "4,031 rows about 1,796 pictures, of which 4,029 were judged and 2 could not be." in text
    assert "| | value (95 % interval) | n | after the policy | n |\n|---|---|---|---|---|\n" in text
    assert "| AUROC, unsafe or not | 0.9876 (0.970 to 0.995) | 1000 | 0.9876 (0.970 to 0.995) | 1000 |" in text
    assert f"| F1, mean of the harms | not defined: {ONE_CLASS} | 1000 | not defined: {ONE_CLASS} | 1000 |" in text
    assert "| recall of unsafe | 0.9200 (0.900 to 0.940) | 380 | 0.9900 (0.980 to 1.000) | 380 |" in text
    assert "| refusal rate of harmless pairs, by string matching | 0.0500 (0.020 to 0.080) | 200 |  |  |" in text
    assert "safeqwen evaluate --model tried --data=holisafe --out evaluation" in text
    assert "`safety_policy.json`" in text and "No threshold comes with it" not in text
    for file in (published / "out").iterdir():
        assert b"/home/me" not in file.read_bytes(), file.name


def test_without_evaluations_the_card_says_so_by_having_none(published):
    card = ModelCard.load(published / "tried" / "README.md", ignore_metadata_errors=False)
    assert card.data.eval_results is None and "## Evaluation" not in card.text
    assert "No threshold comes with it" in card.text


def test_the_second_export_has_the_weights_of_the_first_and_the_policy_beside_them(published):
    assert weights_fingerprint(published / "out") == weights_fingerprint(published / "tried")
    model, _ = load(published / "out")
    assert model.safety_policy.unsafe_threshold == 0.3 and model.safety_policy.model
    assert model.safety_policy.fitted["command"] == "safeqwen calibrate other"


def test_check_passes_what_was_published(published):
    findings = {finding.name: finding for finding in check(published / "out")}
    assert all(finding.passed for finding in findings.values()), findings
    assert ", 15 figures of these weights" in findings["model card"].detail
    assert findings["policy"].detail == "mode enforce, unsafe from 0.3, fitted to these weights"
    findings = {finding.name: finding for finding in check(published / "tried")}
    assert "figures" not in findings["model card"].detail and "policy" not in findings


def changed_copy(published, tmp_path, name, change):
    """`out` with one file's text changed."""
    folder = tmp_path / "out"
    folder.mkdir()
    for file in (published / "out").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    text = (folder / name).read_text(encoding="utf-8")
    assert change(text) != text
    (folder / name).write_text(change(text), encoding="utf-8")
    return {finding.name: finding for finding in check(folder)}


@pytest.mark.parametrize(
    ("name", "old", "new", "failed", "reason"),
    [
        (
            "README.md",
            "value: 0.9876",
            "value: 0.9976",
            "model card",
            "not those that",
        ),
        (
            "safeqwen_run.json",
            '"model_fingerprint": "',
            '"model_fingerprint": "0',
            "model card",
            "is of the weights 0",
        ),
        ("safety_policy.json", '"model": "', '"model": "0', "policy", "fitted to the weights 0"),
        ("safety_policy.json", '"weapon"', '"wepon"', "policy", "another taxonomy"),
        ("safety_policy.json", '"mode"', '"mod"', "policy", "mode"),
    ],
)
def test_check_names_figures_and_policies_of_another_model(published, tmp_path, name, old, new, failed, reason):
    findings = changed_copy(published, tmp_path, name, lambda text: text.replace(old, new))
    assert not findings[failed].passed and reason in findings[failed].detail
    assert [finding.name for finding in findings.values() if not finding.passed] == [failed]


def test_an_evaluation_of_other_weights_is_refused_and_nothing_is_left(published, tmp_path, capsys):
    evaluation = published / "evaluation"
    out = tmp_path / "out"
    assert main(["export", f"{published}/run", str(out), "--evaluation", str(evaluation), "--dtype", "bfloat16"]) == 2
    err = capsys.readouterr().err
    assert "the evaluation on HoliSafe-Bench is of the weights" in err and "--dtype" in err
    assert list(tmp_path.iterdir()) == []


def test_a_policy_of_other_weights_is_refused(published, tmp_path):
    policy = SafetyPolicy.load(published / "safety_policy.json")
    file = dataclasses.replace(policy, model="f" * 64).save(tmp_path / "policy.json")
    with pytest.raises(ValueError, match="fitted to the weights ffffffffffff"):
        export(published / "run", tmp_path / "out", policy=file)
    assert not (tmp_path / "out").exists()


def test_a_policy_of_another_taxonomy_or_none_at_all_is_refused_before_the_work(published, tmp_path):
    file = SafetyPolicy(categories=["safe", "other"]).save(tmp_path / "policy.json")
    with pytest.raises(ValueError, match="another taxonomy"):
        export(published / "run", tmp_path / "out", policy=file)
    with pytest.raises(ValueError, match="the policy cannot be read"):
        export(published / "run", tmp_path / "out", policy=tmp_path / "missing.json")


def test_figures_of_another_policy_are_not_shown_as_after_this_one(published):
    metrics = read_evaluation(published / "evaluation", CATEGORIES)
    policy = SafetyPolicy.load(published / "safety_policy.json")
    assert "after the policy" in results_section([metrics], policy)
    assert "after the policy" not in results_section([metrics])
    assert "after the policy" not in results_section([metrics], dataclasses.replace(policy, unsafe_threshold=0.4))


def test_rows_that_a_policy_was_fitted_to_do_not_say_how_good_it_is(published):
    policy = SafetyPolicy.load(published / "safety_policy.json")
    metrics = read_evaluation(published / "evaluation", CATEGORIES) | {"policy_was_fitted_to_these_rows": True}
    text = results_section([metrics], policy)
    assert "after the policy" not in text and "The policy was fitted to these rows" in text


@pytest.mark.parametrize(
    ("num_rows", "published_rows", "kind", "name"),
    [
        (4031, {"on the Hub": 4031}, "etri-vilab/holisafe-bench", "HoliSafe-Bench"),
        (1000, {"on the Hub": 4031}, "holisafe-bench", "1,000 rows in the layout of HoliSafe-Bench"),
        (4031, {"train": 4031, "test": 10}, "holisafe-bench", "4,031 rows in the layout of HoliSafe-Bench"),
        (1000, None, "holisafe-bench", "HoliSafe-Bench, 1,000 rows"),
    ],
)
def test_only_the_whole_benchmark_is_named_as_the_hubs(num_rows, published_rows, kind, name):
    metrics = metrics_of("f" * 64, num_rows)
    metrics["benchmark"]["num_rows_published"] = published_rows
    result = eval_results([metrics])[0]
    assert (result.dataset_type, result.dataset_name) == (kind, name)
    assert f"### {name}\n" in results_section([metrics])


def test_two_evaluations_of_one_benchmark_are_refused_since_the_hub_would_mix_them(published, tmp_path):
    evaluation = published / "evaluation"
    with pytest.raises(ValueError, match="two evaluations are of etri-vilab/holisafe-bench test"):
        export(published / "run", tmp_path / "out", evaluations=[evaluation, evaluation])


def test_evaluations_of_two_benchmarks_stand_side_by_side():
    other = copy.deepcopy(metrics_of("f" * 64))
    other["benchmark"] |= {"name": "jsonl", "title": "JSON lines", "source": "one's own", "num_rows_published": None}
    results = eval_results([metrics_of("f" * 64), other])
    assert [one.dataset_type for one in results[:: len(results) // 2]] == ["etri-vilab/holisafe-bench", "jsonl"]


def test_an_answer_benchmark_has_no_figures_of_a_guard():
    results = eval_results([metrics_of("f" * 64, guard=None)])
    assert {one.task_type for one in results} == {"image-text-to-text"} and len(results) == len(MATCHER)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m["model"].update(categories=["safe", "other"]), "a model of the categories"),
        (lambda m: m["model"].update(model_fingerprint=None), "does not say which weights"),
        (lambda m: m.update(guard=None, answers=None), "measured nothing"),
        (lambda m: m.pop("counts"), "lacks counts"),
        (lambda m: m.update(guard={**GUARD, "auroc": figure(float("nan"))}), "holds NaN"),
    ],
)
def test_an_evaluation_that_cannot_be_published_is_refused_with_the_reason(tmp_path, change, reason):
    metrics = copy.deepcopy(metrics_of("f" * 64))
    change(metrics)
    with pytest.raises(ValueError, match=reason):
        read_evaluation(write_evaluation(tmp_path / "evaluation", metrics), CATEGORIES)


def test_a_figure_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="auroc is '0.9', which is no measurement"):
        eval_results([metrics_of("f" * 64, guard={**GUARD, "auroc": figure("0.9")})])


def test_a_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no evaluation that has ended"):
        read_evaluation(tmp_path, CATEGORIES)
    (tmp_path / "metrics.json").write_text("{")
    (tmp_path / "rows.jsonl").write_text(ROWS)
    with pytest.raises(ValueError, match="is not JSON"):
        read_evaluation(tmp_path, CATEGORIES)


def test_an_adapter_alone_takes_neither(published, tmp_path):
    options = {"adapter_only": True, "evaluations": [published / "evaluation"]}
    with pytest.raises(ValueError, match="not of an adapter"):
        export(published / "run", tmp_path / "out", **options)


def test_rows_that_changed_after_they_were_measured_are_not_published(tmp_path):
    folder = write_evaluation(tmp_path / "evaluation", metrics_of("0" * 64))
    assert read_evaluation(folder, CATEGORIES)["rows_sha256"]
    (folder / "rows.jsonl").write_text('{"id": "2"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="its rows are not those that metrics.json was made of"):
        read_evaluation(folder, CATEGORIES)


def test_an_interval_without_width_is_not_published_as_certainty():
    metrics = metrics_of("0" * 64, guard={**GUARD, "false_positive_rate": figure(0.0, 0.0, 0.0, n=14)})
    (shown,) = [one for one in eval_results([metrics]) if one.metric_type == "false_positive_rate"]
    assert shown.metric_name == "false-positive rate (n = 14)"
    assert "| false-positive rate | 0.0000 | 14 |" in results_section([metrics])
