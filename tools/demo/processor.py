"""The demo's processor: Qwen2.5-VL's own around a small tokenizer, with its special tokens and its format of chats."""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import processors as post_processors
from transformers import Qwen2_5_VLProcessor, Qwen2TokenizerFast, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from tools.demo.draw_dataset import ANSWERS, PAIR_ANSWERS, SYSTEM_PROMPTS, TAXONOMIES, with_article
from tools.demo.scenes import SEEN_PIXELS


# Qwen2.5's own, in its order. Decoding with skip_special_tokens drops the first list and keeps the second.
SPECIAL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
ADDED_TOKENS = [
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>",
]  # fmt: skip
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The format of Qwen2.5-VL's chats.
CHAT_TEMPLATE = """\
{%- set pictures = namespace(images=0, videos=0) -%}
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
{%- set pictures.images = pictures.images + 1 -%}
{%- if add_vision_id -%}{{- 'Picture ' ~ pictures.images ~ ': ' -}}{%- endif -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' or 'video' in part -%}
{%- set pictures.videos = pictures.videos + 1 -%}
{%- if add_vision_id -%}{{- 'Video ' ~ pictures.videos ~ ': ' -}}{%- endif -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

SYSTEM_TURNS = (
    f"<|im_start|>system\n{SYSTEM_PROMPTS[0]}<|im_end|>\n",
    "",
    f"<|im_start|>system\n{SYSTEM_PROMPTS[1]}<|im_end|>\n",
)


def build_processor(num_pixels=SEEN_PIXELS):
    """Returns Qwen2.5-VL's processor around a byte-level BPE that has seen the demo's texts and nothing else.

    Args:
        num_pixels (`int`): to which it enlarges or reduces any picture, roughly.
    """
    subjects = [with_article(name) for name in TAXONOMIES["holisafe"].pictograms["safe"]]
    texts = [
        *SYSTEM_TURNS,
        *ANSWERS,
        *PAIR_ANSWERS,
        "user assistant system Picture 1: Video 2: this image? the picture.",
    ]
    texts += [
        helpful.format(words) for helpful, _ in [*ANSWERS.values(), *PAIR_ANSWERS.values()] for words in subjects
    ]
    texts += [
        refusal.format(t)
        for _, refusal in [*ANSWERS.values(), *PAIR_ANSWERS.values()]
        for t in TAXONOMIES["holisafe"].titles.values()
    ]

    split = [
        pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(split)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = post_processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        [text.replace("<|im_start|>", "").replace("<|im_end|>", "") for text in texts],
        trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False),
    )
    bpe.add_special_tokens(SPECIAL_TOKENS)
    bpe.add_tokens(ADDED_TOKENS)
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=bpe,
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL_TOKENS[1:],
        model_max_length=2048,
    )
    # Some room around it: the library's rounding would make 196 x 196 of a square of 300, if it were 224 x 224.
    pixels = {"shortest_edge": num_pixels - 500, "longest_edge": num_pixels + 500}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels, patch_size=14, merge_size=2, temporal_patch_size=2),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=pixels, patch_size=14, merge_size=2, temporal_patch_size=2),
        chat_template=CHAT_TEMPLATE,
    )
