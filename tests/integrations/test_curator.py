"""The stage is NeMo Curator's, drops what is to be blocked, and takes nothing for safe that was not judged."""

import ast
import json
from functools import partial

import pyarrow.parquet
import pytest
from nemo_curator.stages.base import ProcessingStage, get_stage_class
from nemo_curator.stages.image.io.image_writer import ImageWriterStage
from nemo_curator.tasks import ImageBatch, ImageObject
from torch.testing import assert_close

from safeqwen import DEMO_CHECKPOINT
from safeqwen.fingerprint import weights_fingerprint
from safeqwen.scan.integrations import curator
from safeqwen.scan.integrations.curator import SafetyFilterStage
from safeqwen.scan.rows import policy_fingerprint


FIELDS = "label score unsafe scores frames decision error model_fingerprint policy_fingerprint".split()


def batch_of(**pictures):
    data = [ImageObject(image_id=name, image_data=data, metadata={"from": name}) for name, data in pictures.items()]
    return ImageBatch(dataset_name="drawings", data=data, _metadata={"shard": 7})


def ids_of(batch):
    return [image.image_id for image in batch.data]


def verdict_of(image):
    return image.metadata["safeqwen"]


@pytest.fixture
def ready():
    """Makes a stage that is set up, of the demo."""

    def ready(**settings):
        stage = SafetyFilterStage(DEMO_CHECKPOINT, **settings)
        stage.setup()
        return stage

    return ready


def test_curator_knows_the_stage_and_its_batches(arrays):
    stage = SafetyFilterStage(DEMO_CHECKPOINT)
    assert isinstance(stage, ProcessingStage) and get_stage_class("SafetyFilterStage") is SafetyFilterStage
    assert stage.validate_input(batch_of(**arrays))
    assert not stage.is_fanout_stage()
    renamed = stage.with_(name="guard", num_workers=2)
    assert (renamed.name, renamed.num_workers(), stage.name) == ("guard", 2, "image_safety_filter")


def test_a_worker_takes_the_gpus_that_are_asked_for_else_one_where_there_is_one(monkeypatch):
    assert SafetyFilterStage(DEMO_CHECKPOINT, num_gpus_per_worker=0.5).resources.gpus == 0.5
    for has_gpu in (False, True):
        monkeypatch.setattr("torch.cuda.is_available", partial(bool, has_gpu))
        assert SafetyFilterStage(DEMO_CHECKPOINT).resources.gpus == has_gpu


def test_the_metadata_holds_the_pipelines_verdict_beside_what_was_there(ready, judge, arrays, policy):
    flag = policy("flag")
    batch = ready(policy=flag).process(batch_of(**arrays))
    assert ids_of(batch) == list(arrays)
    for image in batch.data:
        assert image.metadata.keys() == {"from", "safeqwen"} and image.metadata["from"] == image.image_id
        found, expected = verdict_of(image), judge.verdict(arrays[image.image_id], policy=flag)
        assert [*found] == FIELDS and found == json.loads(json.dumps(found))
        assert found["label"] == expected.label == image.image_id
        assert_close(found["scores"], expected.scores, rtol=0, atol=1e-5)
        assert found["unsafe"] == pytest.approx(1 - found["scores"]["safe"], abs=1e-6)
        assert found["decision"]["action"] == ("allow" if image.image_id == "safe" else "flag")
        assert found["model_fingerprint"] == weights_fingerprint(DEMO_CHECKPOINT)
        assert found["policy_fingerprint"] == policy_fingerprint(flag)
        assert found["frames"] == 1 and found["error"] is None


def test_the_filter_drops_what_is_unsafe_and_keeps_the_batchs_own_data(ready, arrays):
    task = batch_of(**arrays)
    batch = ready().process(task)
    assert ids_of(batch) == ["safe"]
    assert (batch.dataset_name, batch._metadata) == ("drawings", {"shard": 7})
    assert ids_of(task) == list(arrays)


@pytest.mark.parametrize(
    ("action", "settings", "left"),
    [("block", {}, ["safe"]), ("flag", {}, None), ("block", {"mode": "shadow"}, None)],
    ids=["block", "flag", "shadow"],
)
def test_a_policy_drops_what_it_blocks_and_nothing_else(ready, arrays, policy, tmp_path, action, settings, left):
    policy(action, **settings).save(tmp_path)
    batch = ready(policy=tmp_path).process(batch_of(**arrays))
    assert ids_of(batch) == (left or list(arrays))


def test_the_policy_beside_the_weights_decides_if_none_is_passed(arrays, policy, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in DEMO_CHECKPOINT.iterdir():
        (folder / file.name).symlink_to(file)
    policy("flag").save(folder)
    stage = SafetyFilterStage(folder)
    stage.setup()
    batch = stage.process(batch_of(**arrays))
    assert ids_of(batch) == list(arrays)
    assert {verdict_of(image)["policy_fingerprint"] for image in batch.data} == {policy_fingerprint(policy("flag"))}


def test_what_cannot_be_judged_is_dropped_with_a_reason_and_costs_the_others_nothing(ready, arrays, tmp_path, caplog):
    path = tmp_path / "safe.png"
    path.write_bytes(b"")
    wrong = {
        "removed": None,
        "path": str(path),  # which no stranger may have opened
        "floats": arrays["safe"].astype(float),
        "stack": arrays["safe"][None],
        "narrow": arrays["safe"][:2],
    }
    task = batch_of(**wrong, **arrays)
    stage = ready(drop=False)
    assert ids_of(stage.process(task)) == [*wrong, *arrays]
    metrics = stage._consume_custom_metrics()
    assert metrics == {"num_dropped": 0, "num_errors": len(wrong)}
    for image in task.data[: len(wrong)]:
        assert verdict_of(image)["error"] and verdict_of(image)["model_fingerprint"]
        assert all(verdict_of(image)[name] is None for name in ("label", "score", "unsafe", "scores", "decision"))
    assert "image_data must be a NumPy array" in verdict_of(task.data[0])["error"]
    assert "got str" in verdict_of(task.data[1])["error"]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [*wrong]
    assert [verdict_of(image)["label"] for image in task.data[len(wrong) :]] == list(arrays)
    stage.drop = True
    assert ids_of(stage.process(task)) == ["safe"]
    assert stage._consume_custom_metrics() == {"num_dropped": len(wrong) + 2, "num_errors": len(wrong)}


def test_an_old_verdict_does_not_outlive_an_error(ready, arrays):
    stage, task = ready(drop=False), batch_of(**arrays)
    stage.process(task)
    task.data[0].image_data = None
    stage.process(task)
    assert verdict_of(task.data[0])["label"] is None and verdict_of(task.data[0])["error"]


def test_an_empty_batch_stays_one(ready):
    assert ready().process(batch_of()).data == []


def test_a_model_that_may_not_judge_fails_the_pipeline(arrays, untrained, monkeypatch):
    monkeypatch.setattr(curator, "load", lambda path: untrained)
    stage = SafetyFilterStage(DEMO_CHECKPOINT)
    stage.setup()
    with pytest.raises(RuntimeError, match="cannot judge"):
        stage.process(batch_of(**arrays))


def test_curators_writer_writes_what_passes_with_its_verdict(ready, arrays, tmp_path):
    ImageWriterStage(str(tmp_path)).process(ready().process(batch_of(**arrays, none=None)))
    (row,) = pyarrow.parquet.read_table(sorted(tmp_path.glob("*.parquet"))).to_pylist()
    assert row["image_id"] == "safe"
    assert ast.literal_eval(row["metadata"])["safeqwen"]["label"] == "safe"
