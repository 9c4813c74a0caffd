"""Ratios of interleaved runs, the peak memory of a call, and what else a figure needs to be believed."""

import gc
import json
import math
import os
import platform
import statistics
import subprocess
import tempfile
import time
from functools import partial
from itertools import accumulate
from pathlib import Path


ROOT = Path(__file__).parents[1]
DRY_RUN = {"num_pairs": 2, "seconds": 0.0, "num_warmups": 1}  # of `interleave`, to see that it runs
# Of what the time of a call is made up, by the names of the modules.
PARTS = {"vision tower": "model.visual", "language model": "model.language_model", "logits": "lm_head"}
PACKAGES = ("torch", "transformers", "peft", "accelerate", "flash-attn", "bitsandbytes", "torchao", "pillow")


def interleave(ours, theirs, *, num_pairs=15, seconds=20.0, num_warmups=2):
    """
    Runs two calls in turn, so that whatever else the machine does meets both.

    Args:
        ours, theirs: called with the number of the pair. If they return a float, it is the seconds that count, where
            not all that they do is to be counted.
        num_pairs (`int`): at least so many.
        seconds (`float`): pairs go on until so much time has passed, up to ten times `num_pairs`.
        num_warmups (`int`): pairs that are run before and not counted.

    Returns:
        `list[tuple[float, float]]`: seconds of ours and of theirs. Every other pair is run the other way round.
    """
    for i in range(num_warmups):
        timed(ours, i), timed(theirs, i)
    pairs, end = [], time.monotonic() + seconds
    gc.collect()
    gc.disable()  # its pauses would fall on either
    try:
        while len(pairs) < num_pairs or (time.monotonic() < end and len(pairs) < 10 * num_pairs):
            i = len(pairs)
            if i % 2:
                second, first = timed(theirs, i), timed(ours, i)
            else:
                first, second = timed(ours, i), timed(theirs, i)
            pairs.append((first, second))
    finally:
        gc.enable()
    return pairs


def timed(function, i=0):
    """Seconds that `function(i)` takes, or says that it took."""
    start = time.perf_counter()
    said = function(i)
    synchronize()
    return said if isinstance(said, float) else time.perf_counter() - start


def synchronize():
    """Waits for the GPU, if there is one, to finish what it was told."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summarize(pairs):
    """
    `[(ours, theirs), ...]` -> the median of their ratios and its quartiles, as numpy's, and the median seconds.

    `[(1, 2), (3, 4), (4, 4)]` ->
    `{"ratio": 0.75, "quartiles": [0.625, 0.875], "num_pairs": 3, "ours": 3, "theirs": 4}`
    """
    ratios = [first / second for first, second in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "ratio": middle,
        "quartiles": [low, high],
        "num_pairs": len(pairs),
        "ours": statistics.median(first for first, _ in pairs),
        "theirs": statistics.median(second for _, second in pairs),
    }


def fit_exponent(sizes, costs):
    """The k (`float`) of cost = c * size**k: the least-squares slope between the logarithms."""
    return statistics.linear_regression([math.log(x) for x in sizes], [math.log(y) for y in costs]).slope


def peak_memory(function, device):
    """
    Bytes that the tensors of `function()` take, beyond those that were there before it, at their highest.

    On a CPU those that the calling thread makes, as torch's profiler hears of them: the same number on every run,
    where the resident set of a process differs by up to 4 %.

    Raises:
        RuntimeError: if nothing was allocated: a measurement that failed is not to pass for a small one.
    """
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return _above_zero(torch.cuda.max_memory_allocated() - before)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    events = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return _above_zero(max(accumulate(event["args"]["Bytes"] for event in events), default=0))


def _above_zero(peak):
    if peak <= 0:
        raise RuntimeError("no allocation was seen, so that there is no peak to report; is torch's profiler at work?")
    return peak


def time_parts(function, models, num_runs=5):
    """
    Median milliseconds of `function()`, and of the parts of these models that it calls.

    Returns:
        `dict[str, float]`: of the whole ("all") and of each name of `PARTS`.
    """
    runs, began, handles = [], {}, []

    def begin(part, args):
        synchronize()
        began[part] = time.perf_counter()

    def end(name, part, args, output):
        synchronize()
        runs[-1][name] += time.perf_counter() - began[part]

    for name, path in PARTS.items():
        for part in (model.get_submodule(path) for model in models):
            handles += [part.register_forward_pre_hook(begin), part.register_forward_hook(partial(end, name))]
    try:
        for _ in range(num_runs):
            runs.append(dict.fromkeys(PARTS, 0.0))
            runs[-1]["all"] = timed(lambda _: function())
    finally:
        for handle in handles:
            handle.remove()
    return {name: 1000 * statistics.median(run[name] for run in runs) for name in runs[0]}


def process_seconds(command, wall=False):
    """Seconds that a fresh process takes: of CPU, which others on the machine do not lengthen, or of the clock."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} failed with {process.returncode}")
    return time.perf_counter() - start if wall else usage.ru_utime + usage.ru_stime


def describe_machine():
    """Machine, versions and commit, and how busy the machine is."""
    import torch

    from safeqwen.provenance import git_commit, package_versions

    versions = {name: version for name, version in package_versions(PACKAGES).items() if version}
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": git_commit(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _processor():
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
