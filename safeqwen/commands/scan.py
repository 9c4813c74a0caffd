"""`safeqwen scan`: one row for each picture of a collection; a summary on stdout, progress on stderr."""

import contextlib
import datetime
import math
import sys
import threading
import time
from functools import partial
from pathlib import Path

import transformers
from tqdm import tqdm

from safeqwen.commands.model import (
    DEMO,
    DEMO_WARNING,
    given_policy,
    load_model,
    loaded,
    policy_of,
    source_of,
)
from safeqwen.commands.terminal import drop_output, prepare_streams, printable, progress_bar, say
from safeqwen.fingerprint import weights_fingerprint
from safeqwen.hub.configuration_safeqwen import SafeQwen2_5_VLConfig
from safeqwen.judging.engine import Engine
from safeqwen.judging.load import load_policy
from safeqwen.loading import DEMO_CHECKPOINT, hub_of
from safeqwen.provenance import command_line, git_commit, package_versions
from safeqwen.scan import local
from safeqwen.scan.ledger import ledger_of
from safeqwen.scan.rows import rows_file
from safeqwen.scan.similar import check_libraries
from safeqwen.scan.sources import Access, Sources
from safeqwen.scan.storage import check_storage, is_storage, upload
from safeqwen.showing.words import counted


PACKAGES = ("safeqwen", "torch", "transformers", "pillow", "imagehash")
SECONDS_BETWEEN_LINES = 60  # of progress, where stderr is no terminal


def run(args):
    """Runs `safeqwen scan` with the arguments of `safeqwen_cli`, and returns its exit code."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    prepare_streams()
    try:
        return _scan(args)
    except BrokenPipeError:  # e.g. `safeqwen scan ... | head`: the rows are written before anything is printed
        drop_output()
        return 1
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        say(error)
        return 2
    except KeyboardInterrupt:
        say("stopped; start the same command again to go on")
        return 130


def _scan(args):
    check_libraries()  # before the model is loaded
    access = Access(timeout_s=args.timeout, private_networks=args.private_networks, column=args.column)
    if args.engine != "ray" and (args.address or args.num_actors) or args.engine == "ray" and args.sample:
        raise ValueError("--address and --num-actors are for --engine ray, which takes no --sample")
    if args.sample is not None and (args.upload or args.reuse):
        raise ValueError("--sample judges anew and writes nothing: it takes no --upload and no --reuse")
    if args.out is None and args.sample is None:
        raise ValueError("--out is missing: give a file that ends in .jsonl or .parquet, or a folder")
    out = args.out and rows_file(args.out)
    if out and is_storage(str(args.out).replace(":/", "://")):  # a Path has one slash less
        raise ValueError("--out is a local path, as the ledger lies beside the rows: --upload copies them to a URI")
    if args.upload:
        check_storage(args.upload, is_source=False)
    places = Sources(args.sources, access, exclude=[out] if out else [])
    settings = {
        "access": access,
        "batch_size": args.batch_size,
        "num_workers": args.num_workers,
        "max_pixels": args.max_pixels,
    }
    if args.sample is not None:
        engine, policy, _ = _loaded(args)
        summary, num_places, seconds = local.sample(engine, args.sources, args.sample, policy=policy, **settings)
        _print_estimate(summary, num_places, seconds)
        return int(bool(summary.num_errors))
    with (_on_ray if args.engine == "ray" else _here)(args) as (scan, device):
        made = {
            "model": DEMO if source_of(args.model) is DEMO_CHECKPOINT else args.model,
            "device": device,
            "command": command_line(["safeqwen", *args.arguments]),
            "versions": package_versions(PACKAGES) | {"python": sys.version.split()[0], "git_commit": git_commit()},
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        reuse = args.reuse and _ledger_of(args.reuse)
        with Progress(places, args.quiet) as progress:
            summary = scan(args.sources, out, **settings, reuse=reuse, made=made, progress=progress)
    if args.upload:
        upload(out, args.upload)
    _print_summary(summary, out)
    return int(bool(summary.num_errors))


def _loaded(args):
    """The engine of the model that is loaded here, the policy, and the fingerprint of the weights."""
    source, hub = source_of(args.model), hub_of(vars(args))
    model, processor = load_model(args)
    fingerprint = loaded(source, lambda: weights_fingerprint(source, **hub), **hub)
    return Engine(model, processor), policy_of(args, model), fingerprint


@contextlib.contextmanager
def _here(args):
    """Gives `scan` of `local` with what is known of the model, and on which device it is."""
    engine, policy, fingerprint = _loaded(args)
    yield partial(local.scan, engine, policy=policy, model_fingerprint=fingerprint), engine.model.device.type


@contextlib.contextmanager
def _on_ray(args):
    """Gives `scan` of `ray` with what the model's files tell, which is not loaded here; and Ray for a device."""
    from safeqwen.scan import cluster, ray

    source, hub = source_of(args.model), hub_of(vars(args))
    if source is DEMO_CHECKPOINT:
        say(DEMO_WARNING)
    config = loaded(source, lambda: SafeQwen2_5_VLConfig.from_pretrained(source, **hub), **hub)
    categories = config.safety_categories
    given = {
        "categories": categories,
        "model_fingerprint": loaded(source, lambda: weights_fingerprint(source, **hub), **hub),
        "policy": load_policy(source, categories, **hub) if args.policy is None else given_policy(args, categories),
        "num_actors": args.num_actors,
        "dtype": args.dtype,
        "device": args.device,
        "hub": hub,
    }
    with cluster.connected(args.address):
        if not args.quiet:
            say(f"Ray judges, with {cluster.resources()}; its actors load the model first")
        yield partial(ray.scan, None if source is DEMO_CHECKPOINT else source, **given), "ray"


def _ledger_of(path):
    path = Path(path)
    return path if path.name.endswith(".ledger") else ledger_of(rows_file(path))


# ------------------------------------------------------------------------------------------------------------- telling


class Progress:
    """
    Says on stderr how many places are met, how many a second, how many errors, and how long the rest will take: a bar
    on a terminal, a line a minute elsewhere. A thread counts the places meanwhile. A context manager.

    Args:
        places (iterable): of its own for the counting.
        is_quiet (`bool`): say nothing.
    """

    def __init__(self, places, is_quiet):
        self.places, self.is_quiet = places, is_quiet
        self.num_places, self.bar, self.is_over = None, None, False

    def __enter__(self):
        self.started = self.said = time.monotonic()
        if not self.is_quiet:
            threading.Thread(target=self._count, daemon=True).start()
            if sys.stderr.isatty():
                self.bar = progress_bar(unit=" pictures", smoothing=0.05)
        return self

    def __exit__(self, *exception):
        self.is_over = True
        if self.bar is not None:
            self.bar.close()

    def _count(self):
        num_places = 0
        with contextlib.suppress(Exception):  # the scan itself says what is wrong
            for _ in self.places:
                num_places += 1
                if self.is_over:
                    return
            self.num_places = num_places

    def __call__(self, counts):
        """Takes a [`Counts`] after a place was met."""
        if self.bar is not None:
            self.bar.total = self.num_places
            self.bar.set_postfix_str(counted(counts.num_errors, "error"), refresh=False)
            self.bar.update(counts.num_met - self.bar.n)
            return
        now = time.monotonic()
        if self.is_quiet or now - self.said < SECONDS_BETWEEN_LINES:
            return
        self.said = now
        rate = (counts.num_met - counts.num_known) / (now - self.started)
        met, left = counted(counts.num_met, "picture"), ""
        if self.num_places is not None:
            met = f"{counts.num_met:,} of {counted(self.num_places, 'picture')}"
            left = f", {tqdm.format_interval(max(0, self.num_places - counts.num_met) / rate)} left" if rate else ""
        say(f"{met}, {rate:.3g} a second, {counted(counts.num_errors, 'error')}{left}")


def _print_summary(summary, out):
    counts = summary.counts
    print(
        f"{counted(summary.num_rows, 'picture')}: {counts.num_judged:,} judged now, {counts.num_copies:,} known by "
        f"their bytes, {counts.num_known:,} as before; {counted(summary.num_errors, 'error')}"
    )
    _print_found(summary)
    out = printable(str(out))
    print(f"\nthe model took {counts.seconds:.1f} s; rows: {out}")
    print(f"to look at them: safeqwen report {out} --out report.html", flush=True)


def _print_found(summary):
    if summary.num_left_out:
        print(f"files that are no pictures, left out: {summary.num_left_out:,}")
    if summary.actions:
        actions = ", ".join(f"{action} {summary.actions[action]:,}" for action in ("allow", "flag", "block"))
        print(f"\nby the policy: {actions}")
    else:
        print(f"\nunsafe, by a probability of 50 % or more: {summary.num_flagged:,}")
    if summary.labels:
        print("\nby the likeliest category:")
    width = max(map(len, summary.labels), default=0)
    for label, count in summary.labels.most_common():
        print(f"  {label:{width}}  {count:9,}")
    if summary.num_groups:
        print(f"\ngroups of near-identical pictures: {summary.num_groups:,}; their verdicts disagree in ", end="")
        print(f"{summary.num_disagreeing:,}{':' if summary.num_disagreeing else ''}")
    for group, members in summary.disagreeing.items():
        for is_flagged in sorted(members, reverse=True):
            print(f"  {group:6}  {_in_words(members[is_flagged])}")
    if summary.errors:
        print(f"\nerrors: {summary.num_errors:,}{'; the first' if summary.num_errors > len(summary.errors) else ''}:")
    for row in summary.errors:
        print(f"  {printable(row['id'])}: {printable(row['error'])[:200]}")


def _in_words(row):
    what = f"{row['label']} {row['score']:.1%}"
    if row["decision"] is not None:
        what = f"{row['decision']['would_action']}: {what}"
    return f"{printable(row['id'])}  {what}"


def _print_estimate(summary, num_places, seconds):
    """What the whole would find and cost, from a sample of it."""
    num_judged = summary.num_rows - summary.num_errors
    print(f"{counted(num_places, 'picture')}; drawn and looked at: {summary.num_rows:,}; nothing was written")
    _print_found(summary)
    rows = (("not allowed" if summary.actions else "unsafe", summary.num_flagged, num_judged),)
    if summary.num_rows == num_places:
        print("\nthese are all: there is nothing to estimate", flush=True)
        return
    print("\nof all, about (95 % interval):")
    for what, count, of in (*rows, ("errors", summary.num_errors, summary.num_rows)):
        if of:
            low, high = interval(count, of)
            print(
                f"  {what:11}  {count / of:6.1%}  ({low:.1%} to {high:.1%}), "
                f"{counted(round(count / of * num_places), 'picture')}"
            )
    whole = seconds / summary.num_rows * num_places
    print(
        f"\nthe sample took {seconds:.1f} s; all would take about {tqdm.format_interval(whole)} (h:min:s)", flush=True
    )


def interval(count, of):
    """Returns the 95 % interval (`tuple[float, float]`) of a share (Wilson 1927)."""
    z = 1.96
    share, spread = count / of, z * z / of
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / of + spread / (4 * of)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
