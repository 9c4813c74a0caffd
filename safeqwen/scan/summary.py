"""
The end of a scan: the rows of its ledger, groups of near-identical pictures among them, and a [`Summary`] of all.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from safeqwen.scan.ledger import writing_to
from safeqwen.scan.rows import is_flagged, rows_writer
from safeqwen.scan.similar import near_identical


NUM_SHOWN = 5  # errors, and groups that disagree, in a summary


@dataclass
class Counts:
    """How many places were met by this process: those that it knew from before, `num_judged` pictures, errors."""

    num_known: int = 0
    num_copies: int = 0
    num_judged: int = 0
    num_errors: int = 0
    seconds: float = 0.0  # the model's

    @property
    def num_met(self):
        return self.num_known + self.num_copies + self.num_judged + self.num_errors


@dataclass
class Summary:
    """What a scan found: of all rows, whenever they were judged."""

    counts: Counts
    num_rows: int = 0
    num_errors: int = 0
    num_flagged: int = 0
    num_left_out: int = 0
    num_groups: int = 0
    labels: Counter = field(default_factory=Counter)
    actions: Counter = field(default_factory=Counter)  # of a policy: "allow", "flag", "block"
    errors: list = field(default_factory=list)  # the first rows
    disagreeing: dict = field(default_factory=dict)  # of the first groups: number -> whether flagged -> the first row
    num_disagreeing: int = 0


def write_rows(ledger, path, maker, counts):
    """Writes the rows of the ledger's pass to a file, in one step, and returns their [`Summary`]."""
    with writing_to(path), rows_writer(path, maker.categories, maker.policy) as write:
        return summarize(ledger, maker, counts, write)


def summarize(ledger, maker, counts, write):
    """Hands each row of the ledger's pass to `write`, in the order of the places, and returns their [`Summary`]."""
    groups = _groups(ledger)
    disagreeing = _disagreeing(ledger, maker, groups)
    summary = Summary(counts, num_groups=len({*groups.values()}), num_disagreeing=len(disagreeing))
    summary.disagreeing = shown = {group: {} for group in sorted(disagreeing)[:NUM_SHOWN]}
    for place in ledger.places():
        row = maker.row(place)
        group = groups.get(_key(place))
        if group is not None:
            row |= {"group": group, "group_disagrees": group in disagreeing}
        write(row)
        summary.num_rows += 1
        if row["error"] is not None:
            summary.num_errors += 1
            if len(summary.errors) < NUM_SHOWN:
                summary.errors.append(row)
            continue
        summary.num_flagged += is_flagged(row)
        summary.labels[row["label"]] += 1
        if row["decision"] is not None:
            summary.actions[row["decision"]["would_action"]] += 1
        if group in shown:
            shown[group].setdefault(is_flagged(row), row)
    return summary


def _key(place):
    *_, sha256, _, judged = place
    return None if judged is None else judged.perceptual_hash or sha256


def _groups(ledger):
    """Key -> number of its group (`dict[bytes, int]`), of those in one. Groups are numbered in their order."""
    keys, counts = [], []
    for key, count in ledger.keys():
        keys.append(key)
        counts.append(count)
    firsts = near_identical(keys).tolist()
    sizes = np.bincount(firsts, weights=counts, minlength=len(keys)) if keys else []
    numbers = {}
    return {key: numbers.setdefault(i, len(numbers) + 1) for key, i in zip(keys, firsts) if sizes[i] > 1}


def _disagreeing(ledger, maker, groups):
    """Numbers of the groups (`set[int]`) in which one picture is flagged and another is not."""
    if not groups:
        return set()
    flagged, unflagged = set(), set()
    for place in ledger.places():
        if (group := groups.get(_key(place))) is not None:
            (flagged if is_flagged(maker.row(place)) else unflagged).add(group)
    return flagged & unflagged
