"""The command `safeqwen export`."""

import sys
import warnings

import transformers

from safeqwen.publishing.export import export


def run(args):
    """Runs `safeqwen export` with the arguments of `safeqwen_cli`, and returns its exit code."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # between the libraries
    try:
        out = export(
            args.run_folder,
            args.out,
            push=args.push,
            dtype=args.dtype,
            max_shard_size=args.max_shard_size,
            private=args.private or None,
            adapter_only=args.adapter_only,
            evaluations=args.evaluation,
            policy=args.policy,
        )
    except (ValueError, RuntimeError, OSError) as error:
        print(f"safeqwen: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    print(out if args.push is None else f"https://huggingface.co/{args.push}")
    if not args.adapter_only:
        print(f"safeqwen: try it: safeqwen check {args.out} --run {args.run_folder}", file=sys.stderr)
    return 0
