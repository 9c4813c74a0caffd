"""The model is FiftyOne's: `apply_model` labels the samples of a real dataset, and none that was not judged."""

import logging

import fiftyone
import fiftyone.core.models as fom
import numpy as np
import pytest
import torch
from fiftyone import Classification
from fiftyone import ViewField as F
from torch.testing import assert_close

from safeqwen import SafetyPipeline, Verdict
from safeqwen.scan.integrations.fiftyone import SafetyModel, to_classification


@pytest.fixture
def model(judge):
    return SafetyModel(judge)


@pytest.fixture
def dataset(tmp_path):
    """Makes a dataset of files, in their order."""
    made = []

    def dataset(**files):
        for name, data in files.items():
            (tmp_path / name).write_bytes(data) if isinstance(data, bytes) else data.save(tmp_path / name)
        made.append(fiftyone.Dataset())
        made[-1].add_samples([fiftyone.Sample(filepath=str(tmp_path / name)) for name in files])
        return made[-1]

    yield dataset
    for one in made:
        one.delete()


def files_of(pictures):
    return {f"{name}.png": picture for name, picture in pictures.items()}


def test_fiftyone_takes_it_for_an_image_model_with_logits(model, judge):
    assert isinstance(model, fom.Model) and model.media_type == "image"
    assert model.has_logits and not model.has_embeddings and not model.store_logits
    assert model.classes == list(judge.model.config.safety_categories)
    with model as entered:
        assert entered is model


def test_apply_model_gives_each_sample_the_pipelines_verdict_on_its_file(model, judge, pictures, dataset):
    samples = dataset(**files_of(pictures))
    samples.apply_model(model, label_field="safety", store_logits=True, batch_size=2, num_workers=0, pin_memory=True)
    assert samples.values("safety.label") == list(pictures)
    for sample in samples:
        assert isinstance(sample.safety, Classification) and len(sample.safety.logits) == len(model.classes)
        verdict = judge.verdict(sample.filepath)
        assert_close(sample.safety.confidence, verdict.score, rtol=0, atol=1e-5)
        assert_close(sample.safety.unsafe, verdict.unsafe, rtol=0, atol=1e-5)
    assert len(samples.match(F("safety.unsafe") > 0.5)) == 2
    assert not model.store_logits


def test_apply_models_own_thresholds_leave_labels_out(model, pictures, dataset):
    samples = dataset(**files_of(pictures))
    samples.apply_model(model, label_field="safety", confidence_thresh=0.5, classes=["safe"])
    assert samples.values("safety.label") == ["safe", None, None]


def test_the_logits_are_the_guards_less_a_constant(model, judge, pictures):
    model.store_logits = True
    engine = judge.engine
    for picture in pictures.values():
        with torch.no_grad():
            guards = judge.model.guard(**engine.inputs_of(engine.prepare([picture]))).img_safety_logits[0]
        logits = torch.as_tensor(model.predict(picture).logits)
        difference = guards - logits
        assert float(difference.max() - difference.min()) < 1e-3
        assert model.classes[int(logits.argmax())] == model.predict(picture).label


def test_a_probability_of_zero_has_a_finite_logit():
    probs = torch.tensor([[0.25, 0.75, 0.0]])
    verdict = Verdict(categories=["safe", "a", "b"], probs=probs)
    label = to_classification(verdict, store_logits=True)
    assert (label.label, label.confidence, label.unsafe) == ("a", 0.75, 0.75)
    assert np.isfinite(label.logits).all()
    assert_close(torch.as_tensor(label.logits).softmax(-1), probs[0])
    assert to_classification(verdict).logits is None


def test_the_view_that_counts_gives_label_and_logits():
    verdict = Verdict(
        categories=["safe", "a"], probs=torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]), frames=[0, 1, 2]
    )
    label = to_classification(verdict, store_logits=True)
    assert label.label == "a" and np.exp(label.logits).tolist() == pytest.approx([0.2, 0.8])


def test_a_harm_in_a_later_frame_counts(model, pictures, dataset, tmp_path):
    pictures["safe"].save(tmp_path / "later.gif", save_all=True, append_images=[pictures["weapon_related_violence"]])
    samples = dataset(**{"later.gif": (tmp_path / "later.gif").read_bytes()})
    samples.apply_model(model, label_field="safety")
    assert samples.values("safety.label") == ["weapon_related_violence"]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_each_frame_of_a_video_has_its_label(model, arrays, dataset, monkeypatch, batch_size):
    class Reader:
        """In place of FFmpeg's: the frame that was read last, counted from 1, as eta's has it."""

        def __init__(self, path, frames=None):
            self.frame_number = 0

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def __iter__(self):
            for array in arrays.values():
                self.frame_number += 1
                yield array

    monkeypatch.setattr(fom.etav, "FFmpegVideoReader", Reader)
    samples = dataset(**{"0.mp4": b""})
    video = samples.first()
    video["metadata"] = fiftyone.VideoMetadata(total_frame_count=len(arrays))
    video.save()
    samples.apply_model(model, label_field="frames.safety", batch_size=batch_size)
    assert samples.values("frames.safety.label") == [list(arrays)]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_what_cannot_be_judged_has_no_label_and_is_logged(model, pictures, dataset, batch_size, caplog, monkeypatch):
    samples = dataset(
        **{"0.png": pictures["safe"], "1.png": pictures["suicide"], "2.png": b"GIF89a", "3.png": pictures["safe"]}
    )
    monkeypatch.setattr(logging.getLogger("fiftyone"), "propagate", True)
    samples.apply_model(model, label_field="safety", batch_size=batch_size)
    labels = samples.values("safety.label")
    assert labels == ["safe", "suicide", None, "safe" if batch_size == 1 else None]
    assert "2.png" in caplog.text
    rest = samples.exists("safety", False)
    rest.apply_model(model, label_field="safety", batch_size=1)
    assert samples.values("safety.label") == ["safe", "suicide", None, "safe"]


def test_the_first_picture_that_cannot_be_judged_stops_a_run_that_may_skip_none(model, pictures, dataset):
    samples = dataset(**{"0.png": pictures["safe"], "1.png": b""})
    with pytest.raises(ValueError, match=r"1\.png"):
        samples.apply_model(model, label_field="safety", skip_failures=False, num_workers=0)


def test_an_error_makes_no_label():
    with pytest.raises(ValueError, match="no verdict.*cut off"):
        to_classification(Verdict(categories=["safe", "a"], error="cut off"))


def test_arrays_of_one_size_or_of_many_are_judged_in_their_order(model, arrays):
    assert [label.label for label in model.predict_all(arrays.values())] == list(arrays)
    same = np.stack([arrays["safe"], arrays["safe"][::-1]])
    assert len(model.predict_all(same)) == 2
    assert model.predict(arrays["suicide"]).label == "suicide"
    assert model.predict_all([]) == []


def test_the_pipelines_policy_gives_the_action(judge, pictures, policy):
    for settings, actions in [({}, ["allow", "block", "block"]), ({"mode": "shadow"}, ["allow"] * 3)]:
        model = SafetyModel(SafetyPipeline(judge.model, judge.processor, policy=policy("block", **settings)))
        assert [label.action for label in model.predict_all(pictures.values())] == actions
    assert "action" not in SafetyModel(judge).predict(pictures["safe"])


def test_a_model_that_may_not_judge_raises(pictures, untrained):
    with pytest.raises(RuntimeError, match="cannot judge"):
        SafetyModel(SafetyPipeline(*untrained)).predict(pictures["safe"])
