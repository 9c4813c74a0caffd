"""What a policy decided about one picture: named fields, a machine-readable reason, and OpenAI's moderation object."""

from dataclasses import asdict, dataclass

from safeqwen.data.taxonomy import title_of
from safeqwen.hub.configuration_safeqwen import HOLISAFE_CATEGORIES
from safeqwen.judging.verdict import SAFE


ACTIONS = ("allow", "flag", "block")  # from the mildest to the strictest
LEVELS = ("low", "medium", "high")  # of severity; below the first it is "none"
UNSAFE = "unsafe"  # the name of the rule for the picture as a whole

# The categories of omni-moderation, and which of HoliSafe's are theirs by the definitions in OpenAI's API reference.
# Those without a member are of words (threats, intent, instructions) or finer than our categories (minors, graphic).
# facial_data_exposure, identity_data_exposure, financial_advice and medical_advice have no counterpart there.
OPENAI = {
    "harassment": ("harassment", "obscene_gestures"),
    "harassment/threatening": (),
    "hate": ("gender_discrimination", "race_discrimination", "religion_discrimination", "disability_discrimination"),
    "hate/threatening": (),
    "illicit": ("drug_related_hazards", "property_crime"),
    "illicit/violent": (),
    "self-harm": ("physical_self_injury", "suicide"),
    "self-harm/intent": (),
    "self-harm/instructions": (),
    "sexual": ("sexual_content",),
    "sexual/minors": (),
    "violence": ("animal_abuse", "physical_altercation", "terrorism", "weapon_related_violence"),
    "violence/graphic": (),
}


@dataclass(frozen=True)
class Reason:
    """
    A rule that fired.

    Args:
        rule (`str`): "unsafe" for the picture as a whole, "category" for one category.
        category (`str`): the category of the rule; for "unsafe" the likeliest harm that is not allowed.
        score (`float`): the calibrated probability that reached the threshold.
        threshold (`float`): of the rule.
        action (`str`): "flag" or "block", what the rule asks for.
    """

    rule: str
    category: str
    score: float
    threshold: float
    action: str


@dataclass(frozen=True)
class Decision:
    """
    What [`SafetyPolicy.decide`] decided.

    Args:
        action (`str`): "allow", "flag" or "block": what to do. In shadow mode always "allow".
        flagged (`bool`): whether `action` is not "allow".
        would_action (`str`): what `action` would be if the policy were enforced.
        reason ([`Reason`], *optional*): the rule that decided; `None` if none fired.
        fired (`tuple[Reason]`): all rules that fired on the view that decided, the deciding one first.
        severity (`str`): "none", "low", "medium" or "high", by the probability of the harms that are not allowed.
        scores (`dict[str, float]`): category -> calibrated probability, of the view that decided.
        unsafe (`float`): calibrated probability in [0, 1] that this view is unsafe, allowed harms included.
        score (`float`): that of the harms that are not allowed: what the rule "unsafe" and severity go by.
        groups (`dict[str, dict]`): group -> `{"score": float, "flagged": bool}`: the sum of its categories' scores
            (they exclude one another), and whether a rule with one of them fired and is enforced.
        num_frames, num_frames_fired, num_frames_needed (`int`): frames that were judged, on which any rule fired, and
            on which one must fire.
    """

    action: str
    flagged: bool
    would_action: str
    reason: Reason | None
    fired: tuple
    severity: str
    scores: dict
    unsafe: float
    score: float
    groups: dict
    num_frames: int
    num_frames_fired: int
    num_frames_needed: int

    def to_dict(self):
        """Returns the fields (`dict`) in types that JSON gives back unchanged."""
        fields = asdict(self)
        return {**fields, "fired": list(fields["fired"])}

    def to_moderation(self, names="categories"):
        """
        Returns one result (`dict`) of OpenAI's moderation object: `flagged`, `categories` (name -> `bool`),
        `category_scores` (name -> `float`), `category_applied_input_types` (name -> `["image"]`).

        A category is flagged if its own rule fired, or the rule "unsafe" with it as the likeliest harm. In shadow mode
        nothing is flagged.

        Args:
            names (`str`): "categories" for the model's harms, "groups" for the policy's groups, or "openai" for the
                thirteen of omni-moderation. There a score is the sum of its categories' (`OPENAI` in this module);
                names without a category have the score 0 and no input type, as OpenAI gives for a picture where it
                reads text only. A harm without counterpart sets `flagged` alone.

        Raises:
            ValueError: on other names; on "openai" if a category is none of HoliSafe's.
        """
        flagged = {reason.category for reason in self.fired if self.flagged}
        harms = {name: score for name, score in self.scores.items() if name != SAFE}
        if names == "categories":
            results = {name: (score, name in flagged) for name, score in harms.items()}
        elif names == "groups":
            results = {name: (group["score"], group["flagged"]) for name, group in self.groups.items()}
        elif names == "openai":
            if foreign := [name for name in harms if name not in HOLISAFE_CATEGORIES]:
                raise ValueError(
                    f"OpenAI's names are known for HoliSafe's categories only, and {', '.join(foreign)} are not among "
                    "those: use 'categories', or 'groups' and name the policy's groups as you need"
                )
            results = {
                name: (sum((harms.get(member, 0.0) for member in members), 0.0), not flagged.isdisjoint(members))
                for name, members in OPENAI.items()
            }
        else:
            raise ValueError(f"names must be 'categories', 'groups' or 'openai', got {names!r}")
        unread = {name for name, members in OPENAI.items() if not members} if names == "openai" else ()
        return {
            "flagged": self.flagged,
            "categories": {name: is_flagged for name, (_, is_flagged) in results.items()},
            "category_scores": {name: score for name, (score, _) in results.items()},
            "category_applied_input_types": {name: [] if name in unread else ["image"] for name in results},
        }

    def in_words(self):
        """Returns the decision as a line for people (`str`), e.g. "flag: unsafe 98.2 % >= 50 % (severity high)"."""
        action = self.would_action
        if self.action != self.would_action:
            action = f"shadow: would {action}"
        if self.reason is None:
            counted = f"unsafe {_percent(self.score)}"
            if self.score < self.unsafe:
                counted = f"{counted} of {_percent(self.unsafe)}, the rest is allowed"
            words = f"{action}: no rule fired, {counted} (severity {self.severity})"
        else:
            title = title_of(self.reason.category)
            what, likeliest = (UNSAFE, f", most likely {title}") if self.reason.rule == UNSAFE else (title, "")
            bound = f"{_percent(self.reason.score)} >= {100 * self.reason.threshold:.4g} %"
            words = f"{action}: {what} {bound}{likeliest} (severity {self.severity})"
        if self.num_frames > 1 and self.num_frames_fired:
            fired = f"{self.num_frames_fired} of {self.num_frames} frames"
            words += f"; a rule fired on {fired}, {self.num_frames_needed} needed"
        return words


def _percent(score):
    return f"{100 * score:.1f} %"
