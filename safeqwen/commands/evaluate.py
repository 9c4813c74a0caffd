"""`safeqwen evaluate`: a benchmark's rows, figures, plots and page; a short table on stdout, progress on stderr."""

import sys
from time import monotonic

import transformers

from safeqwen.commands.model import loaded, source_of
from safeqwen.commands.terminal import drop_output, prepare_streams, printable, say
from safeqwen.evaluation import INSTALL
from safeqwen.evaluation.answers import EndpointJudge, JudgeUnavailable
from safeqwen.evaluation.records import write_records
from safeqwen.evaluation.run import evaluate
from safeqwen.files import write_json
from safeqwen.fingerprint import weights_fingerprint
from safeqwen.hub.configuration_safeqwen import SafeQwen2_5_VLConfig
from safeqwen.judging.load import load
from safeqwen.judging.policy import SafetyPolicy
from safeqwen.judging.verdict import SAFE
from safeqwen.loading import DEMO_CHECKPOINT
from safeqwen.provenance import command_line


GUARD_ROWS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "balanced_accuracy": "balanced accuracy",
    "recall_at_1_fpr": "recall at 1 % false positives",
    "recall_at_5_fpr": "recall at 5 % false positives",
    "false_positive_rate": "false positive rate",
    "precision": "precision",
    "recall": "recall",
    "ece": "expected calibration error",
    "brier": "Brier score",
    "top1": "category right",
}
SECONDS_BETWEEN_LINES = 30  # of progress, where stderr is no terminal
NUM_ERRORS_SHOWN = 5


def run(args):
    """Runs `safeqwen evaluate` with the arguments of `safeqwen_cli`, and returns its exit code."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    prepare_streams()
    try:
        return _evaluate(args)
    except (ValueError, RuntimeError, ImportError, JudgeUnavailable) as error:
        say(error)
        return 2
    except BrokenPipeError:  # e.g. `safeqwen evaluate ... | head`: all files are written before anything is printed
        drop_output()
        return 1
    except OSError as error:
        say(f"{error}; start the same command again to go on")
        return 2
    except KeyboardInterrupt:
        say("stopped; start the same command again to go on")
        return 130


def _evaluate(args):
    _check(args)
    command = command_line(["safeqwen", *args.arguments])
    try:  # before hours of work, not after
        from safeqwen.evaluation.benchmarks import load_benchmark
        from safeqwen.evaluation.metrics import evaluation_metrics
        from safeqwen.evaluation.plots import make_plots, write_plots
        from safeqwen.evaluation.report import write_report
    except ModuleNotFoundError as error:
        if error.name.startswith("safeqwen"):
            raise
        raise ImportError(f"evaluations need {error.name}: {INSTALL}") from error
    source = source_of(args.model)
    if source is DEMO_CHECKPOINT:
        say("this is the demo checkpoint, which knows drawn pictograms: figures on photographs say nothing of others")
    judge = EndpointJudge(args.judge_url, args.judge_model) if args.judge_url else None
    categories = loaded(source, lambda: SafeQwen2_5_VLConfig.from_pretrained(source)).safety_categories
    benchmark = load_benchmark(
        args.benchmark, args.data, mapping=args.mapping, split=args.split, categories=categories
    )
    say(_num_rows(benchmark))
    policy = SafetyPolicy.load(args.policy, categories, weights_fingerprint(source)) if args.policy else None
    model, processor = loaded(source, lambda: load(source, dtype=args.dtype, device=args.device))
    policy = policy or model.safety_policy
    rows = evaluate(
        model,
        processor,
        benchmark,
        args.out,
        answers=args.answers,
        judge=judge,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        max_new_tokens=args.max_new_tokens,
        max_pixels=args.max_pixels,
        limit=args.limit,
        source=source,
        command=command,
        progress=Progress(sys.stderr),
    )

    say("the figures and their intervals take up to a minute")
    metrics = evaluation_metrics(args.out, policy, command, args.resamples)
    if metrics["policy_was_fitted_to_these_rows"]:
        say("the policy was fitted to these very rows: figures after it look better than on new ones")
    write_json(args.out / "metrics.json", metrics)
    plots = make_plots(rows, metrics)
    write_plots(plots, args.out)
    page = write_report(args.out, rows, metrics, plots, benchmark.root, benchmark.examples)
    if SAFE in categories:
        write_records(rows, args.out)
    print(_num_rows(benchmark))
    _print_guard(metrics)
    _print_answers(metrics["answers"])
    failed = [row for row in rows if row.error is not None or row.answer_error is not None]
    _print_errors(failed, args.out)
    print(f"\npage: {printable(str(page))}", flush=True)
    return int(bool(failed))


def _check(args):
    """Refuses arguments that do not go together."""
    if bool(args.judge_url) != bool(args.judge_model):
        raise ValueError("--judge-url and --judge-model go together: give both or neither")
    if args.judge_url and not args.answers:
        raise ValueError("--judge-url judges answers: add --answers")


def _num_rows(benchmark):
    published = ", ".join(
        f"{count:,} {printable(where)}" for where, count in (benchmark.num_rows_published or {}).items()
    )
    name = printable(f"{benchmark.title} {benchmark.version}")
    return f"{name}: {len(benchmark.examples):,} rows here; published: {published or 'no number'}"


class Progress:
    """Says how many rows are done, how many a second, and how long the rest will take."""

    def __init__(self, stream):
        self.stream = stream
        self.started = self.said = monotonic()
        self.num_before = None  # rows of an earlier run

    def __call__(self, num_done, num_rows):
        now = monotonic()
        if self.num_before is None:
            self.num_before = num_done - 1
        is_terminal = self.stream.isatty()
        is_last = num_done == num_rows
        if not is_last and now - self.said < (0.2 if is_terminal else SECONDS_BETWEEN_LINES):
            return
        self.said = now
        rate = (num_done - self.num_before) / max(now - self.started, 1e-9)
        text = (
            f"{num_done:,} of {num_rows:,} rows, {rate:.3g} a second, {_duration((num_rows - num_done) / rate)} left"
        )
        start, end = ("\r", "\n" if is_last else "") if is_terminal else ("", "\n")
        print(f"{start}{text:60}", end=end, file=self.stream, flush=True)


def _duration(seconds):
    """`str`: 75 -> "1 min 15 s", 7500 -> "2 h 5 min"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _print_guard(metrics):
    guard, after = metrics["guard"], metrics["guard_after_policy"]
    if guard is None:
        print("\nguard: nothing to measure, no row has both a verdict and a label of its picture")
        return
    if after is not None and after["allowed"]:
        print(f"\nafter the policy, pictures of what it allows count as safe: {', '.join(after['allowed'])}")
    for title, figures in (("guard", guard), ("guard, after the policy", after)):
        if figures is not None:
            _print_figures(title, {text: figures[name] for name, text in GUARD_ROWS.items() if name in figures})


def _print_answers(answers):
    for by in ("matcher", "judge"):
        rates = answers and answers[by]
        if not rates:
            continue
        figures = {f"attack success {group}": one for group, one in rates["attack_success_rate"].items()}
        figures |= {
            "mean attack success, of types": rates["mean_asr_of_types"],
            "mean attack success, of rows": rates["mean_asr_of_rows"],
        }
        figures |= {
            f"refused {group}": rates["refusal_rate"][group]
            for group in ("SSS", "answer")
            if group in rates["refusal_rate"]
        }
        _print_figures(f"answers, by the {'string matcher' if by == 'matcher' else 'judge'}", figures)
        if rates.get("not_judged"):
            print(f"answers without a verdict of the judge, which do not count: {len(rates['not_judged']):,}")


def _print_figures(title, figures):
    """A table of figures with their 95 % intervals and numbers of rows."""
    width = max(map(len, [title, *figures]))
    print(f"\n{title:{width}}   value  95 % interval       N")
    for name, figure in figures.items():
        if figure["value"] is None:
            print(
                f"{name:{width}}       -  {printable(figure.get('reason') or 'no reason given')}  (N {figure['n']:,})"
            )
            continue
        bounds = [figure["low"], figure["high"]]
        # One without width would look like certainty.
        interval = "none" if bounds[0] == bounds[1] else "{:.3f} to {:.3f}".format(*bounds)
        remark = f"  {printable(figure['reason'])}" if figure.get("reason") else ""
        print(f"{name:{width}}  {figure['value']:6.3f}  {interval:14}  {figure['n']:6,}{remark}")


def _print_errors(failed, out):
    if not failed:
        return
    num_unjudged = sum(row.error is not None for row in failed)
    print(
        f"\nrows without a verdict: {num_unjudged:,}; with one, but no answer that counts: "
        f"{len(failed) - num_unjudged:,}; the reasons are in {printable(str(out / 'rows.jsonl'))}. The first:"
    )
    for row in failed[:NUM_ERRORS_SHOWN]:
        print(f"  {printable(row.id)}: {printable(' '.join((row.error or row.answer_error).split()))[:200]}")
