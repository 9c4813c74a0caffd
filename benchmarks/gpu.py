"""The suite for a GPU: the figures at 7B, and speed, peak memory and the distance to the roof by setting."""

import gc
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


def list_settings():
    from transformers.utils import is_flash_attn_2_available

    attentions = ["sdpa", "flash_attention_2"] if is_flash_attn_2_available() else ["sdpa"]
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

    Peak memory is counted by torch's allocator, to the byte: it takes no process of its own.

    Returns:
        `dict`: as [`benchmarks.cpu.run`], and "throughput", as [`measure_throughput`] returns it.
    """
    shape, device = ("tiny", "cpu") if dry else ("7b", "cuda")
    quick = DRY_RUN if dry else {}
    rows, growth, throughput = [], None, None
    models = build_models(shape, device=device, dtype=torch.bfloat16)
    for key, figure in FIGURES.items():
        if not wanted(key):
            continue
        figure = figure.shrunk() if dry else figure
        measure_peak = partial(measure_memory, figure, models)
        rows += measure_rows(figure, models, shape, measure_peak, **quick)
    if wanted("growth"):
        growth = measure_growth(models, dry)
    del models
    if wanted("throughput"):
        throughput = measure_throughput(shape, device, dry)
    return {"figures": rows, "growth": growth, "throughput": throughput}


def measure_throughput(shape, device, dry=False):
    """
    Measures each way under each setting.

    Returns:
        `list[dict]`: "setting" and "way", with what was measured, or the "error" that kept it from running: not every
        library runs on every card.
    """
    models = build_models(shape, device=device, dtype=torch.bfloat16)
    ways = {name: (way, work.shrunk() if dry else work) for name, (way, work) in WAYS.items()}
    flops = {name: count_flops(models, *way) for name, way in ways.items()}
    num_warmups, num_runs = (1, 2) if dry else (3, 10)
    rows = []
    del models
    with tempfile.TemporaryDirectory() as folder:
        for setting in list_settings():
            _clear()
            name = None
            try:
                models = prepare(setting, shape, device, folder, backend="eager" if dry else "inductor")
                for name, way in ways.items():
                    measured = measure_way(models, *way, flops[name], num_warmups, num_runs)
                    rows.append({"setting": str(setting), "way": name, **measured})
            except Exception as error:
                message = " ".join(str(error).split())
                rows.append(
                    {"setting": str(setting), "way": name, "error": f"{type(error).__name__}: {message}"[:200]}
                )
            models = None
    return rows


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
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    return TorchAoConfig({"torchao int8": Int8WeightOnlyConfig, "torchao int4": Int4WeightOnlyConfig}[name]())


@torch.no_grad()
def measure_way(models, way, workload, flops, num_warmups, num_runs):
    inputs = build_inputs(workload, models.device, models.guarded.img_safety_head.mlp[0].weight.dtype)

    def run(_=0):
        way(models, inputs, workload)

    for _ in range(num_warmups):
        run()
    peak = peak_memory(run, models.device.type)
    seconds = statistics.median(timed(run) for _ in range(num_runs))
    tokens = workload.prompts * workload.new_tokens or inputs["input_ids"].numel()
    roof = bf16_peak()
    return {
        "seconds": seconds,
        "pictures_per_s": workload.prompts * workload.pictures / seconds,
        "tokens_per_s": tokens / seconds,  # new ones of an answer, else those of the prompts
        "weights_gib": models.guarded.get_memory_footprint() / 2**30,
        "peak_gib": (models.guarded.get_memory_footprint() + peak) / 2**30,
        "tflops_per_s": flops / seconds / 1e12,
        "roof_share": None if roof is None else flops / seconds / 1e12 / roof,
    }


@torch.no_grad()
def count_flops(models, way, workload):
    """FLOPs of the matrix products, full attention matrices included, of the model as it is: not quantised."""
    inputs = build_inputs(workload, models.device, models.guarded.dtype)
    with FlopCounterMode(display=False) as counter:
        way(models, inputs, workload)
    return counter.get_total_flops()


def bf16_peak():
    """TFLOP/s (`float`) of this card, or `None` if it is not known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for part, peak in BF16_PEAKS.items() if part in name), None)
