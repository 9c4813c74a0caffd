"""`safeqwen calibrate`: fits a policy to the rows of evaluations, and says what it does on rows held out."""

import datetime
import importlib.util
import json
import shlex
import sys
from pathlib import Path

from safeqwen.commands.terminal import prepare_streams, printable, say
from safeqwen.evaluation import INSTALL
from safeqwen.evaluation.rows import pictures_digest, read_rows, rows_digest
from safeqwen.files import write_json
from safeqwen.judging.policy import POLICY_FILE, SafetyPolicy
from safeqwen.provenance import git_commit, package_versions


LIBRARIES = ("sklearn", "torchmetrics")
PACKAGES = ("safeqwen", "numpy", "scikit-learn", "scipy", "torchmetrics")


def run(args):
    """Runs `safeqwen calibrate` with the arguments of `safeqwen_cli`, and returns its exit code."""
    prepare_streams()
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        say(f"{' and '.join(missing)} is missing: {INSTALL}")
        return 2
    from safeqwen.judging.calibrate import calibrate

    out = Path(args.out)
    out = out / POLICY_FILE if out.is_dir() else out
    try:
        if out.exists() and not args.force:
            raise ValueError(f"{out} exists: --force replaces it, or give another --out")
        if not out.parent.is_dir():
            raise ValueError(f"there is no folder {out.parent} to write {out.name} to")
        rows, sources, fingerprint, categories = _read(args.rows)
        base = None if args.policy is None else SafetyPolicy.load(args.policy, categories)
        if base is not None and args.max_fpr is not None:
            _refuse_fitted_order(base, sources)
        calibration = calibrate(
            rows,
            categories,
            fingerprint=fingerprint,
            base=base,
            operating_point=args.operating_point,
            max_fpr=args.max_fpr,
            confidence=args.confidence,
            held_out=args.held_out,
            seed=args.seed,
            per_category=args.per_category,
            record={
                "rows": sources,
                "command": _command(args),
                "versions": {**package_versions(PACKAGES), "python": sys.version.split()[0], "git": git_commit()},
                "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            },
        )
        write_json(out, calibration.policy.to_dict())
    except (ValueError, OSError) as error:
        say(error)
        return 2
    for note in [*calibration.notes, *([] if fingerprint else ["no run.json names the weights: any may use it"])]:
        say(note)
    _show(out, calibration.policy)
    return 0


def _read(paths):
    """Of evaluations of one model `(rows, [{"name", "sha256", ...} of each], fingerprint or None, categories)`.

    Raises:
        ValueError: if they are of several models, taxonomies or settings that move a verdict, or hold no verdict.
    """
    all_rows, sources, models = [], [], {}
    for path in map(Path, paths):
        rows = read_rows(path)
        digest = rows_digest(path)
        if digest in {source["sha256"] for source in sources}:
            raise ValueError(f"{path} holds the same rows as another of the files: give each once")
        pictures = pictures_digest(rows)
        sources.append({"name": path.resolve().name, "sha256": digest, "pictures_sha256": pictures, "rows": len(rows)})
        all_rows += rows
        record = (path if path.is_dir() else path.parent) / "run.json"
        if record.exists():
            facts = json.loads(record.read_text(encoding="utf-8"))
            models[path] = {
                "categories": facts.get("categories"),
                "weights": facts.get("model_fingerprint"),
                **{name: facts.get("settings", {}).get(name) for name in ("max_pixels", "dtype")},
            }
        else:
            models[path] = {"categories": next(([*row.probs] for row in rows if row.probs), None), "weights": None}
    first, facts = next(iter(models.items()))
    for path, others in models.items():
        if not others["categories"]:
            raise ValueError(f"{path} holds no verdict, and no run.json names the model's categories")
        if differing := [name for name in facts | others if facts.get(name) != others.get(name)]:
            raise ValueError(f"{path} and {first} are of different {differing[0]}: a policy is fitted to one model")
    return all_rows, sources, facts["weights"], facts["categories"]


def _refuse_fitted_order(base, sources):
    """Refuses a promise where a temperature that is kept has ordered the pictures by their own labels."""
    allowed = "allow" in base.actions.values()
    seen = [source["name"] for source in sources if base.was_fitted_to(source["pictures_sha256"])]
    if allowed and base.temperature != 1 and seen:
        raise ValueError(
            f"the policy to start from allows categories, so its temperature {base.temperature:.4g} is kept, and it "
            f"was fitted to {', '.join(seen)}: nothing can be promised with the same rows; set its temperature to 1, "
            "or take other rows"
        )


def _command(args):
    """The command line, with names instead of the paths of this machine."""
    words = ["safeqwen", "calibrate", *(Path(path).resolve().name for path in args.rows), "--out", Path(args.out).name]
    words += ["--operating-point", args.operating_point]
    if args.max_fpr is not None:
        words += ["--max-fpr", f"{args.max_fpr:g}", "--confidence", f"{args.confidence:g}"]
    words += ["--held-out", f"{args.held_out:g}", "--seed", str(args.seed)]
    words += ["--per-category"] if args.per_category else []
    words += ["--policy", Path(args.policy).resolve().name] if args.policy is not None else []
    return shlex.join(words)


def _show(out, policy):
    fitted = policy.fitted
    fit, held, rule = fitted["pictures"]["fit"], fitted["pictures"]["held_out"], fitted["unsafe_threshold"]
    figures = fitted["held_out"]
    print(
        f"{printable(str(out))}: temperature {policy.temperature:.4g}, unsafe from {policy.unsafe_threshold:.6g}",
        end="",
    )
    print(f", clips: {policy.clip['at_least']} of {policy.clip['of']} frames")
    print(f"fitted to {fit['safe']} safe and {fit['unsafe']} unsafe still pictures, one row a picture: ", end="")
    if "max_fpr" in rule:
        print(
            f"with probability {rule['confidence']:.6g} or more over the draw of these rows, the false-positive rate "
            f"on new still pictures of the same kind is at most {rule['max_fpr']:.6g} "
            f"({rule['false_positives']} of these safe ones are flagged, {rule['may_err']} may be)"
        )
    else:
        print(f"{rule['operating_point']}, {rule['definition']}; nothing is promised for new pictures")
    for name in fitted["category_thresholds"]:
        print(f"  {printable(name)} from {policy.category_thresholds[name]:.6g}")
    print(f"\non {held['safe']} safe and {held['unsafe']} unsafe still pictures held out:")
    print(f"  {'':26}  {'false positives (95 % interval)':31}  {'recall':>7}  {'precision':>9}")
    rules = {"argmax": "likeliest is not safe", "threshold_0.5": "1 - p(safe) >= 0.5", "policy": "this policy"}
    for name, title in rules.items():
        print(f"  {title:26}  {_in_words(figures[name])}")
    print(f"\n  {'':26}  {'NLL':>7}  {'ECE':>7}  {'Brier':>7}")
    for name, title in (("before", "before the temperature"), ("after", "after it")):
        print(f"  {title:26}  " + "  ".join(f"{figures[name][key]:7.4f}" for key in ("nll", "ece", "brier")))
    if any(figures["after"][key] > figures["before"][key] for key in ("nll", "ece", "brier")):
        print("  it is fitted to the NLL of the other pictures, and need not improve each figure on these")
    would = " it would make" if policy.mode == "shadow" else ""
    print(f"\n  decisions{would}: " + ", ".join(f"{count} {action}" for action, count in figures["actions"].items()))
    for length, of_clips in figures["clips"].items():
        print(f"\n  clips of {length}")
        for name, title in (("any_frame", "one frame is enough"), ("policy", "this policy")):
            print(f"  {title:26}  {_in_words(of_clips[name])}")


def _in_words(figures):
    false_positives, recall, precision = (figures[name] for name in ("false_positive_rate", "recall", "precision"))
    interval = ""
    if false_positives["n"]:
        interval = f"({false_positives['low']:.2%} to {false_positives['high']:.2%}) of {false_positives['n']}"
    return f"{_percent(false_positives):>7} {interval:23}  {_percent(recall):>7}  {_percent(precision):>9}".rstrip()


def _percent(figure):
    return "-" if figure["value"] is None else f"{figure['value']:.2%}"
