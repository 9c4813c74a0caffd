"""From a guard's probabilities to a decision: what to do about a picture, by rules that are written down in a file.

`safety_policy.json` lies beside the weights that it was made for. It is refused for another taxonomy and, if it says
which weights it was fitted to, for others. `docs/policies.md` explains the rules with numbers.
"""

import difflib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from numbers import Real
from operator import index
from pathlib import Path

import numpy as np

from safeqwen.data.taxonomy import GROUPS
from safeqwen.files import write_json
from safeqwen.hub.configuration_safeqwen import HOLISAFE_CATEGORIES, check_categories
from safeqwen.judging.decision import ACTIONS, LEVELS, UNSAFE, Decision, Reason
from safeqwen.judging.verdict import SAFE, SUM_TOLERANCE, unsafe_probability


POLICY_FILE = "safety_policy.json"
VERSION = 1
MODES = ("enforce", "shadow")
CLIP = ("at_least", "of")
ANY_FRAME = {"at_least": 1, "of": 100}  # one is enough, up to 100 frames; 1 of 1 would be all of them


@dataclass(frozen=True, kw_only=True)
class SafetyPolicy:
    """
    Rules that make a decision of a guard's probabilities.

    `dataclasses.replace(policy, mode="shadow")` is a policy that differs in one setting.

    Args:
        categories (`list[str]`): of the model, in its order. One of them is "safe", none is "unsafe".
        model (`str`, *optional*): fingerprint of the weights that the policy was fitted to
            ([`safeqwen.fingerprint.weights_fingerprint`]). `None`: it goes with any weights of these categories.
        mode (`str`, defaults to "enforce"): "shadow" says what would be done, and always allows.
        temperature (`float` above 0, defaults to 1): divides the log-odds of the unsafe probability u, so that
            u' = sigmoid(logit(u) / temperature). The harms keep their shares of it.
        unsafe_threshold (`float` in [0, 1], defaults to 0.5): the rule "unsafe" fires if the calibrated probability
            of all harms that are not allowed is at least this.
        category_thresholds (`dict[str, float]`): category -> the calibrated probability in [0, 1] at which its own
            rule fires. A category without one has no rule of its own.
        actions (`dict[str, str]`): "unsafe" or a category -> "allow", "flag" or "block". A category's rule takes its
            own action, else that of "unsafe" ("flag" if it is not given either). The rule of an allowed category never
            fires, and its probability does not count as unsafe.
        groups (`dict[str, list[str]]`, *optional*): group -> categories whose scores are added up in a decision. By
            default HoliSafe's seven, if the categories are HoliSafe's, else none.
        severity (`dict[str, float]`): "low", "medium" and "high" -> from which probability of harms that are not
            allowed, in rising order.
        clip (`dict[str, int]`): `{"at_least": k, "of": n}`: a clip of m frames needs at least ceil(m * k / n) frames
            on which a rule fires. By default 1 of 100, so that one is enough, up to 100 frames.
        fitted (`dict`, *optional*): what the policy was fitted to, for the record; `was_fitted_to` looks it up.
        version (`int`): of the file's format.

    Raises:
        ValueError: on an unknown category, action, group member, level or key (with the nearest right name); a number
            out of range or not finite; a taxonomy without "safe"; an action of a category that has no threshold.
    """

    categories: list
    version: int = VERSION
    model: str | None = None
    mode: str = "enforce"
    temperature: float = 1.0
    unsafe_threshold: float = 0.5
    category_thresholds: dict = field(default_factory=dict)
    actions: dict = field(default_factory=lambda: {UNSAFE: "flag"})
    groups: dict | None = None
    severity: dict = field(default_factory=lambda: dict(zip(LEVELS, (0.25, 0.5, 0.75))))
    clip: dict = field(default_factory=lambda: dict(ANY_FRAME))
    fitted: dict | None = None

    def __post_init__(self):
        if isinstance(self.version, bool) or self.version != VERSION:
            newer = isinstance(self.version, int) and self.version > VERSION
            hint = "it is from a newer safeqwen: upgrade this one" if newer else "is it a safety policy?"
            raise ValueError(f"version must be {VERSION}, got {self.version!r}; {hint}")
        if not isinstance(self.categories, (list, tuple)):
            raise ValueError(f"categories must be a list of the model's categories, got {self.categories!r}")
        if wrong := [name for name in self.categories if not isinstance(name, str)]:
            raise ValueError(f"categories must be names, got {wrong[0]!r}")
        check_categories(self.categories)
        if SAFE not in self.categories:
            raise ValueError(f"a policy needs a category {SAFE!r}, but they are {', '.join(self.categories)}")
        if UNSAFE in self.categories:
            raise ValueError(f"a category named {UNSAFE!r} would be taken for the rule of that name; rename it")
        harms = [name for name in self.categories if name != SAFE]
        if self.model is not None and not (isinstance(self.model, str) and self.model):
            raise ValueError(f"model must be the fingerprint of weights, or null, got {self.model!r}")
        _refuse_unknown("mode", [self.mode], MODES)
        if _number("temperature", self.temperature) <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature!r}")
        for name in ("category_thresholds", "actions", "severity", "clip"):
            _refuse_no_dict(name, getattr(self, name))
        _refuse_unknown("category_thresholds", self.category_thresholds, harms)
        _refuse_unknown("actions", self.actions, [UNSAFE, *harms])
        _refuse_unknown("actions", self.actions.values(), ACTIONS)
        actions = {UNSAFE: "flag", **self.actions}
        for name in harms:  # an action that nothing would ever take, or a rule that would never fire
            if actions.get(name, "allow") != "allow" and name not in self.category_thresholds:
                raise ValueError(
                    f"actions: {name!r} has the action {actions[name]!r}, but no rule that could take it: give it one "
                    "of category_thresholds, or leave the action out"
                )
            if name in self.category_thresholds and name not in actions and actions[UNSAFE] == "allow":
                raise ValueError(
                    f"actions: {name!r} has a threshold and would take 'allow' of {UNSAFE!r}: give it one"
                )
        groups = self.groups
        if groups is None:
            is_holisafe = [*self.categories] == [*HOLISAFE_CATEGORIES]
            groups = {group: [*names] for group, names in GROUPS.items() if group != SAFE} if is_holisafe else {}
        _refuse_no_dict("groups", groups)
        for group, names in groups.items():
            if not isinstance(group, str) or not isinstance(names, (list, tuple)) or not names:
                raise ValueError(f"groups: {group!r} must be a name with a list of categories, got {names!r}")
            _refuse_unknown(f"groups: {group!r}", names, harms)
            if len({*names}) < len(names):
                raise ValueError(f"groups: {group!r} names a category twice, and would count it twice: {names}")
        _refuse_unknown("severity", self.severity, LEVELS)
        if missing := [level for level in LEVELS if level not in self.severity]:
            raise ValueError(f"severity must give all of {', '.join(LEVELS)}; {', '.join(missing)} is missing")
        severity = {level: _probability(f"severity {level!r}", self.severity[level]) for level in LEVELS}
        if not severity["low"] < severity["medium"] < severity["high"]:
            raise ValueError(f"severity must rise from low to medium to high, got {severity}")
        _refuse_unknown("clip", self.clip, CLIP)
        for name in CLIP:
            value = self.clip.get(name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"clip {name!r} must be a whole number from 1, got {value!r}")
        if self.clip["at_least"] > self.clip["of"]:
            raise ValueError(f"clip: at_least {self.clip['at_least']} of {self.clip['of']} frames can never be")
        if self.fitted is not None:
            _refuse_no_dict("fitted", self.fitted)
        thresholds = {name: _probability(name, value) for name, value in self.category_thresholds.items()}
        for name, value in {
            "categories": [*self.categories],
            "temperature": float(self.temperature),
            "unsafe_threshold": _probability("unsafe_threshold", self.unsafe_threshold),
            "category_thresholds": thresholds,
            "actions": actions,
            "groups": {group: [*names] for group, names in groups.items()},
            "severity": severity,
            "clip": {name: self.clip[name] for name in CLIP},
        }.items():
            object.__setattr__(self, name, value)

    # ----------------------------------------------------------------------------------------------------------- files

    @classmethod
    def load(cls, path, categories=None, fingerprint=None):
        """
        Returns the policy in a file.

        Args:
            path (`str` or `os.PathLike`): of a `safety_policy.json`, or of the folder that holds it.
            categories (`list[str]`, *optional*), fingerprint (`str`, *optional*): of the model that it is for.

        Raises:
            ValueError: if the file is no policy, as [`SafetyPolicy`] does, and as `check`.
            OSError: if it cannot be read.
        """
        path = Path(path)
        path = path / POLICY_FILE if path.is_dir() else path
        try:
            found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_doubles)
            _refuse_no_dict("it", found)
            _refuse_unknown("a policy", found, [entry.name for entry in fields(cls)])
            if missing := [name for name in ("version", "categories") if name not in found]:
                raise ValueError(f"it lacks {' and '.join(missing)}")
            policy = cls(**found)
            policy.check(categories, fingerprint)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"there is no policy {path}") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no policy: it is not whole JSON ({error})") from error
        except ValueError as error:
            raise ValueError(f"{path} is no policy for this: {error}") from error
        return policy

    def save(self, path):
        """Writes the policy to a file, or as `safety_policy.json` into a folder, and returns its `Path`."""
        path = Path(path)
        path = path / POLICY_FILE if path.is_dir() else path
        write_json(path, self.to_dict())
        return path

    def to_dict(self):
        """Returns what `save` writes (`dict`), the version first."""
        settings = asdict(self)
        return {"version": settings.pop("version"), **settings}

    def check(self, categories=None, fingerprint=None):
        """Raises a `ValueError` if the policy is for other categories or weights than these, where they are given."""
        if categories is not None and [*categories] != self.categories:
            ours, theirs = ([*names] for names in (self.categories, categories))
            differ = [f"the policy has {name!r}, the model has not" for name in ours if name not in theirs]
            differ += [f"the model has {name!r}, the policy has not" for name in theirs if name not in ours]
            differ = differ or [
                f"column {i} is {a!r} in the policy and {b!r} in the model"
                for i, (a, b) in enumerate(zip(ours, theirs))
                if a != b
            ]
            raise ValueError(f"the policy is for another taxonomy: {'; '.join(differ)}")
        if None not in (fingerprint, self.model) and fingerprint != self.model:
            raise ValueError(
                f"the policy was fitted to the weights {self.model[:12]}..., but these are {fingerprint[:12]}...: fit "
                "one to these with safeqwen calibrate (a folder with this one is not loaded: move it out first), "
                "or set its model to null if you know that it holds for them"
            )

    @property
    def allowed(self):
        """The categories (`list[str]`) that are no reason to do anything."""
        return [name for name in self.categories if self.actions.get(name) == "allow"]

    def was_fitted_to(self, pictures_sha256):
        """Returns whether it was fitted to rows of the pictures with this digest (`bool`): they flatter it then."""
        return pictures_sha256 in json.dumps(self.fitted)  # wherever the record names them: it has no fixed form

    # -------------------------------------------------------------------------------------------------------- deciding

    def calibrated(self, probs):
        """
        `(..., categories)` probabilities -> calibrated ones of the same shape (`np.ndarray`, float64).

        Raises:
            ValueError: if the last axis is not one entry a category, a number is not finite or not in [0, 1], or the
                numbers of a view do not add up to 1.
        """
        return self._scores(probs)[0]

    def unsafe_score(self, probs):
        """
        `(..., categories)` probabilities -> `(...)` scores (`np.ndarray`) of the rule "unsafe", in [0, 1]: the
        calibrated probability of all harms that are not allowed.

        Raises:
            ValueError: as `calibrated`.
        """
        return self._scores(probs)[2]

    def decide(self, probs, frames=None):
        """
        Returns the [`Decision`] on one picture or clip.

        Each view is decided by itself: of the rules that fire, the strictest action counts. A frame is decided as the
        worse of its views. If a clip needs k frames, it is decided as its k-th worst frame. Worse is the stricter
        action, and of equal ones the higher score of the rule "unsafe".

        Args:
            probs (tensor, array or list of shape `(views, categories)` or `(categories,)`): the model's own
                probabilities, not calibrated.
            frames (`list[int]`, *optional*): the number of the frame that each view shows, as
                [`safeqwen.pictures.frame_numbers`] gives it. May be left out where it does not matter: for one view,
                or if one frame is enough.

        Raises:
            ValueError: as `calibrated`; if there is no view, or `frames` does not fit or is needed.
            TypeError: if `frames` are not whole numbers.
        """
        probs = np.atleast_2d(_as_array(probs))
        if probs.ndim != 2 or not len(probs):
            raise ValueError(f"probs must be of shape (views, categories) with a view or more, got {probs.shape}")
        calibrated, unsafe, scores = self._scores(probs)
        fired = [self._fired(*view) for view in zip(calibrated, scores)]
        strictness = [max((ACTIONS.index(reason.action) for reason in reasons), default=0) for reasons in fired]

        worst = {}  # frame -> its worse view
        badness = [*zip(strictness, scores)]
        for view, frame in enumerate(self._frames(frames, len(probs))):
            worst[frame] = max(worst.get(frame, view), view, key=badness.__getitem__)
        ranked = sorted(worst.values(), key=badness.__getitem__, reverse=True)
        needed = self._num_frames_needed(len(ranked))
        view = ranked[needed - 1]

        would_action = ACTIONS[strictness[view]]
        action = would_action if self.mode == "enforce" else "allow"
        flagged = action != "allow"
        categories = {reason.category for reason in fired[view] if flagged}
        by_name = dict(zip(self.categories, calibrated[view].tolist()))
        return Decision(
            action=action,
            flagged=flagged,
            would_action=would_action,
            reason=fired[view][0] if fired[view] else None,
            fired=tuple(fired[view]),
            severity=next((level for level in LEVELS[::-1] if scores[view] >= self.severity[level]), "none"),
            scores=by_name,
            unsafe=float(unsafe[view]),
            score=float(scores[view]),
            groups={
                group: {"score": sum(by_name[name] for name in names), "flagged": not categories.isdisjoint(names)}
                for group, names in self.groups.items()
            },
            num_frames=len(ranked),
            num_frames_fired=sum(strictness[view] > 0 for view in ranked),
            num_frames_needed=needed,
        )

    @property
    def safety_threshold(self):
        """
        The threshold (`float`) for `generate(safety_threshold=...)`: it stops what the rule "unsafe" fires for.

        `generate` knows raw probabilities, so this is sigmoid(temperature * logit(unsafe_threshold)): more exactly,
        the smallest float32, as `generate` compares them, for which the rule fires.

        Raises:
            ValueError: if the rule does not say the same: a category is allowed, which `generate` would stop, or the
                rule "unsafe" is; or the policy is in shadow mode, and must stop nothing.
        """
        reason = None
        if self.mode == "shadow":
            reason = "it is in shadow mode, which stops nothing"
        elif allowed := [name for name, action in self.actions.items() if action == "allow"]:
            reason = f"it allows {', '.join(allowed)}, and generate counts every harm"
        if reason is not None:
            raise ValueError(f"this policy has no threshold for generate: {reason}; decide on its verdict instead")
        low, high = 0, int(np.float32(1).view(np.uint32))  # the bits of floats in [0, 1] rise as these do
        while low < high:
            middle = (low + high) // 2
            fires = self._calibrated_unsafe(np.uint32(middle).view(np.float32)) >= self.unsafe_threshold
            low, high = (low, middle) if fires else (middle + 1, high)
        return float(np.uint32(low).view(np.float32))

    def _scores(self, probs):
        """Calibrated `(..., categories)`, and `(...)` of unsafe with allowed harms and without them; all float64."""
        probs = _as_array(probs)
        if probs.ndim == 0 or probs.shape[-1] != len(self.categories):
            raise ValueError(
                f"probs must hold one entry for each of {len(self.categories)} categories, got the shape {probs.shape}"
            )
        if not np.isfinite(probs).all():
            raise ValueError("probs hold a number that is not finite, and that is no verdict")
        if ((probs < 0) | (probs > 1)).any() or (abs(probs.sum(axis=-1) - 1) > SUM_TOLERANCE).any():
            raise ValueError("probs must be probabilities that add up to 1 for each view; are they logits?")
        # In float32 as the model gives them: `generate` compares this number, and so must the rule.
        raw = unsafe_probability(probs.astype(np.float32), self.categories)
        unsafe = self._calibrated_unsafe(raw)
        if self.temperature != 1:
            safe = self.categories.index(SAFE)
            total = probs.sum(axis=-1, keepdims=True) - probs[..., safe, None]
            probs = np.divide(probs, total, out=np.zeros_like(probs), where=total > 0) * unsafe[..., None]
            probs[..., safe] = 1 - unsafe
        allowed = [self.categories.index(name) for name in self.allowed]
        return probs, unsafe, np.maximum(unsafe - probs[..., allowed].sum(axis=-1), 0)

    def _calibrated_unsafe(self, raw):
        """float32 unsafe probabilities -> calibrated ones, float64: sigmoid(logit(u) / temperature)."""
        raw = np.asarray(raw, dtype=np.float64)
        if self.temperature == 1:
            return raw
        with np.errstate(divide="ignore", over="ignore"):  # the log-odds of 0 and 1 are infinite
            return 1 / (1 + np.exp(-(np.log(raw) - np.log1p(-raw)) / self.temperature))

    def _fired(self, calibrated, score):
        """The [`Reason`]s of one view, the deciding one first: the strictest, a category's before "unsafe"'s."""
        reasons = []
        for name, threshold in self.category_thresholds.items():
            action = self.actions.get(name, self.actions[UNSAFE])
            probability = float(calibrated[self.categories.index(name)])
            if action != "allow" and probability >= threshold:
                reasons.append(Reason("category", name, probability, threshold, action))
        reasons.sort(key=lambda reason: reason.score, reverse=True)
        by_name = zip(self.categories, calibrated)
        counted = {name: p for name, p in by_name if name != SAFE and self.actions.get(name) != "allow"}
        if counted and self.actions[UNSAFE] != "allow" and score >= self.unsafe_threshold:
            likeliest = max(counted, key=counted.get)
            reasons.append(Reason(UNSAFE, likeliest, float(score), self.unsafe_threshold, self.actions[UNSAFE]))
        return sorted(reasons, key=lambda reason: ACTIONS.index(reason.action), reverse=True)

    def _num_frames_needed(self, num_frames):
        return max(1, -(-num_frames * self.clip["at_least"] // self.clip["of"]))  # rounded up, in whole numbers

    def _frames(self, frames, num_views):
        """The number of each view's frame."""
        if frames is None:
            if self._num_frames_needed(num_views) > 1:
                raise ValueError(
                    f"frames is needed: this policy counts frames, and a frame may be among the {num_views} views "
                    "twice, on white and on black paper; safeqwen.pictures.frame_numbers tells, or range(n) if not"
                )
            return range(num_views)
        frames = [index(frame) for frame in frames]  # a tensor's elements are all different keys
        if len(frames) != num_views:
            raise ValueError(f"frames must give a number for each of the {num_views} views, got {len(frames)}")
        return frames


def _as_array(probs):
    """A tensor, array or list as float64."""
    if hasattr(probs, "detach"):
        probs = probs.detach().cpu().float().numpy()  # NumPy knows no bfloat16
    return np.asarray(probs, dtype=np.float64)


def _without_doubles(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found


def _refuse_no_dict(name, value):
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object of names and values, got {value!r}")


def _refuse_unknown(what, names, known):
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name).lower(), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
            raise ValueError(f"{what}: there is no {name!r}; {hint}")


def _number(name, value):
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def _probability(name, value):
    if not 0 <= _number(name, value) <= 1:
        raise ValueError(f"{name} must be a probability in [0, 1], got {value!r}")
    return float(value)
