"""
A scan on several machines: actors of Ray Data judge, and this process keeps the ledger and writes the rows.

    this process   lists the places, and leaves out those that the ledger has met; puts what comes back into the
                   ledger, a window of pictures at a time; writes the rows at the end, as a scan on one machine does
    Ray Data       hands blocks of windows to a pool of actors, and a block whose actor died to another one; of a scan
                   up to 16,384 pictures a block is one window, by default
    an actor       a [`Judge`]: reads the pictures of a window where it runs, and judges them. Two windows are in work
                   at a time, so that one is read while the other is judged

A window holds the places of one window of the engine's: unless some of them are copies or cannot be read, the batches,
and on like machines the bits of the probabilities, are those of a scan on one machine.

What the ledger knew when the scan began is not judged again, wherever it is found; of copies within one window the
first is judged; copies in different windows are judged in each, and the verdict that comes first counts for all.

Ray Data has checkpoints of its own (`CheckpointConfig`). They do not replace the ledger: they work only for a job that
reads and writes through Ray's own sources and sinks, know neither copies nor changed files, and cannot refuse another
model or policy.
"""

import contextlib
import itertools
import logging
import os
import pickle
import socket
import sys
from dataclasses import replace

import torch

from safeqwen import __version__
from safeqwen.judging.engine import Engine, window_of
from safeqwen.judging.load import default_dtype
from safeqwen.loading import DEMO_CHECKPOINT, load_processor
from safeqwen.pictures.errors import one_line
from safeqwen.scan import INSTALL
from safeqwen.scan.items import BATCH_SIZE, NUM_WORKERS
from safeqwen.scan.judge import Judge
from safeqwen.scan.keep import keep
from safeqwen.scan.similar import check_libraries


INSTALL_RAY = INSTALL.replace("scan", "scan,ray")
CONNECT_WITHIN_S = 5.0
CALLS = 2  # windows that an actor has in work at a time
SAME_SIZE = 256  # blocks


@contextlib.contextmanager
def connected(address=None):
    """
    Connects to a Ray cluster, if this process is not, and says nothing of Ray's own to the terminal meanwhile.

    Args:
        address (`str`, *optional*): HOST:PORT, or "auto" for the cluster that this machine is part of. By default
            that of the variable RAY_ADDRESS, else the cluster that this machine is part of, else Ray is started here.

    Raises:
        ImportError: if Ray is missing.
        ValueError: if there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else each pool of actors is warned of on stderr
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ImportError(f"--engine ray needs Ray ({error}): {INSTALL_RAY}") from error
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # its files keep the log
            handler.setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield
        return
    _check_reachable(address or os.environ.get("RAY_ADDRESS") or "auto")
    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"at {address}" if address else "here, and none could be started"
        raise ValueError(f"there is no Ray cluster {where}: {one_line(error)}") from None
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where Ray says that an actor died
            yield
    finally:
        ray.shutdown()


def resources():
    """Returns what the cluster has, in words (`str`)."""
    import ray

    has = ray.cluster_resources()
    return f"{len(ray.nodes())} machines, {has.get('CPU', 0):g} CPU cores and {has.get('GPU', 0):g} GPUs"


def _check_reachable(address):
    """Raises a `ValueError` if nobody listens at HOST:PORT. Ray itself would try for minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdecimal():
        raise ValueError(
            f"--address takes HOST:PORT of a Ray cluster, or auto; got {address}. Start the command on a machine of "
            "the cluster"
        )
    try:
        socket.create_connection((host, int(port)), CONNECT_WITHIN_S).close()
    except OSError as error:
        raise ValueError(
            f"nobody answers at {address} ({error}): is it the address that `ray start --head` printed, and can this "
            "machine reach it?"
        ) from None


def scan(
    model,
    sources,
    out,
    *,
    categories,
    model_fingerprint,
    num_actors=None,
    batch_size=BATCH_SIZE,
    num_workers=NUM_WORKERS,
    max_pixels=None,
    dtype=None,
    device=None,
    hub=None,
    **kept,
):
    """
    Judges all pictures of the sources on the Ray cluster that this process is connected to, and returns a [`Summary`].

    Args:
        model (`str` or `os.PathLike`): a folder, by a path that leads to it on every machine, or a Hub repository;
            `None` for the demo checkpoint.
        categories (`list[str]`), model_fingerprint (`str`): of its weights; an actor that finds others is refused.
        num_actors (`int`, *optional*): each holds a model. By default one a GPU of the cluster, else one a CPU core.
        dtype (`str` or `torch.dtype`, *optional*): by default bfloat16 on GPUs, float32 on CPUs.
        device (`str`, *optional*): of each actor, which has a GPU unless this is "cpu". By default GPUs, if the
            cluster has any.
        hub (`dict`, *optional*): those of `revision`, `token`, `cache_dir` and `local_files_only` that are given.
        sources, out: as `keep` takes them. Relative paths count from this process's folder, on every machine.
        batch_size, num_workers, max_pixels: as `local.scan` takes them.
        kept: `policy`, `access`, `reuse`, `made` and `progress`, as `keep` takes them.

    Raises:
        RuntimeError: if an actor cannot load the model, has another one, or is lost for good.
        ValueError, OSError, ImportError: as `local.scan`.
    """
    import ray
    from ray.data.exceptions import ExecutionTimeoutError

    check_libraries()
    hub = hub or {}
    processor = load_processor(DEMO_CHECKPOINT if model is None else model, **hub)
    Engine(None, processor).image_settings(max_pixels)  # raises if it is out of range
    has_gpu = ray.cluster_resources().get("GPU", 0) > 0 if device is None else torch.device(device).type != "cpu"
    kind = "GPU" if has_gpu else "CPU"
    num_units = int(ray.cluster_resources().get(kind, 0))
    if has_gpu and not num_units:  # Ray would wait for one without a word
        raise ValueError(
            f"--device {device}: the Ray cluster has no GPU; add a machine with one, or leave --device out"
        )
    num_actors = num_actors or max(1, num_units)
    dtype = str(dtype or default_dtype("cuda" if has_gpu else "cpu")).removeprefix("torch.")
    settings = {"batch_size": batch_size, "num_workers": num_workers, "max_pixels": max_pixels}
    expected = {
        "safeqwen": __version__,
        "model_fingerprint": model_fingerprint,
        "categories": list(categories),
        "dtype": dtype,
    }

    def judge(keeper, places):
        known = ray.put(keeper.ledger.known())
        blocks, num_sent = _in_store(blocks_of(keeper.unmet(places), window_of(batch_size)))
        if not blocks:
            return
        dataset = ray.data.from_arrow_refs(blocks)
        dataset.context.enable_progress_bars = False
        dataset = dataset.map_batches(
            Actor,
            batch_size=1,
            fn_constructor_kwargs={
                "model": model,
                "settings": {**settings, "dtype": dtype, "device": device or (None if has_gpu else "cpu"), **hub},
                "expected": expected,
                "known": [known],
                "folder": os.getcwd(),
            },
            compute=ray.data.ActorPoolStrategy(
                size=min(num_actors, len(blocks)),
                max_concurrent_calls_per_actor=CALLS,
                enable_true_multi_threading=True,
            ),
            num_cpus=1,
            num_gpus=int(has_gpu),
        )
        num_met = keeper.counts.num_met
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for found in map(pickle.loads, batch["found"].to_pylist()):
                    _keep(keeper, found)
        except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
            raise RuntimeError(f"Ray gave up: {_last_line(error)}") from None
        if (num_lost := num_sent - (keeper.counts.num_met - num_met)) != 0:  # as by `max_errored_blocks`
            raise RuntimeError(f"Ray lost {num_lost} pictures: start the same command again to judge them")

    return keep(
        judge,
        sources,
        out,
        categories=list(categories),
        dtype=dtype,
        max_pixels=max_pixels,
        model_fingerprint=model_fingerprint,
        **kept,
    )


def _in_store(blocks):
    """Puts blocks into Ray's object store as tables of windows: (references, large ones first; number of items)."""
    import pyarrow
    import ray

    stored, num_items = [], 0
    for block in blocks:
        stored.append((len(block), ray.put(pyarrow.table({"window": [*map(pickle.dumps, block)]}))))
        num_items += sum(map(len, block))
    return [reference for _, reference in sorted(stored, key=lambda pair: -pair[0])], num_items


def blocks_of(items, window):
    """
    Yields blocks, which are what Ray Data hands out: lists of windows (`list[list]`) of that many items.

    To prepare a block takes Ray Data some hundredths of a second. So that a million pictures are 1,500 blocks and not
    15,000, the first ones have one window, and every `SAME_SIZE` blocks they have twice as many.
    """
    items = iter(items)
    windows = iter(lambda: list(itertools.islice(items, window)), [])
    for number in itertools.count():
        if not (block := list(itertools.islice(windows, 2 ** (number // SAME_SIZE)))):
            return
        yield block


def _keep(keeper, found):
    """Puts what an actor found in a window into the ledger."""
    if isinstance(found, str):
        raise RuntimeError(found)
    for item, judged in found:
        if item.error is None and keeper.ledger.knows(item.sha256):
            if judged is not None:  # a copy, in another window
                keeper.counts.seconds += judged.seconds
            judged = None
        keeper.found(item, judged)
    keeper.commit()


class Actor:
    """
    What Ray Data makes an actor of. It raises nothing: why it cannot judge, it says in place of the first window.

    Args:
        model, settings: of a [`Judge`].
        expected (`dict`): what must be the same here as where the ledger is.
        known (`list` of one reference): to the sha256 of pictures that need no verdict (`frozenset[bytes]`).
        folder (`str`): from which relative paths count.
    """

    def __init__(self, model, settings, expected, known, folder):
        import ray

        self.refusal, host = None, socket.gethostname()
        with contextlib.suppress(OSError):  # where there is no such folder, absolute paths may lead on all the same
            os.chdir(folder)
        self.known = ray.get(known[0])
        try:
            self.judge = Judge(model, policy="none", **settings)
        except Exception as error:  # whatever a library raises for a folder that is no model
            self.refusal = f"the model {model or 'demo'} could not be loaded on {host}: {one_line(error)}"
            return
        found = {
            "safeqwen": __version__,
            "model_fingerprint": self.judge.model_fingerprint,
            "categories": self.judge.engine.categories,
            "dtype": str(self.judge.engine.model.dtype).removeprefix("torch."),
        }
        if differing := [name for name, value in expected.items() if found[name] != value]:
            name = differing[0]
            self.refusal = f"{host} has another {name} than this machine: {found[name]}, and not {expected[name]}"

    def __call__(self, batch):
        return {"found": [pickle.dumps(self._found(window)) for window in batch["window"]]}

    def _found(self, window):
        if self.refusal is not None:
            return self.refusal
        found = self.judge.judge(pickle.loads(window), self.known.__contains__)
        for item, _ in found:
            item.place = replace(item.place, load=None)  # which may hold the picture
        return found


def _last_line(error):
    """What a Ray error of many lines is about."""
    return one_line(str(error).strip().splitlines()[-1])
