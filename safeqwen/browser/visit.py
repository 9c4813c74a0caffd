"""What a visitor has: pictures with their verdicts, heat maps, a conversation. The model is used by one at a time."""

import contextlib
import threading
from collections import OrderedDict

from safeqwen.browser.conversation import Turn, stream_answer
from safeqwen.judging.pipeline import SafetyPipeline
from safeqwen.judging.verdict import NO_PICTURE, Verdict
from safeqwen.pictures import UnreadableImage
from safeqwen.pictures.fetch import fetch
from safeqwen.pictures.source import MAX_BYTES


MAX_PICTURES = 8  # of one visitor at a time
MAX_MAPS = 32  # of one visitor that are kept
MAX_QUESTION = 4000  # characters
LINK_TIMEOUT_S = 10.0
STOPPED = "There is no answer: a picture is flagged, and \u201cNo answer about flagged pictures\u201d is on."


class Visit:
    """
    One visitor's state; nobody else sees it.

    Attributes:
        verdicts (`list[Verdict]`): on the pictures at hand, in their order.
        num_asked (`int`): how many of them, from the first, a question was asked about.
        turns (`list[Turn]`): of the conversation.
        maps (`OrderedDict`): (verdict, category) -> [`Heatmap`], or why there is none (`str`).
    """

    def __init__(self):  # no dataclass, which Gradio would take apart
        self.verdicts, self.num_asked, self.turns, self.maps = [], 0, [], OrderedDict()

    def start_over(self):
        """Forgets all, in place: whoever still judges or answers holds this same visit, and sees that it is over."""
        self.__init__()

    def make_room(self):
        """Drops the pictures that nothing was asked about: new ones take their place."""
        del self.verdicts[self.num_asked :]
        self.maps.clear()


class Judge:
    """
    Judges, explains and answers for all visitors, one at a time.

    Args:
        model ([`SafeQwen2_5_VLForConditionalGeneration`]), processor: as [`safeqwen.load`] returns them.
        max_new_tokens (`int`): of an answer.
    """

    def __init__(self, model, processor, max_new_tokens=256):
        self.pipeline = SafetyPipeline(model, processor)
        self.max_new_tokens = max_new_tokens
        self.lock = threading.Lock()

    @property
    def categories(self):
        return list(self.pipeline.model.config.safety_categories)

    def verdict(self, data, name):
        """Returns the [`Verdict`] on a picture file's `bytes`; one with an `error` if it cannot be judged.

        `None` for the bytes is a file that was gone when its turn came.
        """
        if data is None:
            return self.refused(name, f"{name}: the same file was sent twice at the same time; send it again")
        with self.lock:
            (verdict,) = self.pipeline.verdicts([{"bytes": data, "path": name}])
        return verdict

    def linked(self, link):
        """Returns the [`Verdict`] on the picture at an http(s) URL; private networks and all else are refused."""
        link = link.strip()
        try:
            if not link.lower().startswith(("http://", "https://")):
                raise UnreadableImage(f"{link[:80]}: is no link; it must begin with https:// or http://")
            data, name = fetch(link, LINK_TIMEOUT_S, MAX_BYTES, private_networks=False)
        except UnreadableImage as error:
            return self.refused(link, str(error))
        return self.verdict(data, name)

    def refused(self, name, reason):
        """Returns the [`Verdict`] (with an `error`) on what cannot be judged."""
        return Verdict(categories=self.categories, error=reason, name=name)

    def heatmap(self, visit, verdict, category):
        """Returns the [`Heatmap`] of a category, computed once a visitor and picture, or why there is none (`str`)."""
        key = (verdict, category)
        if key not in visit.maps:
            try:
                with self.lock:
                    visit.maps[key] = verdict.heatmap(category)
            except (ValueError, RuntimeError, ArithmeticError, MemoryError, OSError) as error:
                visit.maps[key] = str(error)
            while len(visit.maps) > MAX_MAPS:
                visit.maps.popitem(last=False)
        return visit.maps[key]

    def ask(self, visit, question, stop_if_flagged):
        """
        Adds a turn to the conversation and yields as its answer grows; the verdicts stand before the first yield.

        An answer is refused, before the model has seen the question, if `stop_if_flagged` and a picture of the
        conversation is flagged, or if the question is longer than `MAX_QUESTION`. It ends early if the visit starts
        over.
        """
        turn = Turn(question[:MAX_QUESTION], visit.verdicts[visit.num_asked :])
        visit.num_asked = len(visit.verdicts)
        visit.turns.append(turn)
        judged = [verdict for turn in visit.turns for verdict in turn.judged]
        if not judged:
            turn.note = f"{NO_PICTURE[0].upper()}{NO_PICTURE[1:]}."
        refusal = None
        if stop_if_flagged and any(verdict.flagged for verdict in judged):
            refusal = STOPPED
        elif len(question) > MAX_QUESTION:
            refusal = f"There is no answer: a question has at most {MAX_QUESTION} characters, not {len(question)}."
        if refusal:
            turn.note, turn.is_refused = refusal, True
            yield turn
            return
        yield turn
        try:
            with self.lock:
                answers = stream_answer(self.pipeline.engine, visit.turns, self.max_new_tokens)
                with contextlib.closing(answers):  # a visitor who leaves stops the model
                    for turn.answer in answers:
                        if turn not in visit.turns:
                            return
                        yield turn
        except (ValueError, RuntimeError, MemoryError) as error:
            turn.note = f"The answer has failed: {error}"
            yield turn
        if not turn.answer and not turn.note:
            turn.note = "The model has nothing to say to this."
            yield turn
