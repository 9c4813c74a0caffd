"""A policy where it is used: beside the weights, in the pipeline, with `generate`, on pictures of several views."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from tiny import random_state_dict, write_released_folder
from transformers import pipeline

import safeqwen
from safeqwen import CATEGORIES, DEMO_CHECKPOINT, Decision, SafetyPipeline, SafetyPolicy, UnreadableImage
from safeqwen.fingerprint import weights_fingerprint
from safeqwen.judging.load import load_policy
from safeqwen.pictures import frame_numbers, read_image
from safeqwen.prompt import chat_prompt
from tools.demo.pictograms import draw


NAMES = [category.name for category in CATEGORIES]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SAFE, SUICIDE = (draw(name, 5_000_000, size=168) for name in ("safe", "suicide"))
BLOCKS = SafetyPolicy(categories=NAMES, category_thresholds={"suicide": 0.5}, actions={"suicide": "block"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The demo's folder with a policy that was fitted to its weights."""
    copy = tmp_path_factory.mktemp("with-policy") / "demo"
    shutil.copytree(DEMO_CHECKPOINT, copy)
    replace(BLOCKS, model=weights_fingerprint(copy)).save(copy)
    return copy


@pytest.fixture(scope="module")
def judge(folder):
    return pipeline("image-safety", model=str(folder), dtype=torch.float32)


# -------------------------------------------------------------------------------------------------- beside the weights


def test_a_policy_is_loaded_with_its_weights(folder, judge):
    expected = replace(BLOCKS, model=weights_fingerprint(folder))
    assert safeqwen.load(folder)[0].safety_policy == judge.model.safety_policy == expected
    assert safeqwen.load()[0].safety_policy is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "0" * 64}, "fitted to the weights 000000000000.*move it out first"),
        ({"categories": ["safe", "suicide"], "groups": {}}, "another taxonomy"),
    ],
)
def test_a_folder_whose_policy_is_for_another_model_is_not_loaded(folder, tmp_path, changed, message):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    replace(BLOCKS, **changed).save(copy)
    with pytest.raises(ValueError, match=message):
        safeqwen.load(copy)
    with pytest.raises(ValueError, match=message):
        pipeline("image-safety", model=str(copy))


def test_a_policy_is_found_in_a_repository_through_the_cache(tmp_path):
    repository = tmp_path / "models--someone--tiny"
    snapshot = write_released_folder(repository / "snapshots" / COMMIT, random_state_dict(), num_shards=2)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    hub = {"cache_dir": tmp_path, "local_files_only": True}
    assert load_policy("someone/tiny", NAMES, **hub) is None
    fitted = replace(BLOCKS, model=weights_fingerprint(snapshot))
    fitted.save(snapshot)
    assert weights_fingerprint("someone/tiny", **hub) == fitted.model
    assert load_policy("someone/tiny", NAMES, **hub) == fitted
    with pytest.raises(ValueError, match="taxonomy"):
        load_policy("someone/tiny", NAMES[::-1], **hub)


def test_a_policy_whose_link_is_broken_is_not_left_out(tmp_path):
    (tmp_path / "safety_policy.json").symlink_to(tmp_path / "gone.json")
    with pytest.raises(FileNotFoundError):
        load_policy(tmp_path, NAMES)


def test_a_hub_that_cannot_be_asked_is_no_answer(monkeypatch):
    """Else a policy would be left out because the network failed."""

    def fail(*args, **kwargs):  # as a download does after its last try
        raise LocalEntryNotFoundError("the Hub cannot be reached")

    monkeypatch.setattr("safeqwen.fingerprint.hf_hub_download", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(OSError):
        load_policy("someone/tiny", NAMES)
    assert load_policy("someone/tiny", NAMES, local_files_only=True) is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_policy("someone/tiny", NAMES) is None


def test_the_pipeline_saves_its_policy_for_the_weights_that_it_writes(folder, tmp_path):
    SafetyPipeline(*safeqwen.load(folder)).save_pretrained(tmp_path / "saved")  # float32; the folder has float16
    saved = SafetyPolicy.load(tmp_path / "saved")
    assert saved.model == weights_fingerprint(tmp_path / "saved") != weights_fingerprint(folder)
    assert replace(saved, model=None) == BLOCKS
    assert pipeline("image-safety", model=str(tmp_path / "saved"), policy="own")(SUICIDE)["decision"].action == "block"


def test_a_pipeline_that_was_given_a_dtype_can_be_saved(judge, tmp_path):
    judge.save_pretrained(tmp_path)
    assert "dtype" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert pipeline("image-safety", model=str(tmp_path), policy="own")(SUICIDE)["decision"].action == "block"


# ------------------------------------------------------------------------------------------------------- the pipeline


def test_without_being_asked_for_a_decision_the_pipeline_returns_what_it_always_did(judge):
    plain = judge(SUICIDE)
    assert isinstance(plain, list) and plain[0]["label"] == "suicide"
    assert judge([SUICIDE])[0][0]["label"] == "suicide"


@pytest.mark.parametrize("batch_size", [1, 3])
def test_with_a_policy_each_picture_has_a_decision_beside_its_scores(judge, tmp_path, batch_size):
    file = BLOCKS.save(tmp_path / "rules.json")
    broken = io.BytesIO(b"no picture")
    for policy in ("own", BLOCKS, file, str(file)):
        verdicts = judge([SAFE, broken, SUICIDE], policy=policy, batch_size=batch_size, num_workers=2)
        assert [verdict["decision"].action for verdict in (verdicts[0], verdicts[2])] == ["allow", "block"]
        assert list(verdicts[1]) == ["error"]
        assert isinstance(verdicts[2]["decision"], Decision)
        assert verdicts[2]["scores"][0] == {"label": "suicide", "score": verdicts[2]["decision"].scores["suicide"]}
    assert judge(SUICIDE, policy="own")["decision"].reason.category == "suicide"
    with pytest.raises(UnreadableImage):
        judge(broken, policy="own")


def test_a_policy_of_the_constructor_holds_for_every_call_until_one_says_none(judge):
    always = SafetyPipeline(judge.model, judge.processor, policy=BLOCKS)
    assert always(SUICIDE)["decision"].action == "block"
    assert [verdict["decision"].action for verdict in always(iter([SUICIDE, SAFE]))] == ["block", "allow"]
    assert isinstance(always(SUICIDE, policy=None), list)


def test_a_dataset_that_fails_here_and_there_keeps_its_order_of_decisions(judge):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            if index == 1:
                raise OSError("the disk is gone")
            return {"image": SUICIDE if index == 2 else SAFE}

    verdicts = list(judge(Rows(), policy="own"))
    assert [verdict["decision"].action if "decision" in verdict else verdict["error"] for verdict in verdicts] == [
        "allow",
        "OSError: the disk is gone",
        "block",
        "allow",
    ]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (SafetyPolicy(categories=["safe", "suicide"]), "another taxonomy"),
        (replace(BLOCKS, model="0" * 64), "fitted to the weights 000000000000"),
    ],
)
def test_the_pipeline_refuses_a_policy_for_another_model(judge, policy, message):
    with pytest.raises(ValueError, match=message):
        SafetyPipeline(judge.model, judge.processor, policy=policy)
    with pytest.raises(ValueError, match=message):
        judge(SAFE, policy=policy)


def test_what_cannot_be_had_or_told_is_refused(judge, tmp_path):
    model, processor = safeqwen.load()
    with pytest.raises(ValueError, match="no policy beside these weights"):
        SafetyPipeline(model, processor, policy="own")
    with pytest.raises(OSError):
        judge(SAFE, policy=tmp_path / "gone.json")
    model.config._name_or_path = ""  # as of a model that was made in memory
    fitted = replace(BLOCKS, model=weights_fingerprint(DEMO_CHECKPOINT))
    with pytest.raises(ValueError, match="cannot be told.*replace"):
        SafetyPipeline(model, processor, policy=fitted)
    assert SafetyPipeline(model, processor, policy=BLOCKS)(SAFE)["decision"].action == "allow"


# --------------------------------------------------------------------------------------------- frames and their views


def animation(frames):
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:], duration=100)
    return file.getvalue()


def see_through(picture):
    """Black where the picture is dark, and no paper where it is light: on black paper there is nothing to see."""
    grey = np.asarray(picture.convert("L"))
    return Image.fromarray(np.dstack([np.zeros((*grey.shape, 3), np.uint8), 255 - grey]))


def test_views_carry_the_number_of_their_frame_wherever_they_come_from():
    frames = [see_through(SUICIDE), see_through(SAFE)]
    data = animation(frames)
    opened = Image.open(io.BytesIO(data))
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    for source in (data, opened, loaded, {"bytes": data}):
        assert frame_numbers(read_image(source)) == [0, 0, 1, 1]
    assert frame_numbers(read_image(data, one_paper=True)) == [0, 1]
    for source in (frames[0], np.asarray(frames[0])):
        assert frame_numbers(read_image(source)) == [0, 0]
    assert frame_numbers(read_image(animation([SAFE, SUICIDE, SAFE]))) == [0, 1, 2]
    assert frame_numbers(read_image(SAFE)) == frame_numbers(read_image(np.asarray(SAFE))) == [0]
    assert frame_numbers([view.copy().resize((64, 64)) for view in read_image(data)]) == [0, 0, 1, 1]
    assert frame_numbers([]) == []


def test_a_picture_that_does_not_say_which_frame_it_shows_is_refused():
    with pytest.raises(ValueError, match="view 1 does not say"):
        frame_numbers([*read_image(SAFE), SUICIDE])


ALL_FRAMES = replace(BLOCKS, clip={"at_least": 1, "of": 1})


@pytest.mark.parametrize("as_list", [False, True])
def test_a_still_that_shows_its_harm_on_one_paper_alone_never_passes(judge, as_list):
    picture = see_through(SUICIDE)
    views = judge([view for view in read_image(picture)])
    assert [verdict[0]["label"] == "suicide" for verdict in views] == [True, False]  # on white, on black paper
    verdict = judge([picture], policy=ALL_FRAMES)[0] if as_list else judge(picture, policy=ALL_FRAMES)
    assert verdict["decision"].action == "block"
    assert (verdict["decision"].num_frames, verdict["decision"].num_frames_fired) == (1, 1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pictures_that_are_batched_together_keep_their_own_frames(judge, num_workers):
    still, clip = see_through(SUICIDE), animation([SUICIDE, SAFE])  # two views each
    pictures = [clip, still, clip, still, SUICIDE]
    verdicts = judge(pictures, policy=ALL_FRAMES, batch_size=4, num_workers=num_workers)
    actions = [verdict["decision"].action for verdict in verdicts]
    assert actions == ["allow", "block", "allow", "block", "block"]


def test_a_clip_is_counted_by_frames(judge):
    clip = animation([SUICIDE, SAFE, SUICIDE, SAFE])
    assert judge(clip, policy=ALL_FRAMES)["decision"].action == "allow"
    half = replace(BLOCKS, clip={"at_least": 1, "of": 2})
    (verdict,) = judge([clip], policy=half, num_workers=1)
    assert verdict["decision"].action == "block" and verdict["decision"].num_frames_fired == 2


# ---------------------------------------------------------------------------------------------------------- generate


@pytest.mark.parametrize(("temperature", "threshold"), [(2.0, 0.7), (0.5, 0.2), (1.0, 0.5)])
def test_generate_stops_exactly_the_rows_for_which_the_rule_unsafe_fires(judge, temperature, threshold):
    policy = SafetyPolicy(categories=NAMES, temperature=temperature, unsafe_threshold=threshold)
    model, processor = judge.model, judge.processor
    pictures = [draw(NAMES[i % 20], 5_100_000 + i, size=84).resize((84, 84)) for i in range(16)]
    pictures[3:8] = [Image.blend(SAFE.resize((84, 84)), SUICIDE.resize((84, 84)), share / 8) for share in range(2, 7)]
    text = chat_prompt(processor, 1, "What do you see?", add_generation_prompt=True)
    inputs = processor(text=[text] * len(pictures), images=pictures, return_tensors="pt", padding=True)
    output = model.generate(
        **inputs,
        do_safety=True,
        safety_threshold=policy.safety_threshold,
        return_dict_in_generate=True,
        max_new_tokens=2,
        do_sample=False,
    )
    fires = [policy.decide(probs).flagged for probs in output.img_safety_probs]
    assert output.safety_flagged.tolist() == fires
    assert 0 < sum(fires) < len(fires)
    # The threshold would stop others if it were taken for a raw one.
    if temperature != 1:
        between = sorted([policy.safety_threshold, threshold])
        assert abs(between[1] - between[0]) > 0.1


def test_decisions_of_the_pipeline_are_plain_data(judge):
    fields = judge(SUICIDE, policy="own")["decision"].to_dict()
    assert json.loads(json.dumps(fields)) == fields
