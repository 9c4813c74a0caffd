"""The command `safeqwen`: its arguments. The work is done in the package, which is imported when a command runs.

This file stands beside the package because importing anything inside of it loads torch and transformers, for which
`safeqwen --help` need not wait.
"""

import argparse
import importlib
import sys
from pathlib import Path


JUDGE = """\
Judge pictures, and answer a question about each with --ask.

For each picture a table of the categories above 10 %. Every frame is judged by itself, whether or not there is a
question, and a picture of several frames is as unsafe as its least safe frame. The verdict on a still picture comes
from the same pass that starts the answer; an animation, and pictures --together, take a pass a frame more.

The verdict is the model's estimate. A policy makes a decision of it: the safety_policy.json in the model's folder, or
--policy FILE. The line below the table then says what to do, and why.
"""

TRAIN = """\
Fine-tune a SafeQwen or a plain Qwen2.5-VL, or train a guard alone, as a YAML file says.

The settings are transformers' TrainingArguments and this package's: safeqwen train CONFIG.yaml --help lists them. With
several processes: accelerate launch -m safeqwen train CONFIG.yaml
           torchrun --nproc-per-node N -m safeqwen train CONFIG.yaml

exit codes: 0 the run has ended and its folder is whole; 2 wrong settings, data that cannot be trained on, or a full
disk: the reason is on stderr.
"""

EXIT_CODES = """\
exit codes: 0 all pictures were judged; 1 a picture could not be judged (its reason is on stderr, the others are
judged all the same), or the reader of stdout has left (| head); 2 wrong usage, the model could not be loaded, or
the policy is for another model, or stdout is closed or full; 3 with --fail-on-unsafe, a picture was judged unsafe, or
with a policy the decision on one is not "allow" (whether or not another could not be judged; in shadow mode never).

--json writes one object a line, in the order of the pictures:
  image     (string) as given
  label     (string or null) the likeliest category
  score     (number or null) its probability in [0, 1]
  unsafe    (number or null) 1 - p(safe); null too if the model has no category "safe"
  scores    (object or null) the probability of each category, in the model's order
  frames    (number or null) how many views were judged: the frames of an animation, each twice if it looks
            different on white and on black paper
  decision  (object or null) of the policy, null without one: action, flagged, would_action, reason, fired, severity,
            scores, unsafe, groups, num_frames, num_frames_fired, num_frames_needed
  answer    (string or null) with --ask; the same for all pictures with --together
  model     (string) as given, or "demo"
  error     (string or null) why there is no verdict; all fields above but image are then null
Later versions may add fields, and will not change these.
"""

EXPORT = """\
Write a finished training run as a folder that anyone can load: merged weights, code, processor, model card.

OUT appears as a whole or not at all, and names no folder of this machine. Then try it with safeqwen check.

To publish how good it is, and what to do about its verdicts, export twice: the second time with what was measured on
the first. Figures and policies of other weights are refused.

  safeqwen export RUN tried
  safeqwen evaluate --model tried --benchmark holisafe-bench --data BENCHMARK --out evaluation
  safeqwen export RUN OUT --evaluation evaluation
"""
EXPORT_EXIT_CODES = """\
exit codes: 0 OUT was written, and uploaded if --push was given; 1 it could not be written, or was written but not
uploaded; 2 wrong usage, or a run that cannot be exported. The reason is on stderr.
"""

EVALUATE = """\
Measure a model on a benchmark: its guard against the labels of the pictures and, with --answers, what it answers.

OUT gets a line for each row (rows.jsonl), the figures with their intervals (metrics.json), a page (report.html) and
its plots, and the verdicts as records for guard-eval-harness (records.jsonl). The same command, started again, goes on
with a run that was stopped; of one that has ended it makes figures and page anew, and changes no row.

Benchmarks: holisafe-bench, unsafebench, vlguard, llavaguard, safeeditbench, folder, jsonl; for answers only
mm-safetybench, siuo, vlsbench. docs/evaluation.md says what each looks like on the disk.
"""
EVALUATE_EXIT_CODES = """\
exit codes: 0 every row counts; 1 some rows have no verdict or no answer that counts: the files are whole, and stdout
says how many and where they are listed; 2 refused: wrong usage, a benchmark in another layout, OUT of another run, a
judge that cannot be asked: the reason is on stderr.

--judge-url sends questions and answers, no pictures, to that endpoint, with the key in the environment's
SAFEQWEN_JUDGE_API_KEY if there is one.
"""

CHECK = """\
Try a published folder as a stranger would: load it by every Auto class of the installed transformers, judge a picture,
answer a question; and compare logits and verdict with those of the run that it was made of.

One line a check on stdout, "ok" or "FAILED" with the reason and what to do. The folder's code is run only if it is
this package's own. Weights are loaded in float32, one model at a time: four bytes a parameter.
"""
CHECK_EXIT_CODES = "exit codes: 0 all checks passed; 1 one failed; 2 wrong usage."

COMPARE = """\
Compare evaluations of one benchmark with the first of them: figures side by side, and by how much they differ.

Only rows that all of them have count. Every interval holds 95 % of the resamples of the pictures, and a difference is
measured on the same resampled pictures on both sides. Pictures are flagged by the policy that safeqwen evaluate was
given, or without one from an unsafe probability of 0.5. The rows on which the decisions differ are listed, all of them
in --out.
"""
COMPARE_EXIT_CODES = """\
exit codes: 0 they were compared; 1 FILE or stdout could not be written; 2 wrong usage, or evaluations that cannot be
compared, such as of different benchmarks, or with different pictures or labels under one id. The reason is on stderr.
"""

CALIBRATE = """\
Fit a safety policy to labelled rows of evaluations: a temperature, the threshold of "unsafe", how many frames of a
clip must fire; and say what it does on rows that were held out.

One row a picture counts, and the pictures are split by their bytes. --max-fpr gives a threshold with a promise: with
probability --confidence or more over the draw of the rows, the false-positive rate on new still pictures of the same
kind is at most this. Without it the threshold is that of an operating point, which promises nothing:
  high_precision  the highest recall among the thresholds with a precision of at least 95 %, at the rows' own share of
                  unsafe pictures
  balanced        the largest difference of recall and false-positive rate (Youden's J)
  high_recall     the lowest false-positive rate among the thresholds with a recall of at least 95 %
docs/calibration.md says how to choose.
"""
CALIBRATE_EXIT_CODES = """\
exit codes: 0 the policy was written; 2 it was not: wrong usage, rows of several models, too few rows (how many are
needed), a guard that ranks backwards, or a file that exists. The reason is on stderr.
"""


def probability(text):
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def positive(text):
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def share(text):
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text!r}")
    return value


def natural(text):
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def resamples(text):
    value = int(text)
    if value < 100:
        raise argparse.ArgumentTypeError(f"expected 100 or more, for intervals of 95 %, got {value}")
    return value


def seconds(text):
    value = float(text)
    if not 0 < value < float("inf"):  # NaN neither
        raise argparse.ArgumentTypeError(f"expected a finite number of seconds above 0, got {text!r}")
    return value


def words(text):
    try:
        text.encode()
    except UnicodeEncodeError:  # Python hands bytes that are no UTF-8 on as lone surrogates
        raise argparse.ArgumentTypeError("expected text in UTF-8; check the terminal's locale") from None
    return text


def build_parser():
    parser = argparse.ArgumentParser(prog="safeqwen", description="Qwen2.5-VL with a guard that judges the pictures.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_judge(commands)
    add_train(commands)
    add_export(commands)
    add_check(commands)
    add_calibrate(commands)
    add_evaluate(commands)
    add_compare(commands)
    return parser


def add_command(commands, name, module, **texts):
    """A parser for a command that `run` of a module of the package carries out."""
    parser = commands.add_parser(name, formatter_class=argparse.RawDescriptionHelpFormatter, **texts)
    parser.set_defaults(module=module)
    return parser


def add_judge(commands):
    judge = add_command(
        commands,
        "judge",
        "commands.judge",
        help="judge pictures and answer about them",
        description=JUDGE,
        epilog=EXIT_CODES,
    )
    judge.add_argument("images", nargs="+", metavar="IMAGE", help="a picture file or an http(s) URL")
    judge.add_argument("--ask", type=words, metavar="TEXT", help="answer this about each picture, streamed")
    judge.add_argument(
        "--together", action="store_true", help="--ask once, about all pictures in one prompt; each is still judged"
    )
    judge.add_argument(
        "--fail-on-unsafe",
        action="store_true",
        help="exit with 3 if a picture's 1 - p(safe) reaches --unsafe-at, or with a policy, if one is not allowed",
    )
    judge.add_argument(
        "--unsafe-at", type=probability, metavar="P", help="probability in [0, 1], without a policy (default: 0.5)"
    )
    judge.add_argument(
        "--policy",
        metavar="FILE",
        help="decide by this policy; none for no decision (default: safety_policy.json in the model's folder, if any)",
    )

    output = judge.add_argument_group("output")
    output.add_argument(
        "--top", type=positive, metavar="K", help="the K likeliest categories instead of those over 10 %%"
    )
    output.add_argument("--json", action="store_true", help="one object a line, as documented below")

    model = judge.add_argument_group("model")
    model.add_argument("--model", metavar="PATH", help="folder or Hub repository (default: demo, drawings only)")
    model.add_argument("--revision", help="branch, tag or commit of the repository")
    model.add_argument("--token", help="for a private repository (default: the one of `hf auth login`)")
    model.add_argument("--cache-dir", metavar="DIR", help="where downloads are kept")
    model.add_argument("--local-files-only", action="store_true", help="download nothing")
    model.add_argument("--device", help="e.g. cpu, cuda:1 (default: an accelerator if there is one)")
    model.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="(default: float32 on a CPU)")

    answer = judge.add_argument_group("limits")
    answer.add_argument(
        "--max-new-tokens", type=positive, metavar="N", default=256, help="of an answer (default: %(default)s)"
    )
    answer.add_argument(
        "--max-pixels",
        type=positive,
        metavar="N",
        help="shrink larger pictures to N pixels, 784 a token (default: the processor's own, for Qwen2.5-VL 12845056)",
    )
    answer.add_argument(
        "--timeout", type=seconds, metavar="SECONDS", default=10.0, help="for one URL (default: %(default)s)"
    )
    answer.add_argument(
        "--private-networks", action="store_true", help="fetch URLs of private, link-local and loopback addresses, too"
    )


def add_train(commands):
    train = add_command(
        commands,
        "train",
        "commands.train",
        help="fine-tune a model or train a guard",
        description=TRAIN,
    )
    train.add_argument("config", metavar="CONFIG.yaml", help="the settings of the run; see configs/")
    train.add_argument("overrides", nargs=argparse.REMAINDER, metavar="--key value", help="settings that differ")


def add_export(commands):
    export = add_command(
        commands,
        "export",
        "commands.export",
        help="make a training run a folder that anyone can load",
        description=EXPORT,
        epilog=EXPORT_EXIT_CODES,
    )
    export.add_argument("run_folder", metavar="RUN", help="the folder that safeqwen train wrote")
    export.add_argument("out", metavar="OUT", help="a folder that does not exist yet, or is empty")
    export.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        default="float16",
        help="of the weights (default: %(default)s)",
    )
    export.add_argument(
        "--max-shard-size", metavar="SIZE", default="5GB", help="of one weights file (default: %(default)s)"
    )
    export.add_argument(
        "--adapter-only",
        action="store_true",
        help="only what LoRA trained, guard included, to be loaded onto the base",
    )
    export.add_argument(
        "--evaluation",
        action="append",
        default=[],
        metavar="DIR",
        help="that safeqwen evaluate wrote about these weights, for the card; can be given several times",
    )
    export.add_argument("--policy", metavar="FILE", help="a safety_policy.json for these weights, written to OUT")

    hub = export.add_argument_group("Hub")
    hub.add_argument("--push", metavar="REPO", help="upload OUT to this repository, with the login of `hf auth login`")
    hub.add_argument("--private", action="store_true", help="if the repository is new, let nobody else see it")


def add_check(commands):
    check = add_command(
        commands,
        "check",
        "commands.check",
        help="try a published folder: load, judge, answer, compare",
        description=CHECK,
        epilog=CHECK_EXIT_CODES,
    )
    check.add_argument("folder", metavar="OUT", help="the folder that safeqwen export wrote")
    check.add_argument("--run", dest="run_folder", metavar="RUN", help="compare with this run, unmerged")
    check.add_argument("--image", metavar="FILE", help="judge this picture (default: a drawn house)")
    check.add_argument("--device", default="cpu", help="e.g. cuda:1 (default: %(default)s)")


def add_compare(commands):
    compare = add_command(
        commands,
        "compare",
        "commands.compare",
        help="compare evaluations: what differs, how surely, where",
        description=COMPARE,
        epilog=COMPARE_EXIT_CODES,
    )
    compare.add_argument("folders", nargs="+", metavar="DIR", help="folders that safeqwen evaluate wrote, two or more")
    compare.add_argument(
        "--out", metavar="FILE", type=Path, help="write all of it as JSON, with every row that differs"
    )


def add_calibrate(commands):
    calibrate = add_command(
        commands,
        "calibrate",
        "commands.calibrate",
        help="fit a safety policy to the rows of evaluations",
        description=CALIBRATE,
        epilog=CALIBRATE_EXIT_CODES,
    )
    calibrate.add_argument("rows", nargs="+", metavar="ROWS", help="a folder of safeqwen evaluate, or a rows.jsonl")
    calibrate.add_argument("--out", required=True, metavar="FILE", help="e.g. safety_policy.json beside the weights")
    calibrate.add_argument("--force", action="store_true", help="replace FILE if it exists")
    calibrate.add_argument("--policy", metavar="FILE", help="keep this one's mode, actions, groups and severity")

    thresholds = calibrate.add_argument_group("thresholds")
    thresholds.add_argument(
        "--operating-point",
        choices=("high_precision", "balanced", "high_recall"),
        default="balanced",
        help="of the thresholds without a promise (default: %(default)s)",
    )
    thresholds.add_argument(
        "--max-fpr", type=share, metavar="RATE", help="promise this false-positive rate, e.g. 0.05, for unsafe"
    )
    thresholds.add_argument(
        "--confidence", type=share, metavar="P", default=0.9, help="of the promise (default: %(default)s)"
    )
    thresholds.add_argument(
        "--per-category",
        action="store_true",
        help="a threshold for each category with 20 pictures or more, by --operating-point, not below that of unsafe",
    )

    split = calibrate.add_argument_group("split")
    split.add_argument(
        "--held-out", type=share, metavar="SHARE", default=0.3, help="of the pictures (default: %(default)s)"
    )
    split.add_argument("--seed", type=int, default=0, help="of the split (default: %(default)s)")


def add_evaluate(commands):
    evaluate = add_command(
        commands,
        "evaluate",
        "commands.evaluate",
        help="measure a model on a benchmark",
        description=EVALUATE,
        epilog=EVALUATE_EXIT_CODES,
    )
    evaluate.add_argument("--benchmark", metavar="NAME", required=True, help="one of those above")
    evaluate.add_argument("--data", metavar="PATH", type=Path, required=True, help="its folder or file")
    evaluate.add_argument("--split", help="of its rows (default: the benchmark's own for testing)")
    evaluate.add_argument("--mapping", metavar="FILE", help="JSON: their categories -> the model's")
    evaluate.add_argument("--limit", type=positive, metavar="N", help="the first N rows alone")
    evaluate.add_argument("--out", metavar="DIR", type=Path, required=True, help="a new folder, or a stopped run's")
    evaluate.add_argument("--policy", metavar="FILE", help="safety_policy.json (default: the model's own, if any)")
    evaluate.add_argument(
        "--resamples",
        type=resamples,
        metavar="N",
        default=1000,
        help="of the pictures, for the intervals; 100 for a quick look (default: %(default)s)",
    )

    model = evaluate.add_argument_group("model")
    model.add_argument("--model", metavar="PATH", default="demo", help="folder or repository (default: demo)")
    model.add_argument("--device", help="e.g. cpu, cuda:1 (default: an accelerator if there is one)")
    model.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="(default: float32 on a CPU)")
    model.add_argument("--batch-size", type=positive, metavar="N", default=1, help="(default: %(default)s)")
    model.add_argument(
        "--num-workers", type=natural, metavar="N", default=2, help="threads that read ahead (default: %(default)s)"
    )
    model.add_argument(
        "--max-pixels",
        type=positive,
        metavar="N",
        help="shrink larger pictures to N pixels, 784 a token (default: the processor's own, for Qwen2.5-VL 12845056)",
    )

    answers = evaluate.add_argument_group("answers")
    answers.add_argument("--answers", action="store_true", help="answer the questions, too, in the same pass")
    answers.add_argument(
        "--max-new-tokens", type=positive, metavar="N", default=256, help="of an answer (default: %(default)s)"
    )
    answers.add_argument(
        "--judge-url", metavar="URL", help="of an OpenAI-compatible API, e.g. http://localhost:8000/v1"
    )
    answers.add_argument("--judge-model", metavar="NAME", help="a chat model there")


def main(argv=None):
    """Runs the command line `argv` (by default the process's own) and returns its exit code."""
    args = build_parser().parse_args(argv)
    args.arguments = sys.argv[1:] if argv is None else list(argv)
    return importlib.import_module(f"safeqwen.{args.module}").run(args)


if __name__ == "__main__":
    sys.exit(main())
