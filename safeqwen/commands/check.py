"""The command `safeqwen check`."""

import sys
import warnings

import transformers

from safeqwen.commands.terminal import printable
from safeqwen.publishing.check import check


def run(args):
    """Runs `safeqwen check` with the arguments of `safeqwen_cli`, and returns its exit code."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # between the libraries
    sys.stdout.reconfigure(errors="replace")
    try:
        findings = check(args.folder, run=args.run_folder, image=args.image, device=args.device)
    except (ValueError, RuntimeError) as error:  # torch's, of a device that is none
        print(f"safeqwen: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    passed = True
    for finding in findings:
        passed &= finding.passed
        verdict = "ok" if finding.passed else "FAILED"
        print(f"{verdict:6}  {finding.name}: {printable(finding.detail)}", flush=True)
    return 0 if passed else 1
