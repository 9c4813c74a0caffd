"""`safeqwen report`: a page of the rows of a scan."""

import importlib.util
import sys

from safeqwen.commands.model import load_model, loaded, source_of
from safeqwen.commands.terminal import drop_output, prepare_streams, printable, progress_bar, say
from safeqwen.fingerprint import weights_fingerprint
from safeqwen.judging.pipeline import SafetyPipeline
from safeqwen.judging.policy import SafetyPolicy
from safeqwen.loading import hub_of
from safeqwen.scan import INSTALL
from safeqwen.scan.rows import read_rows
from safeqwen.showing.words import counted


def run(args):
    """Runs `safeqwen report` with the arguments of `safeqwen_cli`, and returns its exit code."""
    prepare_streams()
    if importlib.util.find_spec("matplotlib") is None:
        say(f"matplotlib is missing: {INSTALL}")
        return 2
    from safeqwen.scan.report import write_report

    try:
        if args.out.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"--out must end in .html, got {args.out}")
        if not args.out.parent.is_dir():
            raise ValueError(f"there is no folder {args.out.parent} to write {args.out.name} to")
        if args.heatmaps > args.thumbnails:
            raise ValueError("a heat map lies over a small picture: give --thumbnails at least as many as --heatmaps")
        policy = None if args.policy is None else SafetyPolicy.load(args.policy)
        judge = _judge(args) if args.heatmaps else None
        made = write_report(
            args.rows,
            args.out,
            policy=policy,
            num_pictures=args.pictures,
            num_thumbnails=args.thumbnails,
            num_heatmaps=args.heatmaps,
            judge=judge,
            root=args.data_root,
            fetch=args.fetch,
            column=args.column,
            progress=lambda things, what, total: progress_bar(
                things, what, total, disable=args.quiet or not sys.stderr.isatty()
            ),
        )
    except (ValueError, RuntimeError, ImportError) as error:
        say(error)
        return 2
    except OSError as error:
        say(f"{args.out} could not be written: {error}")
        return 1
    try:
        size = args.out.stat().st_size / 1e6
        print(
            f"{printable(str(args.out))}: {size:.1f} MB; {counted(made['rows'], 'row')}, {made['flagged']:,} flagged, "
            f"{made['errors']:,} not judged; {made['shown']:,} in the gallery, {made['thumbnails']:,} with a picture"
            + (f", {made['heatmaps']:,} with a heat map" if args.heatmaps else "")
            + (f"; {counted(made['missing'], 'picture')} missing: the tiles say why" if made["missing"] else "")
        )
        sys.stdout.flush()
    except OSError:  # the reader has left (| head)
        drop_output()
        return 1
    return 0


def _judge(args):
    """The pipeline of the model that the rows were made with; refuses another one."""
    expected = next((row["model_fingerprint"] for row in read_rows(args.rows[0])), None)
    source, hub = source_of(args.model), hub_of(vars(args))
    found = loaded(source, lambda: weights_fingerprint(source, **hub), **hub)
    if expected is not None and expected != found:
        raise ValueError(
            f"the rows were made with the weights {expected[:12]}..., but --model has {found[:12]}...: a heat map "
            "would explain another verdict; give the scan's --model"
        )
    return SafetyPipeline(*load_model(args))
