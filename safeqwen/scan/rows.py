"""
The rows of a scan: one a picture, in JSONL or Parquet, written when the scan has ended and never before.

A file of rows that is there is whole: it is put in its place in one step, and holds exactly one row for each place
where the sources had a picture, in the order of the sources. Every row has all fields, in this order:

    id                  str    where the picture is; unique in the file. A path as the source was given
                               ("pictures/a.png"), a URL, or a member of a file, after "::"
                               ("shard-0001.tar::000017.jpg", "a.zip::b/c.png", "rows.jsonl::12", "rows.jsonl::12::1"
                               for the second of line 12's pictures, "train.parquet::12"; lines and rows count from 1).
                               A path that is no UTF-8 is a file:// URI. [`safeqwen.scan.sources.read_place`] gives
                               the bytes of any id that is a path, URL or file:// URI, or a member.
    label               str    the likeliest category of the view that counts; null if there is an error
    score               float  its probability in [0, 1]; null if there is an error
    unsafe              float  1 - p(safe) in [0, 1]; null if there is an error, or no category is named "safe"
    scores              dict   category -> the model's own probability (not calibrated), in the model's order, of the
                               view that counts; null if there is an error
    views               list   of a picture with several views `{"frame": int, "scores": dict}` each; else null.
                               `frame` counts the frames of an animation; a frame has two views if it looks different
                               on white and on black paper
    frames              int    how many views were judged, as in `safeqwen judge --json`; null if there is an error
    decision            dict   `Decision.to_dict()` of the policy; null without a policy, or if there is an error
    error               str    why there is no verdict; null if there is one. A row has a verdict or an error
    width, height       int    pixels of the first view; null if the picture could not be decoded
    num_bytes           int    of the file; null if it could not be read
    seconds             float  the model's time; of pictures that are judged together each has its share. Copies of one
                               picture have the same: it was judged once
    judged_at           str    when, "2026-11-26T19:30:00+00:00"; null if there is an error
    picture_sha256      str    of the file's bytes; rows of the same picture share it; null if it could not be read
    perceptual_hash     str    64 hexadecimal digits: ImageHash's phash of 16 x 16 of the first view. Null of
                               animations, of pictures of one colour, and if there is an error
    group               int    number of the group of near-identical pictures that this one is in, from 1; copies
                               (the same picture_sha256) are near-identical, too. Null for a picture without another
    group_disagrees     bool   whether the verdicts of the group differ: the decision's `would_action`, or without a
                               policy whether `unsafe` is 0.5 or more. Null where `group` is null
    model_fingerprint   str    of the weights ([`safeqwen.fingerprint.weights_fingerprint`])
    policy_fingerprint  str    sha256 of the policy's JSON; null without one

`read_rows` reads both kinds. Beside ROWS lies ROWS.ledger, from which the file was written (see `ledger`): further
scans of the same sources go by it, and read_record gives what the scan was of (model, policy, sources, settings).
"""

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path

import torch

from safeqwen.files import replaced
from safeqwen.judging.verdict import UNSAFE_AT, Verdict
from safeqwen.scan.ledger import ledger_of


TEXT, NUMBER, WHOLE = "string", "float64", "int64"
KINDS = {  # of the fields that are one value, in Arrow's words
    "id": TEXT,
    "label": TEXT,
    "score": NUMBER,
    "unsafe": NUMBER,
    "frames": WHOLE,
    "error": TEXT,
    "width": WHOLE,
    "height": WHOLE,
    "num_bytes": WHOLE,
    "seconds": NUMBER,
    "judged_at": TEXT,
    "picture_sha256": TEXT,
    "perceptual_hash": TEXT,
    "group": WHOLE,
    "group_disagrees": "bool",
    "model_fingerprint": TEXT,
    "policy_fingerprint": TEXT,
}
FIELDS = (
    *("id", "label", "score", "unsafe", "scores", "views", "frames", "decision", "error", "width", "height"),
    *("num_bytes", "seconds", "judged_at", "picture_sha256", "perceptual_hash", "group", "group_disagrees"),
    *("model_fingerprint", "policy_fingerprint"),
)
SUFFIXES = (".jsonl", ".parquet")
ROW_GROUP = 1000  # rows of Parquet that are held in memory, and written together


def policy_fingerprint(policy):
    """Returns the sha256 (`str`) of a [`SafetyPolicy`], whatever file it came from; `None` of `None`."""
    if policy is None:
        return None
    return hashlib.sha256(json.dumps(policy.to_dict(), sort_keys=True).encode()).hexdigest()


class RowMaker:
    """
    Makes rows of what a ledger holds.

    Args:
        categories (`list[str]`): of the model.
        policy ([`SafetyPolicy`], *optional*): decides.
        model_fingerprint (`str`, *optional*)
    """

    def __init__(self, categories, policy, model_fingerprint):
        self.categories, self.policy = list(categories), policy
        self.fingerprints = {"model_fingerprint": model_fingerprint, "policy_fingerprint": policy_fingerprint(policy)}

    def row(self, place):
        """Returns the row (`dict`) of what `Ledger.places` yields, which is in no group yet."""
        id, num_bytes, sha256, error, judged = place
        row = dict.fromkeys(FIELDS) | self.fingerprints | {"id": id, "num_bytes": num_bytes, "error": error}
        row["picture_sha256"] = sha256 and sha256.hex()
        if judged is None:
            return row
        verdict = Verdict(
            categories=self.categories,
            probs=torch.tensor(judged.probs),
            frames=judged.frames,
            name=id,
            policy=self.policy,
        )
        views = zip(judged.frames, verdict.probs.tolist())
        views = [{"frame": frame, "scores": dict(zip(self.categories, probs))} for frame, probs in views]
        fields = verdict.to_dict()
        return row | {
            **{name: fields[name] for name in ("label", "score", "unsafe", "scores", "frames", "decision")},
            "views": views if len(views) > 1 else None,
            "width": judged.width,
            "height": judged.height,
            "seconds": judged.seconds,
            "judged_at": judged.judged_at,
            "perceptual_hash": judged.perceptual_hash and judged.perceptual_hash.hex(),
        }


def is_flagged(row):
    """
    Returns whether something is to be done about a row's picture (`bool`): by `would_action` of the decision, without
    a policy by `unsafe` from 0.5. Without a category "safe" too it is true: nothing says that the picture is safe.

    Raises:
        ValueError: if the row has no verdict.
    """
    if row["error"] is not None:
        raise ValueError(f"there is no verdict on {row['id']}: {row['error']}")
    if row["decision"] is not None:
        return row["decision"]["would_action"] != "allow"
    return row["unsafe"] is None or row["unsafe"] >= UNSAFE_AT


# ------------------------------------------------------------------------------------------------------------- writing


@contextmanager
def rows_writer(path, categories, policy=None):
    """
    Gives a function that writes a row (`dict`), for a file that appears, or is replaced, when all are written.

    Args:
        path (`Path`): that ends in .jsonl or .parquet.
        categories (`list[str]`): of the model.
        policy ([`SafetyPolicy`], *optional*): whose decisions the rows hold.

    Raises:
        OSError: if it cannot be written. What was there stays.
    """
    with replaced(path) as partial:
        if path.suffix == ".jsonl":
            with partial.open("w", encoding="utf-8") as file:
                yield lambda row: file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            return
        import pyarrow
        from pyarrow import parquet

        schema, waiting = rows_schema(categories, policy), []
        with parquet.ParquetWriter(partial, schema) as file:

            def write(row):
                waiting.append(row)
                if len(waiting) == ROW_GROUP:
                    flush()

            def flush():
                file.write_table(pyarrow.Table.from_pylist(waiting, schema))
                waiting.clear()

            yield write
            flush()


def rows_schema(categories, policy=None):
    """Returns Arrow's schema of the rows: dictionaries are structs, so that `scores.safe` is a column of its own."""
    import pyarrow

    names = {TEXT: pyarrow.string(), NUMBER: pyarrow.float64(), WHOLE: pyarrow.int64(), "bool": pyarrow.bool_()}

    def struct(**kinds):
        return pyarrow.struct([(name, names.get(kind, kind)) for name, kind in kinds.items()])

    scores = struct(**dict.fromkeys(categories, NUMBER))
    reason = struct(rule=TEXT, category=TEXT, score=NUMBER, threshold=NUMBER, action=TEXT)
    group = struct(score=NUMBER, flagged="bool")
    decision = struct(
        action=TEXT,
        flagged="bool",
        would_action=TEXT,
        reason=reason,
        fired=pyarrow.list_(reason),
        severity=TEXT,
        scores=scores,
        unsafe=NUMBER,
        score=NUMBER,
        groups=struct(**dict.fromkeys(policy.groups if policy else (), group)),
        num_frames=WHOLE,
        num_frames_fired=WHOLE,
        num_frames_needed=WHOLE,
    )
    kinds = {
        **{name: names[kind] for name, kind in KINDS.items()},
        "scores": scores,
        "views": pyarrow.list_(struct(frame=WHOLE, scores=scores)),
        "decision": decision if policy and policy.groups else _without(decision, "groups"),
    }
    return pyarrow.schema([(name, kinds[name]) for name in FIELDS])


def _without(struct, name):
    import pyarrow

    return pyarrow.struct([field for field in struct if field.name != name])  # Parquet knows no empty struct


# ------------------------------------------------------------------------------------------------------------- reading


def read_rows(path):
    """
    Yields the rows (`dict`) of a scan, one after another.

    Args:
        path (`str` or `os.PathLike`): ROWS.jsonl, ROWS.parquet, or the folder that holds rows.jsonl.

    Raises:
        ValueError: if there is no such file, or it does not hold rows: which line, and why.
    """
    path = rows_file(path)
    if not path.is_file():
        unfinished = ledger_of(path).exists()
        what = "the scan has not ended: start it again, and it goes on" if unfinished else "check the path"
        raise ValueError(f"there is no {path}; {what}")
    if path.suffix == ".parquet":
        from pyarrow import ArrowInvalid, parquet

        try:
            for batch in parquet.ParquetFile(path).iter_batches(batch_size=ROW_GROUP):
                for number, row in enumerate(batch.to_pylist(), start=1):
                    yield _checked(row, f"{path}, row {number}")
        except ArrowInvalid as error:
            raise ValueError(f"{path} is no whole Parquet file ({error})") from None
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is no row: {error}") from None
            yield _checked(row, f"{path}, line {number}")


def rows_file(out):
    """
    Returns the `Path` of a scan's rows: `out` if it ends in .jsonl or .parquet, else rows.jsonl in it.

    Raises:
        ValueError: if `out` is no such file, and no folder; if there is no such folder yet, and its name ends as that
            of another kind of file does.
    """
    out = Path(out)
    if out.suffix in SUFFIXES:
        if out.is_dir() or out.exists() and not out.is_file():
            raise ValueError(f"{out} is no file: rows are in a file that ends in {' or '.join(SUFFIXES)}")
        return out
    if not out.is_dir() and (out.exists() or out.suffix[1:].isalpha()):
        raise ValueError(f"rows are in a file that ends in {' or '.join(SUFFIXES)}, or in a folder; got {out}")
    return out / "rows.jsonl"


def _checked(row, where):
    if not isinstance(row, dict) or (missing := [name for name in FIELDS if name not in row]):
        lacks = "is no object" if not isinstance(row, dict) else f"lacks {', '.join(missing)}"
        raise ValueError(f"{where} is no row of a scan: it {lacks}")
    if (row["error"] is None) != (row["label"] is not None):
        raise ValueError(f"{where} is no row of a scan: it has neither a verdict nor an error, or both")
    return row
