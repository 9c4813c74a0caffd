"""Prompts for a SafeQwen: the chat format around pictures, with typed text that stays text."""

from functools import partial


def plain_text(text, tokenizer):
    """Returns text that cannot be mistaken for the chat format: its special tokens are broken up by a space.

    A typed `<|image_pad|>` becomes `< |image_pad|>`. It neither adds to the tokens that the guard pools, nor breaks
    the prompt; and a typed `<|im_end|>` does not end the turn.

    Args:
        text (`str`): what a person wrote.
        tokenizer: of the model; all its added tokens count.
    """
    for token in sorted(tokenizer.get_added_vocab(), key=len, reverse=True):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def chat_prompt(processor, num_images, text="", add_generation_prompt=False):
    """Returns the prompt (`str`) of one user turn: `num_images` pictures, then what the user wrote.

    Args:
        processor: of the model, with a chat template.
        num_images (`int`): pictures, each one `<|image_pad|>` that the processor will widen.
        text (`str`, *optional*): what the user wrote, as plain text.
        add_generation_prompt (`bool`, *optional*, defaults to `False`): end where the answer begins.
    """
    content = [{"type": "image"}] * num_images
    if text:
        content.append({"type": "text", "text": plain_text(text, processor.tokenizer)})
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=add_generation_prompt
    )


def prompt_ids(processor):
    """Returns the token ids of the chat prompt around one picture without text, for `config.safety_prompt_ids`.

    `{"before": [151644, 8948, ...], "after": [151653, ...]}`; the picture's placeholders stand between them.
    """
    before, after = chat_prompt(processor, num_images=1).split(processor.image_token)
    tokenize = partial(processor.tokenizer, add_special_tokens=False)
    return {"before": tokenize(before)["input_ids"], "after": tokenize(after)["input_ids"]}
