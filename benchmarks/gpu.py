"""The suite for a GPU: the figures at 7B, and speed, peak memory and the distance to the roof by setting."""

import gc
import importlib.util
import statistics
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.curves import measure_growth
from benchmarks.figures import FIGURES, answer_with_verdict, forward, guard, measure_memory, measure_rows
from benchmarks.measure import DRY_RUN, peak_memory, timed
from benchmarks.models import Models, Workload, build_inputs, build_models, build_random
from safeqwen import SafeQwen2_5_VLForConditionalGeneration


# Dense bfloat16 TFLOP/s from NVIDIA's data sheets; the first name that the card's contains.
BF16_PEAKS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A10": 125,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
WAYS = {
    "guard()": (guard, Workload(prompts=8, picture_tokens=1024)),
    "forward with verdict": (forward, Workload(prompts=8, picture_tokens=1024)),
    "`generate` with verdict": (answer_with_verdict, Workload(prompts=8, picture_tokens=1024, new_tokens=64)),
}
KEYS = (*FIGURES, "growth", "throughput")
# torchao packs int4 by groups of 128, and leaves layers of other widths, as in the vision tower, in bfloat16.
QUANTIZATIONS = ("bitsandbytes int8", "bitsandbytes nf4", "torchao int8", "torchao int4")


@dataclass(frozen=True)
class Setting:
    """How a model is run; a quantised one is read from a folder, as people do."""

    dtype: torch.dtype = torch.bfloat16
    attention: str = "sdpa"
    compiled: bool = False
    quantization: str | None = None

    def __str__(self):
        parts = [str(self.dtype).removeprefix("torch."), self.attention]
        parts += ["torch.compile"] if self.compiled else []
        parts += [self.quantization] if self.quantization else []
        return ", ".join(parts)


def list_settings(device):
    from transformers.utils import is_flash_attn_2_available

    has_flash = device == "cuda" and is_flash_attn_2_available()
    attentions = ["sdpa", "flash_attention_2"] if has_flash else ["sdpa"]
    return [
        *(
            Setting(dtype, attention, compiled)
            for dtype in (torch.bfloat16, torch.float16)
            for attention in attentions
            for compiled in (False, True)
        ),
        *(Setting(quantization=name) for name in QUANTIZATIONS),
    ]


def run(wanted, dry=False):
    """
    Measures the figures of the model itself, "growth" and "throughput" in the shape of the 7B, where they are wanted.

    Yields:
        `tuple`: as [`benchmarks.cpu.run`], or ("throughput", a list of rows of [`measure_throughput`])
    """
    shape, device = ("tiny", "cpu") if dry else ("7b", "cuda")
    yield from _measure_figures(wanted, shape, device, dry)
    if wanted("throughput"):
        for row in measure_throughput(shape, device, dry):
            yield "throughput", [row]


def _measure_figures(wanted, shape, device, dry):
    models = build_models(shape, device=device, dtype=torch.bfloat16)
    settings = DRY_RUN if dry else {"num_pairs": 15, "seconds": 8.0}
    for key, figure in FIGURES.items():
        if wanted(key):
            figure = figure.shrunk() if dry else figure
            yield "figures", measure_rows(figure, models, shape, partial(measure_memory, figure, models), **settings)
    if wanted("growth"):
        yield "growth", measure_growth(models, dry)


def measure_throughput(shape, device, dry=False):
    """
    Measures each way under each setting.

    Yields:
        `dict`: "setting" and "way", with what was measured, or the "error" that kept it from running: not every
        library runs on every card.
    """
    ways = {name: (way, work.shrunk() if dry else work) for name, (way, work) in WAYS.items()}
    num_warmups, num_runs = (1, 2) if dry else (3, 10)
    _clear()
    try:
        flops = count_flops(shape, device, ways)
    except Exception as error:
        flops = dict.fromkeys(ways)
        yield {"setting": "FLOPs", "way": None, "error": _message(error)}
    with tempfile.TemporaryDirectory() as folder:
        for setting in list_settings(device):
            _clear()
            before, name = _allocated(), None
            try:
                models = prepare(setting, shape, device, folder, backend="eager" if dry else "inductor")
                gc.collect()
                weights = _allocated() - before
                for name, way in ways.items():
                    measured = measure_way(models, *way, flops[name], weights, num_warmups, num_runs)
                    yield {"setting": str(setting), "way": name, **measured}
            except Exception as error:
                yield {"setting": str(setting), "way": name, "error": _message(error)}
            models = None


def _message(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _allocated():
    """Bytes on the GPU, as its allocator counts them: a quantised tensor's own size is that of what it stands for."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def _clear():
    gc.collect()
    torch.cuda.empty_cache()
    torch.compiler.reset()


def prepare(setting, shape, device, folder, backend):
    """The [`Models`] of a setting."""
    if setting.quantization is None:
        models = build_models(shape, device=device, dtype=setting.dtype, attention=setting.attention)
    else:
        if not any(Path(folder).iterdir()):
            build_random(shape, device, setting.dtype).save_pretrained(folder)
        guarded = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(
            folder,
            device_map={"": device},
            dtype=setting.dtype,
            quantization_config=quantization_config(setting.quantization),
        )
        models = Models(guarded.eval())
    if setting.compiled:  # not the vision tower, whose windows are cut anew for every shape of picture
        models.guarded.model.language_model.compile(backend=backend)
    return models


def quantization_config(name):
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if name == "bitsandbytes int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if name == "bitsandbytes nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    if name == "torchao int4" and importlib.util.find_spec("mslk") is None:
        raise ImportError("torchao packs int4 by mslk, which is not installed")  # transformers' own message hides it
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    return TorchAoConfig({"torchao int8": Int8WeightOnlyConfig, "torchao int4": Int4WeightOnlyConfig}[name]())


@torch.no_grad()
def measure_way(models, way, workload, flops, weights, num_warmups, num_runs):
    """What one way does under one setting; `weights` are bytes, and "roof_share" is of the card's bfloat16 peak."""
    inputs = build_inputs(workload, models.device, models.guarded.img_safety_head.mlp[0].weight.dtype)

    def run(_=0):
        way(models, inputs, workload)

    for _ in range(num_warmups):
        run()
    peak = peak_memory(run, models.device.type) + sum(tensor.nbytes for tensor in inputs.values())
    seconds = statistics.median(timed(run) for _ in range(num_runs))
    tokens = workload.prompts * workload.new_tokens or inputs["input_ids"].numel()
    roof = bf16_peak() if models.device.type == "cuda" else None
    speed = flops / seconds / 1e12 if flops else None  # TFLOP/s
    return {
        "seconds": seconds,
        "pictures_per_s": workload.prompts * workload.pictures / seconds,
        "tokens_per_s": tokens / seconds,  # new ones of an answer, else those of the prompts
        "weights_gib": weights / 2**30,
        "peak_gib": (weights + peak) / 2**30,
        "tflops_per_s": speed,
        "roof_share": None if roof is None or speed is None else speed / roof,
    }


@torch.no_grad()
def count_flops(shape, device, ways):
    """`dict[str, int]`: FLOPs of each way's matrix products, full attention matrices included, in bfloat16."""
    models, flops = build_models(shape, device=device, dtype=torch.bfloat16), {}
    for name, (way, workload) in ways.items():
        inputs = build_inputs(workload, models.device, models.guarded.dtype)
        with FlopCounterMode(display=False) as counter:
            way(models, inputs, workload)
        flops[name] = counter.get_total_flops()
    return flops


def bf16_peak():
    """TFLOP/s (`float`) of this card, or `None` if it is not known."""
    return next((peak for part, peak in BF16_PEAKS.items() if part in torch.cuda.get_device_name()), None)
