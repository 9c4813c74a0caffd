"""What a report's gallery shows of a picture: its verdict, a small copy, on demand a heat map, what to train with."""

import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass

from safeqwen.data.taxonomy import title_of
from safeqwen.evaluation.page import thumbnail, webp
from safeqwen.judging.decision import UNSAFE, Decision, Reason
from safeqwen.judging.verdict import SAFE, SAME_IN_FLOAT32
from safeqwen.pictures.errors import UnreadableImage, one_line
from safeqwen.pictures.source import read_path
from safeqwen.provenance import without_folders
from safeqwen.scan.rows import is_flagged
from safeqwen.scan.sources import MEMBER, Access, Sources, is_url, path_of
from safeqwen.scan.tally import action_of, score_of, scores_of
from safeqwen.showing.html import visible


PIXELS, QUALITY = 160, 50  # of a thumbnail: about 3 kB of a photograph
MAP_PIXELS = 320
NUM_DIGITS = 8  # of a probability

IN_A_FILE = "it is a part of a file; unpack that, and scan the folder, to correct its verdict"
NOT_FETCHED = "it lies behind a URL: --fetch"


def priority(row):
    """Returns a key by which rows are sorted (`tuple`): the first are most worth a look, and errors are among them."""
    if row["error"] is not None:
        return 1, 0
    return 2 * (not (row["group_disagrees"] or is_flagged(row))), -score_of(row)


def entry(row):
    """
    Returns what the page's script is given of a row (`dict`, of JSON's types). All texts are `visible`, but `path`.

        name            str    the row's id
        path            str    for training; absent where the verdict cannot be corrected, and `fixed` says why
        error           str    why there is no verdict; nothing of the following is there then
        label           int    column of the likeliest category
        score           float  [`score_of`]
        scores          list   [`scores_of`], in the order of the categories
        action          str    [`action_of`]
        severity        str    the decision's, if there is one
        fired           list   columns of the categories whose own rule fired
        unsafe          bool   whether the rule "unsafe" fired; without a policy whether the picture is flagged
        words           str    the verdict in words
        group           int    of near-identical pictures
        thumbnail, map  str    `data:` URLs
        missing         str    why there is no thumbnail
        mapped          str    what the map shows, or why there is none
    """
    found = {"name": visible(row["id"])}
    if row["group"] is not None:
        found["group"] = row["group"]
    if row["error"] is not None:
        return found | {"error": visible(without_folders(row["error"])), "fixed": "it was not judged"}
    scores, fired = scores_of(row), (row["decision"] or {"fired": ()})["fired"]
    categories = [*scores]
    found |= {
        "label": categories.index(row["label"]),
        "score": round(score_of(row), NUM_DIGITS),
        "scores": [round(score, NUM_DIGITS) for score in scores.values()],
        "action": action_of(row),
        "fired": [categories.index(reason["category"]) for reason in fired if reason["rule"] != UNSAFE],
        "unsafe": any(reason["rule"] == UNSAFE for reason in fired) if row["decision"] else is_flagged(row),
        "words": visible(in_words(row)),
    }
    if row["decision"] is not None:
        found["severity"] = row["decision"]["severity"]
    is_member = MEMBER in row["id"] and not is_url(row["id"])
    return found | ({"fixed": IN_A_FILE} if is_member else {"path": path_of(row["id"])})


def in_words(row):
    """Returns the verdict of a row without an error, in words (`str`)."""
    if (fields := row["decision"]) is not None:
        reason = fields["reason"] and Reason(**fields["reason"])
        fired = tuple(Reason(**one) for one in fields["fired"])
        return Decision(**{"groups": {}, **fields, "reason": reason, "fired": fired}).in_words()
    if row["unsafe"] is None:
        return f"flagged: no category says that it is safe; likeliest is {title_of(row['label'])}"
    flagged = "flagged" if is_flagged(row) else "not flagged"
    return f"{flagged}: unsafe {100 * row['unsafe']:.1f} %, most likely {title_of(row['label'])}"


# ------------------------------------------------------------------------------------------------------------ pictures


@dataclass(frozen=True)
class Local(Access):
    """Reads what lies on this machine alone."""

    def bytes_of(self, value, folder, id):
        if isinstance(value, str) and is_url(value):
            raise UnreadableImage(NOT_FETCHED)
        return super().bytes_of(value, folder, id)


def pictures(rows, root, access):
    """
    Yields `(row, bytes)` of the pictures that rows are about, or `(row, why not)`, in any order.

    A picture that is not the one that was judged, by its sha256, is not given: rows of somebody else must not bring
    other files of this machine into a page that is mailed.

    Args:
        rows (`list[dict]`): without an error.
        root (`str` or `os.PathLike`): the folder that relative paths count from: where the scan was started.
        access ([`Access`])
    """
    members = defaultdict(dict)
    for row in rows:
        file, member, name = row["id"].partition(MEMBER)
        if member and not is_url(row["id"]):
            members[os.path.join(root, path_of(file))][name] = row
        else:
            yield row, _same(row, lambda row=row: _load(row["id"], root, access))
    for file, wanted in members.items():
        try:
            for place in Sources([file], access):
                if (row := wanted.pop(place.id.partition(MEMBER)[2], None)) is not None:
                    yield row, _same(row, place.load)
                    if not wanted:
                        break
        except (ValueError, OSError, ImportError):
            pass  # what is left is not there
        for row in wanted.values():
            yield row, "the picture is not there any more"


def _load(id, root, access):
    return access.bytes_of(id, "", id) if is_url(id) else read_path(os.path.join(root, path_of(id)))[0]


def _same(row, load):
    try:
        data = load()
    except UnreadableImage as error:
        return one_line(without_folders(str(error)))
    if hashlib.sha256(data).hexdigest() != row["picture_sha256"]:
        return "the picture has changed since it was judged"
    return data


def add_thumbnails(entries, rows, root, access, progress=iter):
    """
    Adds a `thumbnail`, or why there is `missing` one, to the entries of some rows (`dict` of id -> entry).

    What is missing or has changed cannot be corrected: it would be another picture that is trained on.
    """
    for row, data in progress(pictures(rows, root, access)):
        found = entries[row["id"]]
        try:
            if isinstance(data, str):
                raise UnreadableImage(data)
            found["thumbnail"] = thumbnail(data, _view(row), PIXELS, QUALITY)
        except UnreadableImage as error:
            found["missing"] = visible(one_line(error))
            if NOT_FETCHED not in found["missing"] and found.pop("path", None) is not None:
                found["fixed"] = "its picture is not there, or another one"


def add_heatmaps(entries, rows, root, access, judge, max_pixels=None, progress=iter):
    """
    Adds a `map` of where the verdict comes from, or why there is none, to the entries of some rows.

    Args:
        judge ([`SafetyPipeline`]): of the model that judged them.
        max_pixels (`int`, *optional*): with which it did.
    """
    for row, data in progress(pictures(rows, root, access)):
        found = entries[row["id"]]
        try:
            if isinstance(data, str):
                raise ValueError(data)
            verdict = judge.verdict(data, policy=None, max_pixels=max_pixels)
            differs = max(abs(verdict.scores[name] - score) for name, score in row["scores"].items())
            if differs > SAME_IN_FLOAT32:
                raise ValueError(f"the model gives another verdict now, by {differs:.3f}: is --dtype the scan's?")
            category = _explained(row)
            if category is None:
                raise ValueError("there is no harm in the verdict")
            found["map"] = webp(verdict.heatmap(category).overlay(), MAP_PIXELS, 75)
            found["mapped"] = visible(f"where \u201c{title_of(category)}\u201d comes from")
        except (ValueError, RuntimeError, FloatingPointError, MemoryError) as error:
            found["mapped"] = visible(f"No heat map: {one_line(error)}")


def _explained(row):
    """The category that a map is of: the deciding rule's, else the likeliest harm."""
    if row["decision"] is not None and row["decision"]["reason"] is not None:
        return row["decision"]["reason"]["category"]
    return max((name for name in row["scores"] if name != SAFE), key=row["scores"].get, default=None)


def _view(row):
    """The index of the view that counts, as [`safeqwen.judging.verdict.worst_frame`] has it."""
    if row["views"] is None:
        return 0
    views = [view["scores"] for view in row["views"]]
    badness = [1 - scores[SAFE] if SAFE in scores else max(scores.values()) for scores in views]
    return badness.index(max(badness))
