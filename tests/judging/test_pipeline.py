"""`pipeline("image-safety")` judges what image pipelines take, as stock Qwen2.5-VL and the guard's algebra would."""

import base64
import io
import sys

import datasets
import numpy as np
import pandas
import pytest
import torch
from tiny import VERSION_4, head_by_hand
from torch.testing import assert_close
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, pipeline
from transformers.pipelines.pt_utils import KeyDataset

import safeqwen
from safeqwen import DEMO_CHECKPOINT, SafetyPipeline, UnreadableImage
from safeqwen.judging.pipeline import default_dtype
from tools.demo.pictograms import draw


SEED = 3_000_000
CATEGORIES = [category.name for category in safeqwen.CATEGORIES]
PICTURE = draw("weapon_related_violence", SEED, size=168)


@pytest.fixture(scope="module")
def judge():
    return pipeline("image-safety", model=str(DEMO_CHECKPOINT), dtype=torch.float32)


@pytest.fixture(scope="module")
def expected():
    """Picture -> {category: probability}, by stock Qwen2.5-VL, its processor and the guard's algebra."""
    stock = Qwen2_5_VLForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(DEMO_CHECKPOINT)
    weights = safeqwen.load()[0].state_dict()

    def probabilities(picture):
        messages = [{"role": "user", "content": [{"type": "image"}]}]
        text = processor.apply_chat_template(messages, tokenize=False)
        inputs = processor(text=[text], images=[picture], return_tensors="pt")
        image_tokens = inputs["input_ids"][0] == stock.config.image_token_id
        if VERSION_4:
            inputs.pop("mm_token_type_ids", None)
        with torch.no_grad():
            hidden_states = stock.model(**inputs).last_hidden_state[0]
        probs = head_by_hand(weights, hidden_states[image_tokens].mean(dim=0)).softmax(-1)
        return dict(zip(CATEGORIES, probs.tolist()))

    return probabilities


def png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def as_dict(verdict):
    return {entry["label"]: entry["score"] for entry in verdict}


def near(verdict):
    """What equals the verdict up to rounding, which differs from one memory layout to another."""
    return [{"label": entry["label"], "score": pytest.approx(entry["score"], abs=1e-6)} for entry in verdict]


def assert_verdict(verdict, expected):
    scores = as_dict(verdict)
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    for name, score in scores.items():
        assert score == pytest.approx(expected[name], abs=1e-5)


def test_a_verdict_is_stocks_hidden_states_through_the_guard(judge, expected):
    verdict = judge(PICTURE, top_k=20)
    assert len(verdict) == 20
    assert_verdict(verdict, expected(PICTURE))


def test_every_source_of_a_picture_gives_its_verdict(judge, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(png(PICTURE))
    encoded = base64.b64encode(png(PICTURE)).decode()
    sources = [
        path,
        str(path),
        png(PICTURE),
        io.BytesIO(png(PICTURE)),
        encoded,
        f"data:image/png;base64,{encoded}",
        np.asarray(PICTURE),
        torch.from_numpy(np.array(PICTURE)).permute(2, 0, 1),
        {"bytes": png(PICTURE), "path": None},
        {"image": PICTURE, "label": 3},
    ]
    for source in sources:
        assert judge(source) == near(judge(PICTURE)), source


SIZES = (112, 224, 150, 90, 300, 64, 200, 500, 170)
MIXED = [
    draw(CATEGORIES[2 * i], SEED + i, size=size).resize((size, size // (1 + i % 3))) for i, size in enumerate(SIZES)
]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
@pytest.mark.parametrize("num_workers", [0, 3])
def test_lists_generators_and_datasets_are_judged_in_their_order(judge, expected, batch_size, num_workers):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(MIXED)

        def __getitem__(self, index):
            return {"image": MIXED[index]}

    kwargs = {"batch_size": batch_size, "num_workers": num_workers, "top_k": 20}
    verdicts = judge(MIXED, **kwargs)
    assert isinstance(verdicts, list)
    for picture, verdict in zip(MIXED, verdicts, strict=True):
        assert_verdict(verdict, expected(picture))
    assert list(judge((picture for picture in MIXED), **kwargs)) == [near(verdict) for verdict in verdicts]
    assert list(judge(Rows(), **kwargs)) == [near(verdict) for verdict in verdicts]


def test_a_generator_is_read_only_as_far_as_it_is_asked(judge):
    read = []

    def pictures():
        for i in range(1000):
            read.append(i)
            yield PICTURE

    verdicts = judge(pictures(), batch_size=2)
    next(verdicts)
    assert len(read) <= 8


def test_no_pictures_are_no_verdicts(judge):
    assert judge([]) == []


def test_a_batch_holds_no_more_tokens_than_allowed(judge):
    shapes = []
    embed = judge.model.get_input_embeddings()
    hook = embed.register_forward_hook(lambda module, args, output: shapes.append(output.shape[:2]))
    try:
        verdicts = judge(MIXED, batch_size=9, max_batch_tokens=220)
    finally:
        hook.remove()
    assert len(verdicts) == 9
    assert sum(rows for rows, _ in shapes) == 9 and len(shapes) > 1
    assert all(rows * length <= 220 for rows, length in shapes)
    assert len(shapes) < 9
    shapes.clear()
    assert judge(MIXED, batch_size=9, max_batch_tokens=1, top_k=1) == [near(verdict[:1]) for verdict in verdicts]


def test_one_bad_picture_costs_the_others_nothing(judge, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    verdicts = judge([PICTURE, str(tmp_path / "empty.png"), tmp_path / "gone.png", PICTURE], batch_size=3)
    for verdict in (verdicts[0], verdicts[3]):
        assert verdict == near(judge(PICTURE))
    assert [list(verdict) for verdict in verdicts[1:3]] == [["error"], ["error"]]
    assert "empty.png" in verdicts[1]["error"] and "gone.png" in verdicts[2]["error"]
    with pytest.raises(UnreadableImage, match="gone.png"):
        judge(tmp_path / "gone.png")


def test_a_picture_that_overflows_costs_the_others_nothing(judge, monkeypatch):
    usual = judge.engine.prepare

    def prepare(frames, max_pixels=None):
        prepared = usual(frames, max_pixels)
        if frames[0].width == 100:
            prepared[0].pixel_values = torch.full_like(prepared[0].pixel_values, float("inf"))
        return prepared

    monkeypatch.setattr(judge.engine, "prepare", prepare)
    overflows = draw("safe", SEED, size=100)
    verdicts = judge([PICTURE, overflows, PICTURE], batch_size=3)
    for verdict in (verdicts[0], verdicts[2]):
        assert verdict == near(judge(PICTURE))
    assert "NaN or infinite" in verdicts[1]["error"]
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        judge(overflows)


def test_an_animation_is_as_unsafe_as_its_worst_frame(judge, tmp_path):
    frames = [draw("safe", SEED + 1), draw("suicide", SEED + 2), draw("safe", SEED + 3)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    verdict = judge(tmp_path / "moving.webp", top_k=20)
    assert as_dict(verdict) == pytest.approx(as_dict(judge(frames[1], top_k=20)), abs=1e-5)
    singly = judge(tmp_path / "moving.webp", top_k=20, max_batch_tokens=1)
    assert singly == near(verdict)


def test_top_k_and_threshold_choose_what_is_returned(judge):
    everything = judge(PICTURE, top_k=20)
    assert len(judge(PICTURE)) == 5
    assert judge(PICTURE, top_k=3) == near(everything[:3])
    assert judge(PICTURE, top_k=100) == near(everything)
    assert judge(PICTURE, top_k=None) == near(everything)
    bound = (everything[1]["score"] + everything[2]["score"]) / 2
    assert judge(PICTURE, threshold=bound) == near(everything[:2])
    assert judge(PICTURE, threshold=1.0) == near(everything[:1])  # never empty: nothing is not a verdict
    fixed = SafetyPipeline(judge.model, judge.processor, top_k=1)
    assert fixed(PICTURE) == near(everything[:1])
    assert fixed(PICTURE, top_k=2) == near(everything[:2])
    assert fixed(PICTURE, top_k=None) == near(everything)


@pytest.mark.parametrize(
    "argument",
    [
        {"top_k": 0},
        {"top_k": 1.5},
        {"threshold": 1.1},
        {"threshold": -0.1},
        {"batch_size": 0},
        {"max_batch_tokens": 0},
        {"memory_budget": 0},
        {"timeout": float("nan")},
    ],
)
def test_arguments_out_of_range_are_refused(judge, argument):
    with pytest.raises(ValueError, match=next(iter(argument))):
        judge(PICTURE, **argument)


def test_a_model_without_a_guard_is_refused(judge):
    stock = Qwen2_5_VLForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT)
    with pytest.raises(ValueError, match="no guard"):
        SafetyPipeline(stock, judge.processor)
    with pytest.raises(ValueError, match="processor"):
        SafetyPipeline(judge.model)


def test_an_untrained_guard_does_not_judge(judge):
    config = judge.model.config.to_dict() | {"safety_categories": ["safe", "cat"], "num_safety_categories": 2}
    model = safeqwen.SafeQwen2_5_VLForConditionalGeneration.from_pretrained(
        DEMO_CHECKPOINT, config=safeqwen.SafeQwen2_5_VLConfig.from_dict(config), ignore_mismatched_sizes=True
    )
    with pytest.raises(RuntimeError, match="never trained"):
        SafetyPipeline(model, judge.processor)([PICTURE])


def test_the_prompt_is_the_processors(judge):
    text = judge.processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=False)
    seen = []
    embed = judge.model.get_input_embeddings()
    hook = embed.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    try:
        judge(PICTURE)
    finally:
        hook.remove()
    ids = judge.processor(text=[text], images=[PICTURE], return_tensors="pt")["input_ids"]
    assert_close(seen[0], ids[:, : seen[0].shape[1]])  # guard reads no further than the picture


def test_a_saved_pipeline_loads_by_its_folder(judge, tmp_path):
    # not `judge`, whose tokenizer the library has handed the dtype, which it then cannot write
    SafetyPipeline(*safeqwen.load()).save_pretrained(tmp_path)
    assert not (tmp_path / "pipeline.py").exists()
    again = pipeline("image-safety", model=str(tmp_path), dtype=torch.float32)
    assert again(PICTURE, top_k=20) == near(judge(PICTURE, top_k=20))


def test_rows_of_hugging_face_datasets_are_judged(judge):
    features = datasets.Features({"image": datasets.Image(), "id": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": MIXED[:3], "id": [0, 1, 2]}, features=features)
    expected = [near(verdict) for verdict in judge(MIXED[:3], batch_size=2)]
    assert list(judge(rows, batch_size=2)) == expected
    assert list(judge(KeyDataset(rows, "image"), batch_size=2)) == expected
    assert list(judge(rows.to_iterable_dataset(), batch_size=2)) == expected


def test_a_column_is_judged_in_the_order_it_shows(judge):
    column = pandas.Series(MIXED[:3], index=[2, 0, 1])
    assert list(judge(column)) == [near(verdict) for verdict in judge(MIXED[:3])]
    frame = pandas.DataFrame({"image": MIXED[:4], "rank": [3, 1, 2, 0]}, index=[10, 11, 12, 13])
    in_rank = [near(verdict) for verdict in judge([MIXED[3], MIXED[1], MIXED[2], MIXED[0]])]
    assert list(judge(frame.sort_values("rank")["image"], batch_size=2)) == in_rank


class Rows:
    """A map-style dataset without an iterator, whose row 1 cannot be had."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 1:
            raise KeyError("shard 7 is gone")
        return {"image": MIXED[index]}


class GoesOn:
    """An iterator that fails once and goes on, as a DataLoader's does."""

    def __init__(self):
        self.rows = iter(range(4))

    def __iter__(self):
        return self

    def __next__(self):
        return Rows()[next(self.rows)]


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("source", [Rows, GoesOn])
def test_a_row_that_cannot_be_had_is_an_error_in_its_place(judge, source, num_workers, batch_size):
    verdicts = list(judge(source(), batch_size=batch_size, num_workers=num_workers))
    assert len(verdicts) == 4
    assert verdicts[1]["error"].startswith("KeyError") and "shard 7 is gone" in verdicts[1]["error"]
    for i in (0, 2, 3):
        assert verdicts[i] == near(judge(MIXED[i]))


def test_a_hugging_face_row_that_cannot_be_decoded_is_an_error_in_its_place(judge):
    features = datasets.Features({"image": datasets.Image()})
    pictures = [{"bytes": data, "path": None} for data in (png(MIXED[0]), b"no picture", png(MIXED[2]))]
    rows = datasets.Dataset.from_dict({"image": pictures}, features=features)
    for source in (rows, rows.to_iterable_dataset(), KeyDataset(rows, "image")):
        verdicts = list(judge(source, batch_size=2))
        assert len(verdicts) == 3 and list(verdicts[1]) == ["error"]
        assert [verdicts[0], verdicts[2]] == [near(judge(MIXED[0])), near(judge(MIXED[2]))]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_generator_that_fails_loses_no_verdict_before_it(judge, num_workers):
    def pictures():
        yield from MIXED[:3]
        raise OSError("the disk is gone")

    verdicts = judge(pictures(), batch_size=4, num_workers=num_workers)
    assert [next(verdicts) for _ in range(3)] == [near(judge(picture)) for picture in MIXED[:3]]
    with pytest.raises(OSError, match="the disk is gone"):
        next(verdicts)


def test_a_row_without_an_image_names_the_columns_it_has(judge):
    (verdict,) = judge([{"picture": PICTURE, "id": 3}])
    assert "picture, id" in verdict["error"] and "rename" in verdict["error"]
    with pytest.raises(UnreadableImage, match="picture, id"):
        judge({"picture": PICTURE, "id": 3})


def test_max_pixels_bounds_the_tokens_of_a_picture(judge, monkeypatch):
    num_tokens = []
    usual = judge.engine.prepare

    def prepare(frames, max_pixels=None):
        prepared = usual(frames, max_pixels)
        num_tokens.extend(frame.num_tokens for frame in prepared)
        return prepared

    monkeypatch.setattr(judge.engine, "prepare", prepare)
    large = draw("suicide", SEED, size=448)
    judge([large, large.resize((224, 448))], max_pixels=448 * 448)
    judge([large, large.resize((224, 448))], max_pixels=56 * 56)
    judge(large, max_pixels=784)
    judge(large)
    assert num_tokens == [256, 128, 4, 2, 1, 64]
    for wrong in (783, 0, -1):
        with pytest.raises(ValueError, match="max_pixels must be 784 or more"):
            judge(PICTURE, max_pixels=wrong)
        with pytest.raises(ValueError, match="max_pixels must be 784 or more"):
            SafetyPipeline(judge.model, judge.processor, max_pixels=wrong)


def test_private_networks_are_asked_for_only_where_the_caller_says_so(judge, monkeypatch):
    asked = []

    def read_image(source, **kwargs):
        asked.append(kwargs)
        return [PICTURE]

    monkeypatch.setattr(sys.modules[SafetyPipeline.__module__], "read_image", read_image)
    judge("http://10.0.0.1/a.png")
    judge(["http://10.0.0.1/a.png"], private_networks=True, timeout=3)
    assert asked == [{"timeout_s": 10.0}, {"timeout_s": 3, "private_networks": True}]


def test_a_path_is_judged_in_float32_on_a_cpu_and_a_dtype_that_was_asked_for_stays():
    path = str(DEMO_CHECKPOINT)  # saved in float16
    expected = safeqwen.load()[0].state_dict()
    by_path = pipeline("image-safety", model=path, device="cpu").model.state_dict()
    assert by_path.keys() == expected.keys()
    for name, tensor in by_path.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name
    for asked in ({"dtype": torch.float16}, {"dtype": "float16"}, {"model_kwargs": {"dtype": torch.float16}}):
        assert pipeline("image-safety", model=path, device="cpu", **asked).model.dtype == torch.float16
    model, processor = safeqwen.load(dtype=torch.float16)
    assert pipeline("image-safety", model=model, processor=processor, device="cpu").model.dtype == torch.float16
    assert SafetyPipeline(model, processor, device="cpu").model.dtype == torch.float16


def test_on_an_accelerator_a_path_is_judged_in_bfloat16_as_if_loaded_so(monkeypatch):
    assert default_dtype("cuda:1") == default_dtype(torch.device("mps")) == torch.bfloat16
    monkeypatch.setattr(sys.modules[SafetyPipeline.__module__], "default_dtype", lambda device: torch.bfloat16)
    by_path = pipeline("image-safety", model=str(DEMO_CHECKPOINT), device="cpu").model
    loaded = safeqwen.load(dtype=torch.bfloat16)[0]
    for tensors in ("named_parameters", "named_buffers"):
        theirs = dict(getattr(loaded, tensors)())
        for name, tensor in getattr(by_path, tensors)():
            assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name
