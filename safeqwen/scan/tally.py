"""What all rows of a scan add up to, counted one after another, so that millions of them fit in memory."""

import datetime
import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from safeqwen.judging.decision import ACTIONS, LEVELS, UNSAFE
from safeqwen.judging.verdict import UNSAFE_AT
from safeqwen.scan.rows import is_flagged


NUM_BINS = 20  # of a histogram, over [0, 1]
MAX_REASONS = 1_000  # different ones that are counted each by itself
OTHER_REASONS = "other reasons"
SEVERITIES = ("none", *LEVELS)


def action_of(row):
    """Returns "allow", "flag" or "block": what a row's decision is, or in shadow mode would be; "flag" without one."""
    if row["decision"] is not None:
        return row["decision"]["would_action"]
    return "flag" if is_flagged(row) else "allow"


def score_of(row):
    """
    Returns the probability in [0, 1] that a row's picture is ranked by: the score of the policy's rule "unsafe", or
    without a policy `unsafe`, or without a category "safe" too that of the likeliest category.
    """
    if row["decision"] is not None:
        return row["decision"]["score"]
    return row["score"] if row["unsafe"] is None else row["unsafe"]


def scores_of(row):
    """Returns category -> probability (`dict`): the policy's, calibrated, or without one the model's."""
    return row["scores"] if row["decision"] is None else row["decision"]["scores"]


def reason_of(row):
    """Returns an error without the name of the picture before it (`str`), so that equal ones can be counted."""
    return row["error"].removeprefix(row["id"]).removeprefix(":").strip() or "no reason given"


@dataclass
class Tally:
    """
    The counts of rows.

    Attributes:
        num_rows, num_errors, num_flagged (`int`)
        categories (`list[str]`): of the model; empty without a verdict.
        fingerprints (`tuple`): of model and policy, the same for all rows; `None` without rows.
        is_shadow (`bool`): whether a decision was not enforced.
        by_label, by_severity (`Counter`): `(label, action)` and `(severity, action)` -> rows.
        by_reason (`Counter`): why there is no verdict -> rows.
        thresholds (`dict[str, float]`): "unsafe" or a category -> from where its rule fires, as far as rows say.
        histograms (`np.ndarray` of shape `(1 + categories, actions, bins)`): of `score_of`, then of each category.
        groups (`dict`): group -> how many rows it has.
        num_disagreeing (`int`): groups whose verdicts disagree.
        num_judged (`int`): different pictures with a verdict; of copies one is judged.
        seconds (`float`): of the model, for these.
        first, last (`datetime`, *optional*): when a verdict was made.
    """

    num_rows: int = 0
    num_errors: int = 0
    num_flagged: int = 0
    categories: list = field(default_factory=list)
    fingerprints: tuple | None = None
    is_shadow: bool = False
    by_label: Counter = field(default_factory=Counter)
    by_severity: Counter = field(default_factory=Counter)
    by_reason: Counter = field(default_factory=Counter)
    thresholds: dict = field(default_factory=dict)
    histograms: np.ndarray | None = None
    groups: dict = field(default_factory=Counter)
    num_disagreeing: int = 0
    num_judged: int = 0
    seconds: float = 0.0
    first: datetime.datetime | None = None
    last: datetime.datetime | None = None

    def __post_init__(self):
        self._disagreeing, self._ids, self._pictures = set(), set(), set()

    @property
    def has_policy(self):
        return self.fingerprints is not None and self.fingerprints[1] is not None

    @property
    def has_safe(self):
        """Whether anything says how unsafe a picture is (`bool`)."""
        return self.has_policy or "safe" in self.categories

    def add(self, row, where):
        """
        Counts a row.

        Args:
            row (`dict`): as `read_rows` yields it.
            where (`str`): what to call it in an error.

        Raises:
            ValueError: if its id was there before, it is of another model, policy or taxonomy than those before it, or
                a number in it is no probability.
        """
        fingerprints = row["model_fingerprint"], row["policy_fingerprint"]
        self.fingerprints = fingerprints if self.fingerprints is None else self.fingerprints
        for what, ours, theirs in zip(("model", "policy"), self.fingerprints, fingerprints):
            if ours != theirs:
                raise ValueError(
                    f"{where} was made with another {what} ({_short(theirs)}) than the rows before it "
                    f"({_short(ours)}), and their numbers do not go together: make a report of each"
                )
        key = hash(row["id"])  # eight bytes, where a million ids would be a hundred million
        if key in self._ids:
            raise ValueError(f"{where} is about {row['id']!r}, which came before: give each file of rows once")
        self._ids.add(key)
        self.num_rows += 1
        if row["group"] is not None:
            self.groups[row["group"]] += 1
            if row["group_disagrees"]:
                self._disagreeing.add(row["group"])
                self.num_disagreeing = len(self._disagreeing)
        if row["error"] is not None:
            self.num_errors += 1
            reason = reason_of(row)
            self.by_reason[
                reason if reason in self.by_reason or len(self.by_reason) < MAX_REASONS else OTHER_REASONS
            ] += 1
            return
        self._check(row, where)
        self._count(row)

    def _check(self, row, where):
        decision, scores = row["decision"], scores_of(row)
        self.categories = self.categories or [*row["scores"]]
        if [*row["scores"]] != self.categories or [*scores] != self.categories:
            raise ValueError(f"{where} has other categories than the rows before it: make a report of each taxonomy")
        if (decision is None) == self.has_policy:
            raise ValueError(f"{where} names a policy, but has no decision, or the other way round; scan again")
        if row["label"] not in self.categories:
            raise ValueError(f"{where} has the label {row['label']!r}, which is none of its categories")
        numbers = [score_of(row), row["score"], *row["scores"].values(), *scores.values()]
        numbers += [] if row["unsafe"] is None else [row["unsafe"]]
        for number in numbers:
            if not isinstance(number, (int, float)) or not 0 <= number <= 1:  # NaN never is
                raise ValueError(f"{where} holds {number!r} for a probability in [0, 1]; scan again")
        if decision is not None and not (decision["would_action"] in ACTIONS and decision["severity"] in SEVERITIES):
            words = f"{decision['would_action']!r} with severity {decision['severity']!r}"
            raise ValueError(f"{where} has a decision that no policy makes: {words}; scan again")

    def _count(self, row):
        action, decision = action_of(row), row["decision"]
        self.num_flagged += action != "allow"
        self.by_label[row["label"], action] += 1
        if decision is not None:
            self.is_shadow |= decision["action"] != decision["would_action"]
            self.by_severity[decision["severity"], action] += 1
            for reason in decision["fired"]:
                self.thresholds[UNSAFE if reason["rule"] == UNSAFE else reason["category"]] = reason["threshold"]
        elif self.has_safe:
            self.thresholds = {UNSAFE: UNSAFE_AT}
        if self.histograms is None:
            self.histograms = np.zeros((1 + len(self.categories), len(ACTIONS), NUM_BINS), dtype=np.int64)
        scores = np.array([score_of(row), *scores_of(row).values()])
        bins = np.minimum((scores * NUM_BINS).astype(int), NUM_BINS - 1)
        self.histograms[np.arange(len(bins)), ACTIONS.index(action), bins] += 1
        picture = hash(row["picture_sha256"] or row["id"])
        if picture not in self._pictures:
            self._pictures.add(picture)
            self.num_judged += 1
            self.seconds += row["seconds"] if math.isfinite(row["seconds"] or 0) else 0
        if row["judged_at"] is not None:
            when = datetime.datetime.fromisoformat(row["judged_at"])
            self.first = when if self.first is None else min(self.first, when)
            self.last = when if self.last is None else max(self.last, when)


def _short(fingerprint):
    return "none" if fingerprint is None else f"{fingerprint[:12]}..."
