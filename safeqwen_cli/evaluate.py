"""The arguments of `safeqwen evaluate`."""

from pathlib import Path

from safeqwen_cli.arguments import add_command, add_max_pixels, natural, positive, resamples


DESCRIPTION = """\
Measure a model on a benchmark: its guard against the labels of the pictures and, with --answers, what it answers.

OUT gets a line for each row (rows.jsonl), the figures with their intervals (metrics.json), a page (report.html) and
its plots, and the verdicts as records for guard-eval-harness (records.jsonl). The same command, started again, goes on
with a run that was stopped; of one that has ended it makes figures and page anew, and changes no row.

Benchmarks: holisafe-bench, unsafebench, vlguard, llavaguard, safeeditbench, folder, jsonl; for answers only
mm-safetybench, siuo, vlsbench. docs/evaluation.md says what each looks like on the disk.
"""
EXIT_CODES = """\
exit codes: 0 every row counts; 1 some rows have no verdict or no answer that counts: the files are whole, and stdout
says how many and where they are listed; 2 refused: wrong usage, a benchmark in another layout, OUT of another run, a
judge that cannot be asked: the reason is on stderr.

--judge-url sends questions and answers, no pictures, to that endpoint, with the key in the environment's
SAFEQWEN_JUDGE_API_KEY if there is one.
"""


def add_parser(commands):
    evaluate = add_command(
        commands,
        "evaluate",
        help="measure a model on a benchmark",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
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
    add_max_pixels(model)

    answers = evaluate.add_argument_group("answers")
    answers.add_argument("--answers", action="store_true", help="answer the questions, too, in the same pass")
    answers.add_argument(
        "--max-new-tokens", type=positive, metavar="N", default=256, help="of an answer (default: %(default)s)"
    )
    answers.add_argument(
        "--judge-url", metavar="URL", help="of an OpenAI-compatible API, e.g. http://localhost:8000/v1"
    )
    answers.add_argument("--judge-model", metavar="NAME", help="a chat model there")
