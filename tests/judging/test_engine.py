"""The engine that pictures are judged by: which frames go together, what comes of a source that fails."""

import itertools
import threading

import pytest
import torch

import safeqwen
from safeqwen.judging.ahead import MAX_ERRORS_IN_A_ROW, Budget, SourceFailed, items_of
from safeqwen.judging.engine import Engine, Frame, is_out_of_memory
from safeqwen.pictures import read_image
from tools.demo.pictograms import draw


@pytest.fixture(scope="module")
def engine():
    return Engine(*safeqwen.load())


def frames_of(*num_tokens):
    return [Frame(None, torch.tensor([[1, 2, 2 * n]]), n) for n in num_tokens]


def test_frames_of_similar_size_share_a_batch(engine):
    prompt = len(engine._before) + len(engine._after)
    batches = engine._batches(frames_of(90, 10, 30, 11, 31), 2, 10_000)
    assert batches == [[1, 3], [2, 4], [0]]
    # Three of at most 11 tokens with the prompt around each; 30 would make it too long.
    assert engine._batches(frames_of(10, 30, 11, 11), 9, 3 * (11 + prompt)) == [[0, 2, 3], [1]]
    assert engine._batches(frames_of(10, 30), 9, 1) == [[0], [1]]


def test_an_animation_is_judged_frame_by_frame_within_the_batch_size(engine, monkeypatch):
    sizes, usual = [], engine._forward
    monkeypatch.setattr(engine, "_forward", lambda frames: sizes.append(len(frames)) or usual(frames))
    animation = [view for name in ("safe", "suicide", "safe") for view in read_image(draw(name, 2))]
    for number, view in enumerate(animation):
        view.info["safeqwen_frame"] = number
    (still,), (moving,) = (list(engine.judge_each([item], list, batch_size=2)) for item in (animation[:1], animation))
    assert still.probs.shape == (1, 20) and moving.probs.shape == (3, 20) and sizes == [1, 2, 1]
    assert still.frames == [0] and moving.frames == [0, 1, 2]
    for probs, frame in zip(moving.probs, animation):
        torch.testing.assert_close(probs, engine.judge(engine.prepare([frame]))[0], atol=1e-6, rtol=0)


def test_whatever_a_reader_raises_is_that_items_error(engine):
    def read(item):
        if item == 1:
            raise ZeroDivisionError("no such luck")
        return [draw("safe", item)]

    for num_workers in (0, 2):
        verdicts = list(engine.judge_each(range(3), read, num_workers=num_workers))
        assert [verdict.error for verdict in verdicts] == [None, "ZeroDivisionError: no such luck", None]
        assert [verdict.image for verdict in verdicts] == [0, 1, 2]


def test_a_judged_frame_gives_its_memory_back(engine, monkeypatch):
    (frame,) = engine.prepare([draw("safe", 1)])
    assert frame.num_bytes == 224 * 224 * 24  # three float32 channels, twice
    monkeypatch.setattr(engine, "prepare", lambda frames, max_pixels: [frame])
    (verdict,) = engine.judge_each([[draw("safe", 1)]], list)
    assert verdict.probs.shape == (1, 20) and frame.pixel_values is None and frame.num_bytes == 0


def test_a_source_that_fails_for_ever_ends():
    class Broken:
        def __iter__(self):
            return self

        def __next__(self):
            raise OSError("the share is gone")

    items = list(itertools.islice(items_of(Broken()), MAX_ERRORS_IN_A_ROW + 2))
    assert len(items) == MAX_ERRORS_IN_A_ROW + 1
    assert isinstance(items[-1], SourceFailed) and all(isinstance(item, OSError) for item in items[:-1])


def test_the_picture_that_is_waited_for_needs_no_free_memory():
    budget, started = Budget(10), []
    budget.take(11)
    budget.want(3)
    budget.wait(3)  # returns
    later = threading.Thread(target=lambda: (budget.wait(4), started.append(4)), daemon=True)
    later.start()
    later.join(0.2)
    assert not started
    budget.want(4)
    later.join(20)
    assert started == [4]


def test_only_a_want_of_memory_is_one():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not fit")) and not is_out_of_memory(
        ValueError("out of memory")
    )
