"""Pictures to verdicts: what they keep, whose policy decides, what bad input costs, and which map is whose."""

import io
import pickle
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import safeqwen
from safeqwen import CATEGORIES, SafetyPipeline, SafetyPolicy, UnreadableImage, Verdict, read_image
from safeqwen.prompt import chat_prompt
from tools.demo.pictograms import draw


SEED = 7_000_000
NAMES = [category.name for category in CATEGORIES]
HARM, SAFE = draw("suicide", SEED, size=168), draw("safe", SEED + 1, size=112)
STRICT = SafetyPolicy(categories=NAMES, unsafe_threshold=0.0)
LENIENT = SafetyPolicy(categories=NAMES, actions={"unsafe": "allow"})


@pytest.fixture(scope="module")
def judge():
    return SafetyPipeline(*safeqwen.load(dtype="float32", device="cpu"))


def png(*frames):
    file = io.BytesIO()
    frames[0].save(file, "PNG", **({"save_all": True, "append_images": frames[1:]} if frames[1:] else {}))
    return file.getvalue()


def glass(picture):
    """The picture's dark parts on no paper: on black paper nothing shows."""
    grey = np.asarray(picture.convert("L"))
    return Image.fromarray(np.dstack([np.zeros((*grey.shape, 3), np.uint8), 255 - grey]))


def as_scores(entries):
    return {entry["label"]: pytest.approx(entry["score"], abs=1e-5) for entry in entries}


# ------------------------------------------------------------------------------------------------------- what it names


def test_a_verdict_holds_the_numbers_of_a_call_and_what_was_judged(judge, tmp_path):
    path = tmp_path / "harm.png"
    path.write_bytes(png(HARM))
    verdict = judge.verdict(path)
    assert verdict.scores == as_scores(judge(path, top_k=None))
    assert list(verdict.scores) == verdict.categories == NAMES
    assert verdict.image is path and verdict.name == str(path) and verdict.error is None
    assert verdict.probs.shape == (1, 20) and verdict.probs.dtype == torch.float32
    assert verdict.frames == [0] and verdict.num_frames == 1 and verdict.seconds > 0
    assert verdict.thumbnail.tobytes() == HARM.tobytes()


def test_a_call_returns_what_it_always_did(judge):
    assert judge(HARM, top_k=2) == [
        {"label": name, "score": score}
        for name, score in sorted(judge.verdict(HARM).scores.items(), key=lambda one: -one[1])[:2]
    ]
    assert list(judge([b""])[0]) == ["error"]


def test_each_source_is_kept_as_given_and_judged_again_from_there(judge):
    sources = [HARM, png(HARM), np.asarray(HARM), {"bytes": png(HARM), "path": "row.png"}]
    for source, verdict in zip(sources, judge.verdicts(sources, batch_size=2), strict=True):
        assert verdict.image is source
        assert_close(judge.verdict(verdict.image).probs, verdict.probs, atol=1e-6, rtol=0)
    (row,) = judge.verdicts([{"image": HARM, "id": 3}])
    assert row.image is HARM


def test_of_a_stream_the_bytes_are_kept(judge, tmp_path):
    path = tmp_path / "harm.png"
    path.write_bytes(png(HARM))
    with open(path, "rb") as file:
        verdicts = [judge.verdict(io.BytesIO(png(HARM))), *judge.verdicts([file], num_workers=1)]
    assert [verdict.name for verdict in verdicts] == ["picture", str(path)]
    assert [verdict.image for verdict in verdicts] == [
        {"bytes": png(HARM), "path": None},
        {"bytes": png(HARM), "path": str(path)},
    ]
    assert_close(judge.verdict(verdicts[1].image).probs, verdicts[0].probs, atol=1e-6, rtol=0)


def test_the_views_of_a_frame_share_its_number_and_the_least_safe_is_shown(judge):
    still, clip = judge.verdicts([glass(HARM), png(SAFE, HARM, SAFE)])
    assert still.frames == [0, 0] and still.num_frames == 1 and still.probs.shape == (2, 20)
    assert clip.frames == [0, 1, 2] and clip.num_frames == 3
    for verdict in (still, clip):
        assert verdict.unsafe == 1 - verdict.probs[:, NAMES.index("safe")].min()
        assert verdict.thumbnail.tobytes() == read_image(verdict.image)[verdict.view].tobytes()
        assert f"the least safe of {len(verdict.frames)} views" in repr(verdict)


def test_a_thumbnail_is_small_in_rgb_and_has_the_pictures_shape(judge):
    wide = draw("safe", SEED, size=448).resize((800, 200))
    thumbnail = judge.verdict(wide, max_pixels=56 * 56).thumbnail
    assert thumbnail.mode == "RGB" and thumbnail.size == (320, 80)
    assert wide.size == (800, 200)


# ---------------------------------------------------------------------------------------------------------- policies


def test_the_policy_is_the_calls_else_the_pipelines_else_the_models(judge, monkeypatch, tmp_path):
    def of(pipeline, **kwargs):
        (many,) = pipeline.verdicts([HARM], **kwargs)
        assert many.policy == pipeline.verdict(HARM, **kwargs).policy
        return many.policy

    assert of(judge) is None
    monkeypatch.setattr(judge.model, "safety_policy", LENIENT)
    assert of(judge) == LENIENT and of(judge, policy=None) is None
    assert of(judge, policy=STRICT) == of(judge, policy=STRICT.save(tmp_path / "strict.json")) == STRICT
    with_its_own = SafetyPipeline(judge.model, judge.processor, policy=STRICT)
    assert of(with_its_own) == STRICT and of(with_its_own, policy="own") == LENIENT
    assert with_its_own.verdict(SAFE).flagged and not with_its_own.verdict(SAFE, policy=LENIENT).flagged
    assert isinstance(judge(HARM), list)  # a call decides only if it is asked to
    with pytest.raises(ValueError, match="another taxonomy"):
        judge.verdict(HARM, policy=SafetyPolicy(categories=["safe", "b"]))


# ---------------------------------------------------------------------------------------------------------- bad input


BAD = {
    "nothing": b"",
    "no picture": b"no picture at all",
    "a web page": b"<html></html>",
    "half a picture": png(HARM)[:-300],
    "no file": "gone/picture.png",
    "a folder": ".",
    "another scheme": "ftp://example.org/a.png",
    "broken base64": "data:image/png;base64,%%%",
    "too thin": Image.new("RGB", (3000, 14)),
    "too small": Image.new("RGB", (5, 5)),
    "floats out of range": np.full((32, 32, 3), 7.5),
    "a black range": np.ones((32, 32, 3), np.uint8),
    "a batch": np.zeros((2, 32, 32, 3), np.uint8),
    "text": io.StringIO("words"),
    "no source": 3.5,
    "none": None,
    "a row without a picture": {"id": 3},
    "a row with nothing": {"image": {"bytes": None, "path": None}},
    "an empty stream": io.BytesIO(b""),
}


@pytest.mark.parametrize("settings", [{}, {"batch_size": 4, "num_workers": 2}])
def test_what_cannot_be_read_is_an_error_in_its_place_and_costs_the_others_nothing(judge, settings):
    pictures = [picture for bad in BAD.values() for picture in (bad, HARM)]
    verdicts = judge.verdicts(pictures, **settings)
    assert len(verdicts) == len(pictures)
    expected = judge.verdict(HARM)
    for name, bad, verdict, good in zip(BAD, BAD.values(), verdicts[::2], verdicts[1::2]):
        with pytest.raises(UnreadableImage) as refused:
            judge.verdict(bad)
        assert verdict.error == str(refused.value) and verdict.probs is None and verdict.thumbnail is None, name
        if not isinstance(bad, (dict, io.IOBase)) and not name.startswith("a row"):
            with pytest.raises(UnreadableImage) as refused:
                read_image(bad)
            assert verdict.error == str(refused.value), name
        assert_close(good.probs, expected.probs, atol=1e-5, rtol=0)


def test_an_error_names_a_picture_that_has_a_name(judge, tmp_path):
    gone, listed = judge.verdicts([tmp_path / "gone.png", [HARM]])
    assert gone.image == tmp_path / "gone.png" and gone.name == str(tmp_path / "gone.png")
    assert gone.to_dict() == {**dict.fromkeys(gone.to_dict()), "image": gone.name, "error": gone.error}
    assert "pass pictures one by one" in listed.error and listed.name == "picture"


class Rows:
    """A dataset whose row 1 cannot be had."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 1:
            raise KeyError("shard 7 is gone")
        return {"image": HARM}


def test_a_row_that_cannot_be_had_is_an_error_without_a_picture(judge):
    first, failed, last = judge.verdicts(Rows(), batch_size=2)
    assert failed.error == "KeyError: 'shard 7 is gone'" and failed.image is None and failed.name == "picture"
    assert first.error is None and last.error is None


def test_a_row_that_fails_when_its_picture_is_asked_for_is_that_rows_error(judge):
    class Lazy(dict):
        def __getitem__(self, key):
            raise OSError("the column is gone")

    failed, good = judge.verdicts([Lazy(image=None), HARM])
    assert failed.error == "OSError: the column is gone" and good.error is None


def test_a_generator_that_fails_loses_no_verdict_before_it(judge):
    def pictures():
        yield HARM
        yield b""
        raise OSError("the disk is gone")

    verdicts = judge.verdicts(pictures(), batch_size=4, num_workers=2)
    assert [next(verdicts).error is None for _ in range(2)] == [True, False]
    with pytest.raises(OSError, match="the disk is gone"):
        next(verdicts)


def test_a_picture_that_the_model_cannot_judge_is_an_error_and_raised_alone(judge, monkeypatch):
    def guard(**inputs):
        raise FloatingPointError("no verdict: scores are NaN")

    monkeypatch.setattr(judge.model, "guard", guard)
    (verdict,) = judge.verdicts([HARM])
    assert verdict.error == "no verdict: scores are NaN" and verdict.image is HARM
    with pytest.raises(FloatingPointError):
        judge.verdict(HARM)


def test_a_reader_without_a_view_is_that_items_error(judge):
    (verdict,) = judge.engine.judge_each(["nothing"], lambda item: [])
    assert "no view" in verdict.error


@pytest.mark.parametrize("setting", [{"top_k": 3}, {"threshold": 0.5}])
def test_settings_of_what_a_call_returns_are_refused(judge, setting):
    for ask in (lambda: judge.verdict(HARM, **setting), lambda: judge.verdicts([HARM], **setting)):
        with pytest.raises(ValueError, match=f"leave out {next(iter(setting))}"):
            ask()


def test_one_picture_is_not_several(judge):
    for one in (HARM, "picture.png", png(HARM), io.BytesIO(), {"image": HARM}, np.zeros((32, 32))):
        with pytest.raises(ValueError, match="verdict takes one"):
            judge.verdicts(one)
    with pytest.raises(UnreadableImage, match="one by one"):
        judge.verdict([HARM])
    with pytest.raises(ValueError, match="batch_size"):
        judge.verdicts([HARM], batch_size=0)
    assert judge.verdicts([]) == []


# ------------------------------------------------------------------------------------------------- memory and threads


def test_verdicts_of_a_generator_come_as_they_are_asked_for_and_keep_no_decoded_picture(judge, monkeypatch):
    views, num_read = [], []

    def read(source, **kwargs):
        num_read.append(1)
        read_now = read_image(source)
        views.extend(map(weakref.ref, read_now))
        return read_now

    monkeypatch.setattr(sys.modules[SafetyPipeline.__module__], "read_image", read)
    verdicts = judge.verdicts(png(HARM) for _ in range(1000))
    kept = [next(verdicts) for _ in range(4)]
    assert len(num_read) <= 5 and [verdict.error for verdict in kept] == [None] * 4
    assert len(views) == len(num_read) and not any(view() for view in views)
    verdicts.close()


def test_pictures_are_read_and_their_thumbnails_made_by_the_workers(judge, monkeypatch):
    threads = {"read": set(), "thumbnail": set()}

    def noting(name, call):
        def noted(*args, **kwargs):
            threads[name].add(threading.current_thread())
            return call(*args, **kwargs)

        return noted

    engine = sys.modules["safeqwen.judging.engine"]
    monkeypatch.setattr(engine, "thumbnail_of", noting("thumbnail", engine.thumbnail_of))
    monkeypatch.setattr(engine, "read_stream", noting("read", engine.read_stream))
    judge.verdicts([io.BytesIO(png(HARM)) for _ in range(4)], num_workers=2)
    assert threading.current_thread() not in threads["read"] | threads["thumbnail"]
    assert threads["read"] and threads["thumbnail"]
    threads["thumbnail"].clear()
    judge([HARM])
    judge(HARM)
    assert not threads["thumbnail"]  # whose scores alone are asked for


def test_threads_may_share_a_pipeline(judge):
    pictures = [HARM, SAFE] * 4
    expected = {id(picture): judge.verdict(picture).probs for picture in pictures}
    with ThreadPoolExecutor(4) as pool:
        for picture, verdict in zip(pictures, pool.map(judge.verdict, pictures)):
            assert verdict.image is picture
            assert_close(verdict.probs, expected[id(picture)], atol=1e-6, rtol=0)


# ---------------------------------------------------------------------------------------------------------- heat maps


@pytest.fixture
def drawn(monkeypatch):
    """What the module of heat maps is asked for; it answers with the engine's own probabilities, plus `off`."""
    asked = SimpleNamespace(calls=[], off=0.0)

    def heatmaps(engine, view, categories, max_pixels=None):
        asked.calls.append((view, categories, max_pixels))
        (probs,) = engine.judge(engine.prepare([view], max_pixels))
        return [SimpleNamespace(category=name, probs=(probs + asked.off).numpy()) for name in categories]

    monkeypatch.setitem(sys.modules, "safeqwen.judging.heatmap", SimpleNamespace(heatmaps=heatmaps))
    return asked


def test_maps_are_of_the_view_that_counts_in_one_call_and_by_default_of_the_label(judge, drawn):
    clip = png(SAFE.resize(HARM.size), HARM)
    verdict = judge.verdict(clip, max_pixels=112 * 112)
    assert verdict.heatmap().category == verdict.label
    assert [one.category for one in verdict.heatmaps(["safe", "suicide"])] == ["safe", "suicide"]
    for (view, categories, max_pixels), expected in zip(drawn.calls, ([verdict.label], ["safe", "suicide"])):
        assert view.tobytes() == read_image(clip)[verdict.view].tobytes()
        assert categories == expected and max_pixels == 112 * 112
    assert len(drawn.calls) == 2
    with pytest.raises(ValueError, match="a list of names"):
        verdict.heatmaps("safe")


@pytest.mark.parametrize("source", [HARM, np.asarray(HARM), io.BytesIO(png(HARM)), glass(HARM), {"image": HARM}])
def test_maps_are_drawn_whatever_the_picture_came_from(judge, drawn, source):
    (verdict,) = judge.verdicts([source], batch_size=2)
    assert verdict.heatmap("suicide").category == "suicide"


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (png(SAFE), "changed since"),
        (png(HARM, SAFE), "changed since"),
        (png(HARM.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), "changed since"),
        (b"", "empty"),
        (None, "no such file"),
    ],
)
def test_a_map_never_explains_another_picture(judge, drawn, tmp_path, now, message):
    path = tmp_path / "a.png"
    path.write_bytes(png(HARM))
    verdict = judge.verdict(path)
    path.unlink()
    if now is not None:
        path.write_bytes(now)
    with pytest.raises(ValueError, match=f"a.png: .*{message}"):
        verdict.heatmap()
    path.write_bytes(png(HARM))
    assert verdict.heatmap()


@pytest.mark.parametrize(("dtype", "same", "other"), [("float32", 5e-4, 2e-3), ("bfloat16", 0.04, 0.06)])
def test_probabilities_that_differ_by_more_than_rounding_are_another_pictures(drawn, dtype, same, other):
    verdict = SafetyPipeline(*safeqwen.load(dtype=dtype, device="cpu")).verdict(HARM)
    for sign in (1, -1):
        drawn.off = sign * same
        assert verdict.heatmap()
        drawn.off = sign * other
        with pytest.raises(ValueError, match="changed since"):
            verdict.heatmap()


def test_a_sent_verdict_has_everything_but_maps(judge):
    verdict = judge.verdict(png(HARM), policy=STRICT)
    again = pickle.loads(pickle.dumps(verdict))
    assert len(pickle.dumps(verdict)) < 300_000  # without the model
    assert again.to_dict() == verdict.to_dict() and again.thumbnail.tobytes() == verdict.thumbnail.tobytes()
    with pytest.raises(ValueError, match="unpickled"):
        again.heatmap()
    assert replace(verdict, policy=LENIENT).decision.action == "allow"


# --------------------------------------------------------------------------------------------- the model's own output


def test_what_the_model_returns_becomes_verdicts(judge):
    model, processor = judge.model, judge.processor
    pictures, counts = [HARM, SAFE, HARM], (1, 2, 0)  # of each prompt
    texts = [chat_prompt(processor, count, "What?", add_generation_prompt=True) for count in counts]
    inputs = processor(
        text=texts, images=pictures, return_tensors="pt", text_kwargs={"padding": True, "padding_side": "left"}
    )
    inputs.pop("mm_token_type_ids", None)
    expected = model.guard(**inputs).img_safety_probs
    settings = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True}
    outputs = [
        model.guard(**inputs),
        model(**inputs, do_safety=True),
        model.generate(**inputs, do_safety=True, **settings),
        model.generate(**inputs, do_safety=True, num_beams=2, **settings),
        model.generate(**inputs, safety_threshold=0.5, **settings),
    ]
    for output in outputs:
        verdicts = Verdict.of(output, model)
        assert [verdict.error is None for verdict in verdicts] == [True, True, False]
        for verdict, row in zip(verdicts[:2], expected):
            assert_close(verdict.probs[0], row, atol=1e-5, rtol=0)
        assert verdicts[0].scores == as_scores(judge(HARM, top_k=None))
        assert "holds no picture" in verdicts[2].error
    assert [one.flagged for one in verdicts[:2]] == output.safety_flagged.tolist()[:2]  # 0.5 is both thresholds
    per_picture = Verdict.of(model.guard(granularity="image", **inputs), model)
    assert len(per_picture) == 3 and per_picture[0].label == verdicts[0].label
    with pytest.raises(ValueError, match="each patch"):
        Verdict.of(model.guard(granularity="patch", **inputs), model)
    words = processor(text=[chat_prompt(processor, 0, "What?", add_generation_prompt=True)], return_tensors="pt")
    words.pop("mm_token_type_ids", None)
    with pytest.raises(ValueError, match="nothing was judged"):
        Verdict.of(model.generate(**words, do_safety=True, **settings), model)
    with pytest.raises(ValueError, match="is a Tensor"):
        Verdict.of(model.generate(**words, max_new_tokens=1), model)
