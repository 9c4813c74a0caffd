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

A picture may kill the process that reads it, at each try, and take along what else that actor has in work. A window at
which actors died `MAX_TRIES` times is put off to the end. Then its pictures are tried one at a time, and one at which
actors still die is an error row. Ray's own bound on the retries of a task would end the job instead.

Ray Data has checkpoints of its own (`CheckpointConfig`). They do not replace the ledger: they work only for a job that
reads and writes through Ray's own sources and sinks, know neither copies nor changed files, and cannot refuse another
model or policy.
"""

import contextlib
import itertools
import os
import pickle
import socket
from collections import Counter
from dataclasses import replace

import torch

from safeqwen import __version__
from safeqwen.judging.engine import Engine, window_of
from safeqwen.judging.load import default_dtype
from safeqwen.loading import DEMO_CHECKPOINT, load_processor
from safeqwen.pictures.errors import one_line, printable
from safeqwen.scan.items import BATCH_SIZE, NUM_WORKERS
from safeqwen.scan.judge import Judge
from safeqwen.scan.keep import keep
from safeqwen.scan.similar import check_libraries
from safeqwen.showing.words import counted


CALLS = 2  # windows that an actor has in work at a time
MAX_TRIES = 3  # of a window, if its actor dies
MAX_PUT_OFF = 16  # windows: where actors die at more, it is not some pictures that are to blame
DIED = "each process that read it died; save it anew, or remove it (or give each actor more memory)"
AGAIN = "start the same command again, and what was finished is not judged again"
SAME_SIZE = 256  # blocks


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
        RuntimeError: if an actor cannot load the model or has another one, or if actors die wherever they are.
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
    # Ray would wait for what is missing without a word.
    if has_gpu and not num_units:
        raise ValueError(
            f"--device {device}: the Ray cluster has no GPU; add a machine with one, or leave --device out"
        )
    if num_actors is not None and num_actors > num_units:
        raise ValueError(
            f"--num-actors {num_actors}: each takes a {kind}, and the Ray cluster has {num_units}; give at most as "
            "many, or start more machines before the scan"
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

    def judged(blocks, known, is_alone=False):
        """Yields what actors find in each window of blocks (references). A block may be alone in its actor."""
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
                "tries": ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Tries).remote(MAX_TRIES),
                "folder": os.getcwd(),
            },
            compute=ray.data.ActorPoolStrategy(
                size=min(num_actors, len(blocks)),
                max_concurrent_calls_per_actor=1 if is_alone else CALLS,
                max_tasks_in_flight_per_actor=1 if is_alone else None,
                enable_true_multi_threading=True,
            ),
            num_cpus=1,
            num_gpus=int(has_gpu),
        )
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from map(pickle.loads, batch["found"].to_pylist())
        except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
            raise RuntimeError(f"Ray gave up: {_last_line(error)}; {AGAIN}") from None

    def judge(keeper, places):
        known = ray.put(keeper.ledger.known())
        blocks, num_sent = _in_store(blocks_of(keeper.unmet(places), window_of(batch_size)))
        num_met, put_off = keeper.counts.num_met, []
        for found in judged(blocks, known):
            if not _is_put_off(found):
                _keep(keeper, found)
                continue
            put_off.append([item for item, _ in found])
            if len(put_off) > MAX_PUT_OFF:
                raise RuntimeError(
                    f"actors died {MAX_TRIES} times at each of {len(put_off)} windows, the first of which begins with "
                    f"{printable(put_off[0][0].place.id)}: look at their machines' memory and logs; {AGAIN}"
                )
        blocks, _ = _in_store([[replace(item, error=None)]] for window in put_off for item in window)
        for found in judged(blocks, known, is_alone=True):
            _keep(keeper, found)
        if (num_lost := num_sent - (keeper.counts.num_met - num_met)) != 0:  # as by `max_errored_blocks`
            raise RuntimeError(f"Ray lost {counted(num_lost, 'picture')}; {AGAIN}")

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


def _is_put_off(found):
    return not isinstance(found, str) and all(item.error == DIED for item, _ in found)


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
        tries: the handle of a [`Tries`].
        folder (`str`): from which relative paths count.
    """

    def __init__(self, model, settings, expected, known, tries, folder):
        import ray

        self.refusal, self.tries, host = None, tries, socket.gethostname()
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
        import ray

        if self.refusal is not None:
            return self.refusal
        items = pickle.loads(window)
        if not ray.get(self.tries.may_begin.remote(items[0].position)):
            return [(replace(item, error=DIED), None) for item in items]
        found = self.judge.judge(items, self.known.__contains__)
        self.tries.ended.remote(items[0].position)
        for item, _ in found:
            item.place = replace(item.place, load=None)  # which may hold the picture
        return found


class Tries:
    """
    What Ray makes an actor of that counts how often each window was begun without an end: it outlives the actors that
    judge. Of a block that is tried again the windows before the one that kills were ended, and do not count.
    """

    def __init__(self, max_tries):
        self.max_tries, self.num_begun = max_tries, Counter()

    def may_begin(self, position):
        """Whether the window whose first item has this position was not yet begun too often (`bool`)."""
        self.num_begun[position] += 1
        return self.num_begun[position] <= self.max_tries

    def ended(self, position):
        """The actor lives that judged the window whose first item has this position."""
        self.num_begun.pop(position, None)


def _last_line(error):
    """What a Ray error of many lines is about."""
    return one_line(str(error).strip().splitlines()[-1])
