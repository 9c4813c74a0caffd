"""An answer, piece by piece, to the last question of a conversation about pictures.

All turns and all their pictures go through the model each time, without a kept cache. Nothing is judged here: each
picture has its verdict already, from a pass of its own, which no other picture or word can move.
"""

import threading
from dataclasses import dataclass, field

from transformers import TextIteratorStreamer

from safeqwen.pictures import read_bytes
from safeqwen.prompt import plain_text


@dataclass(eq=False)
class Turn:
    """
    A question and its answer.

    Args:
        question (`str`): as typed.
        verdicts (`list[Verdict]`): on the pictures that came with it; those that could be read are in the prompt.
        answer (`str`): as far as there is one.
        note (`str`): why there is no answer, or that nothing was judged.
        is_refused (`bool`): whether the model is not asked.
    """

    question: str
    verdicts: list = field(default_factory=list)
    answer: str = ""
    note: str = ""
    is_refused: bool = False

    @property
    def judged(self):
        return [verdict for verdict in self.verdicts if verdict.error is None]


def stream_answer(engine, turns, max_new_tokens):
    """
    Yields the answer (`str`) to the last of the turns, each time as far as it goes.

    Whoever stops listening (closes the generator) stops the model at its next token.

    Args:
        engine ([`Engine`])
        turns (`list[Turn]`): turns before the last without an answer are left out, but for their pictures.
        max_new_tokens (`int`)

    Raises:
        Exception: what the model raised.
    """
    processor, messages, frames, waiting = engine.processor, [], [], []
    for turn in turns:
        waiting += [view for verdict in turn.judged for view in read_bytes(verdict.image["bytes"], name=verdict.name)]
        if not turn.answer and turn is not turns[-1]:
            continue
        content = [{"type": "image"} for _ in waiting]
        content.append({"type": "text", "text": plain_text(turn.question, processor.tokenizer)})
        messages.append({"role": "user", "content": content})
        frames, waiting = frames + waiting, []
        if turn is not turns[-1]:
            text = plain_text(turn.answer, processor.tokenizer)
            messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[prompt], images=frames or None, return_tensors="pt")

    pieces = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    stopped, errors = threading.Event(), []

    def generate():
        try:
            engine.model.generate(
                **engine.place(inputs),
                streamer=pieces,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                stopping_criteria=[lambda ids, scores, **kwargs: stopped.is_set()],
            )
        except Exception as error:  # raised again where somebody listens
            errors.append(error)
            pieces.on_finalized_text("", stream_end=True)

    thread = threading.Thread(target=generate, daemon=True)
    thread.start()
    text = ""
    try:
        for piece in pieces:
            if piece:
                text += piece
                yield text
    finally:
        stopped.set()
        thread.join()
    if errors:
        raise errors[0]
