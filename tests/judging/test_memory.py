"""What pictures take: memory that is bounded, or that cannot be had, and threads that read ahead."""

import gc
import io
import sys
import threading
import weakref

import pytest
import torch
from test_pipeline import PICTURE, SEED, near, png

import safeqwen
from safeqwen import SafetyPipeline
from tools.demo.pictograms import draw


@pytest.fixture(scope="module")
def judge():
    return SafetyPipeline(*safeqwen.load())


def fails_for_want_of_accelerator_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def fails_for_want_of_memory():
    torch.empty(2**50)


def fails_in_python():
    raise MemoryError


@pytest.mark.parametrize("fail", [fails_for_want_of_accelerator_memory, fails_for_want_of_memory, fails_in_python])
def test_what_does_not_fit_is_split_down_to_one_picture_and_is_then_its_error(judge, monkeypatch, fail):
    expected = [near(verdict) for verdict in judge([PICTURE] * 5)]
    large = draw("safe", SEED, size=448)
    usual, rows = judge.model.guard, []

    def guard(**inputs):
        rows.append(inputs["input_ids"].shape[0])
        if rows[-1] > 2 or inputs["image_grid_thw"].prod(-1).max() > 600:
            fail()
        return usual(**inputs)

    monkeypatch.setattr(judge.model, "guard", guard)
    assert judge([PICTURE] * 5, batch_size=5) == expected
    assert rows == [5, 2, 3, 1, 2]
    monkeypatch.setitem(judge.processor.image_processor.size, "longest_edge", 448**2)
    # of 1,024 patches; the others have 256
    verdicts = judge([PICTURE, large, PICTURE], batch_size=3)
    assert [list(verdict) == ["error"] for verdict in verdicts] == [False, True, False]
    assert "memory" in verdicts[1]["error"] and "max_pixels" in verdicts[1]["error"]
    with pytest.raises(MemoryError, match="256 tokens"):
        judge(large)


def test_another_error_of_the_model_is_raised(judge, monkeypatch):
    def guard(**inputs):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(judge.model, "guard", guard)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        judge([PICTURE])


def test_workers_read_ahead_whatever_the_batch_size(judge):
    together = threading.Barrier(3)

    class Meets(io.BytesIO):
        """A file that is read only while two others are."""

        def read(self, size=-1):
            if self.tell() == 0:
                together.wait(timeout=20)
            return super().read(size)

    verdicts = judge([Meets(png(PICTURE)) for _ in range(6)], batch_size=1, num_workers=3)
    assert verdicts == [near(judge(PICTURE))] * 6


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("num_workers", [0, 3])
def test_prepared_pictures_keep_to_the_memory_budget(judge, monkeypatch, num_workers, batch_size):
    num_bytes = 224 * 224 * 24
    alive, most = weakref.WeakSet(), []
    usual = judge.engine.prepare

    def prepare(frames, max_pixels=None):
        prepared = usual(frames, max_pixels)
        assert prepared[0].num_bytes == num_bytes
        alive.add(prepared[0].pixel_values)
        most.append(len(alive))
        return prepared

    monkeypatch.setattr(judge.engine, "prepare", prepare)
    pictures = [draw("suicide", SEED + i, size=224) for i in range(24)]
    settings = {"batch_size": batch_size, "num_workers": num_workers, "max_pixels": 224**2, "top_k": 1}
    kept = list(judge((picture for picture in pictures), memory_budget=4 * num_bytes, **settings))
    assert max(most) <= 4 + max(1, num_workers)
    assert kept == [near(verdict) for verdict in judge(pictures, **settings)]


def test_a_scan_can_be_left_while_workers_wait_for_memory(judge):
    verdicts = judge((PICTURE for _ in range(1000)), batch_size=2, num_workers=2, memory_budget=1)
    assert next(verdicts) == near(judge(PICTURE))
    verdicts.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


@pytest.mark.parametrize("settings", [{}, {"batch_size": 2}], ids=["one by one", "in batches"])
def test_no_decoded_picture_is_alive_while_it_is_judged(judge, monkeypatch, settings):
    views, alive, large = [], [], draw("safe", SEED, size=448)
    judge_batch, read_image = judge.engine._judge_batch, safeqwen.read_image

    def read(source, **kwargs):
        read_now = read_image(source)
        views.extend(map(weakref.ref, read_now))
        return read_now

    def judging(frames):
        alive.append(sum(view() is not None for view in views))
        return judge_batch(frames)

    monkeypatch.setattr(sys.modules[SafetyPipeline.__module__], "read_image", read)
    monkeypatch.setattr(judge.engine, "_judge_batch", judging)
    gc.disable()  # what would wait for it is alive
    try:
        for verdict in judge.verdicts((png(large) for _ in range(4)), **settings):
            assert verdict.error is None
    finally:
        gc.enable()
    assert alive and not any(alive)
