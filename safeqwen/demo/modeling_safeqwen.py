"""
SafeQwen2.5-VL: Qwen2.5-VL with a Visual Guard Module (arXiv 2506.04704), which maps the mean of the last hidden states
over a prompt's picture tokens to one logit per safety category. Tokens and text logits stay the base model's.

Read `forward` first. `guard_safeqwen` has the guard and when it may judge, `compat_safeqwen` facts about transformers.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor, LogitsProcessorList, Qwen2_5_VLForConditionalGeneration
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple, logging


from .compat_safeqwen import CACHE, TAKES_ENCODED_PICTURES, TAKES_TOKEN_TYPES, StockOutput, check_loaded  # isort: skip
from .compat_safeqwen import check_tensors, current_name, register_renames, spare_guard  # isort: skip
from .configuration_safeqwen import SafeQwen2_5_VLConfig, check_categories
from .guard_safeqwen import DIGEST, GUARD, IGNORED, SafetyHead, arrange, check_labels, pool
from .pictures_safeqwen import find_pictures, find_token_types


logger = logging.get_logger(__name__)
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
GRANULARITIES = ("prompt", "image", "patch")
PICTURE_INPUTS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")


@dataclass
class SafeQwen2_5_VLVerdict(ModelOutput):
    """A verdict: float32 scores, and their softmax, of the shapes that `guard` documents; `None` without a picture."""

    img_safety_logits: torch.FloatTensor | list[torch.FloatTensor] | None = None
    img_safety_probs: torch.FloatTensor | list[torch.FloatTensor] | None = None

    @classmethod
    def of(cls, logits):
        is_list = isinstance(logits, list)
        return cls(logits, [part.softmax(dim=-1) for part in logits] if is_list else logits.softmax(dim=-1))


@dataclass
class SafeQwen2_5_VLCausalLMOutputWithPast(SafeQwen2_5_VLVerdict, StockOutput):
    """
    What Qwen2.5-VL's forward returns, and the verdict. `loss` is the LM loss + `safety_loss_lambda` * `safety_loss`;
    `safety_loss`, of shape `()`, is the cross-entropy averaged over all labels that are not -100, 0 if there are none;
    `picture_safety_logits`, of shape `(num_pictures, num_safety_categories)`, has the order of `picture_categories`.
    """

    rope_deltas: torch.LongTensor | None = None  # the backbone's, on some versions
    safety_loss: torch.FloatTensor | None = None
    picture_safety_logits: torch.FloatTensor | None = None


@dataclass
class SafeQwen2_5_VLGenerateOutput(SafeQwen2_5_VLVerdict, GenerateDecoderOnlyOutput):
    """What `generate` returns with the prefill's verdict, whatever the beams or returned sequences."""

    safety_flagged: torch.BoolTensor | None = None  # (batch_size,): stopped after the prefill by `safety_threshold`


@dataclass
class SafeQwen2_5_VLGenerateBeamOutput(SafeQwen2_5_VLGenerateOutput, GenerateBeamDecoderOnlyOutput):
    """The same, from a beam search."""


class SafeQwen2_5_VLForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """
    Qwen2.5-VL with a guard over its pictures. Without `do_safety` it is `Qwen2_5_VLForConditionalGeneration` to the
    bit; on 5.x it also places the pictures of inputs without `mm_token_type_ids`, which the library takes for text.
    """

    config_class = SafeQwen2_5_VLConfig
    _auto_class = "AutoModelForImageTextToText"  # makes save_pretrained copy the code files and write the auto_map
    _no_split_modules = [*(Qwen2_5_VLForConditionalGeneration._no_split_modules or ()), "SafetyHead"]
    _keys_to_ignore_on_load_missing = [rf"{GUARD}\.{DIGEST}"]  # released guards have none

    def __init__(self, config):
        register_renames(type(self))
        super().__init__(config)
        self.img_safety_head = SafetyHead(config)
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, SafetyHead):  # 5.x leaves garbage in a buffer that the checkpoint lacks
            torch.nn.init.zeros_(module.categories_digest)

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        labels=None, use_cache=None, pixel_values=None, pixel_values_videos=None, image_grid_thw=None,
        video_grid_thw=None, mm_token_type_ids=None, second_per_grid_ts=None, logits_to_keep=0, cache=None,
        mm_encoder_outputs=None, do_safety=False, granularity="prompt", safety_labels=None, picture_categories=None,
        **kwargs,
    ):  # fmt: skip
        """
        Qwen2.5-VL's forward, with a verdict on the prompt's pictures. Parameters that are not listed are Qwen2.5-VL's.

        Args:
            do_safety (`bool`): judge the pictures among `input_ids`.
            granularity (`str`): what one verdict of `do_safety` is about, as in `guard`.
            safety_labels (`torch.LongTensor` of shape `(batch_size,)`): category of each prompt in
                [0, num_safety_categories), or -100 for none. Adds the safety loss, and the verdict; an untrained guard
                gives logits alone, and in training mode only.
            picture_categories (`torch.LongTensor` of shape `(num_pictures,)`): beside them the category of each
                picture by itself, or -100. (Not "labels": Trainer would want those in every batch.)

        Raises:
            RuntimeError: on `do_safety` alone in training mode, or if `refusal` has a reason.
            FloatingPointError: outside of training, if the features or scores of a picture are not finite.
            ValueError: if pictures, placeholders, masks and labels do not fit together.
        """
        cache = past_key_values if cache is None else cache
        judge = do_safety or safety_labels is not None or picture_categories is not None
        if judge:
            self._check_request(input_ids, granularity, cache, safety_labels, picture_categories)
            pixels = (pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw)
            if TAKES_ENCODED_PICTURES and mm_encoder_outputs:  # of `generate`
                pixels = sum(len(part) for encoded in mm_encoder_outputs.values() for part in encoded.pooler_output)
            pictures = find_pictures(input_ids, attention_mask, pixels, self.config)
            check_labels(safety_labels, picture_categories, pictures, len(input_ids), self.config)
        if TAKES_TOKEN_TYPES:  # else the library silently gives the pictures the positions of text
            derives = input_ids is not None and not (pixel_values is None and pixel_values_videos is None)
            kwargs["mm_token_type_ids"] = find_token_types(input_ids, self.config) if derives else mm_token_type_ids
        kwargs |= {"mm_encoder_outputs": mm_encoder_outputs} if mm_encoder_outputs else {}
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds,
            pixel_values=pixel_values, pixel_values_videos=pixel_values_videos, image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw, second_per_grid_ts=second_per_grid_ts, use_cache=use_cache,
            return_dict=True, **{CACHE: cache}, **kwargs,
        )  # fmt: skip
        hidden_states = outputs.last_hidden_state  # (batch, sequence, hidden), after the last norm
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden_states[:, kept, :])

        loss, verdict, safety = None, {}, {}
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.text_config.vocab_size, **kwargs)
        if judge:
            scores = self._score(pool(hidden_states, pictures, granularity))  # (prompts with a picture, categories)
            ready = self.refusal() is None
            if pictures and (ready or self.training):
                verdict = SafeQwen2_5_VLVerdict.of(arrange(scores, pictures, len(input_ids), granularity))
                verdict["img_safety_probs"] = verdict.img_safety_probs if ready else None
        if safety_labels is not None:
            targets = safety_labels.to(scores.device).long()[sorted({picture.row for picture in pictures})]
            if picture_categories is not None:
                alone = self._score(pool(hidden_states, pictures, "image"))  # (pictures, categories)
                targets = torch.cat([targets, picture_categories.to(scores.device).long()])
                scores, safety["picture_safety_logits"] = torch.cat([scores, alone]), alone if verdict else None
            total = F.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="sum")
            safety["safety_loss"] = total / targets.ne(IGNORED).sum().clamp(min=1)  # without labels a zero, for DDP
            weighted = self.config.safety_loss_lambda * safety["safety_loss"]
            loss = weighted if loss is None else loss + weighted.to(loss.device)
        stock = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return SafeQwen2_5_VLCausalLMOutputWithPast(loss=loss, logits=logits, **stock, **verdict, **safety)

    @torch.no_grad()
    def guard(self, granularity="prompt", **inputs):
        """
        The verdict alone: no `lm_head`, no key-value cache, nothing after the last picture (attention is causal). It
        takes what the processor returns, returns a [`SafeQwen2_5_VLVerdict`], and raises what `forward` does.

        Args:
            granularity (`str`): what one verdict is about.
                - `"prompt"`: fields of shape `(batch_size, num_safety_categories)`, NaN for prompts without a picture.
                - `"image"`: `(num_pictures, num_safety_categories)`, each picture or video by itself, in their order.
                - `"patch"`: a list with one `(rows, columns, num_safety_categories)` map a picture, over its merged
                  patches; `(frames, rows, columns, num_safety_categories)` for a video.
        """
        self._check_request(inputs.get("input_ids"), granularity)
        hidden_states, pictures = self.picture_states(**inputs)
        if not pictures:
            return SafeQwen2_5_VLVerdict()
        scores = self._score(pool(hidden_states, pictures, granularity))
        return SafeQwen2_5_VLVerdict.of(arrange(scores, pictures, len(hidden_states), granularity))

    @torch.no_grad()
    def picture_states(self, input_ids, attention_mask=None, second_per_grid_ts=None, mm_token_type_ids=None, **given):
        """The last hidden states `(batch_size, length, hidden_size)` up to the last picture, and `list[Picture]`."""
        if unknown := given.keys() - {*PICTURE_INPUTS}:
            raise TypeError(f"expected what the processor returns, got {sorted(unknown)}: leave them out")
        pictures = find_pictures(input_ids, attention_mask, [*map(given.get, PICTURE_INPUTS)], self.config)
        rows, length = sorted({p.row for p in pictures}), max((p.start + p.size for p in pictures), default=0)
        if not pictures:
            return torch.zeros(len(input_ids), 0, self.config.text_config.hidden_size), pictures
        mask = None if attention_mask is None else attention_mask[rows, :length]
        prompt = {"input_ids": input_ids[rows, :length], "attention_mask": mask}
        if TAKES_TOKEN_TYPES:
            prompt["mm_token_type_ids"] = find_token_types(prompt["input_ids"], self.config)
        grids = {name: given.get(name) for name in PICTURE_INPUTS if name.endswith("grid_thw")}
        # Else the library keeps the positions on the module, where an answer in another thread needs its own.
        positions, _ = self.model.get_rope_index(second_per_grid_ts=second_per_grid_ts, **prompt, **grids)
        found = self.model(position_ids=positions, use_cache=False, return_dict=True, **prompt, **given)[0]
        states = found.new_zeros(len(input_ids), *found.shape[1:])  # prompts without a picture keep zeros
        states[rows] = found
        return states, pictures

    def generate(self, *args, do_safety=False, safety_threshold=None, granularity="prompt", **kwargs):
        """
        Qwen2.5-VL's generate, to the token, with the verdict of the same prefill that starts the answer.

        Args:
            do_safety (`bool`): return the verdict. It needs `return_dict_in_generate=True`, or a `streamer` with a
                method `put_verdict`, which is called with the [`SafeQwen2_5_VLVerdict`] before the first token.
            safety_threshold (`float` in [0, 1], *optional*): prompts whose 1 - p(safe) is at least this, or that of
                their worst picture with `granularity="image"`, end after the prefill. Implies `do_safety`.
            granularity (`str`): what one verdict is about, as in `guard`.

        Returns the library's output, a dictionary as `SafeQwen2_5_VLGenerate[Beam]Output`. Raises what `forward` does.
        """
        kwargs |= zip(inspect.signature(super().generate).parameters, args)
        input_ids = kwargs.get("input_ids", kwargs.get("inputs"))
        threshold = self._setting("safety_threshold", kwargs) if safety_threshold is None else safety_threshold
        pixels = [*map(kwargs.get, PICTURE_INPUTS)]
        if TAKES_TOKEN_TYPES and input_ids is not None and any(part is not None for part in pixels):  # as in forward
            kwargs["mm_token_type_ids"] = find_token_types(input_ids, self.config)
        if not do_safety and threshold is None:
            return super().generate(**kwargs)
        self._check_request(input_ids, granularity, kwargs.get("cache", kwargs.get("past_key_values")))
        eos_token_id = self._check_generation(threshold, granularity, kwargs)
        pictures = find_pictures(input_ids, kwargs.get("attention_mask"), pixels, self.config)
        prefill = Prefill(pictures, len(input_ids), granularity, kwargs.get("streamer"))
        if threshold is not None:
            prefill.threshold, prefill.eos_token_id = threshold, eos_token_id
            prefill.safe_column = self.config.safety_categories.index("safe")
            kwargs["logits_processor"] = LogitsProcessorList([*(kwargs.get("logits_processor") or ()), prefill])
        # do_safety goes to the prefill's forward; `prefill` waits for its outputs, in the two methods below.
        kwargs |= {"do_safety": True, "granularity": granularity, "prefill": prefill}
        output = super().generate(**kwargs)
        if not isinstance(output, ModelOutput):
            if do_safety and not hasattr(prefill.streamer, "put_verdict"):
                logger.warning_once("the verdict of generate comes with return_dict_in_generate=True only")
            return output
        is_beam = isinstance(output, GenerateBeamDecoderOnlyOutput)
        with_verdict = SafeQwen2_5_VLGenerateBeamOutput if is_beam else SafeQwen2_5_VLGenerateOutput
        return with_verdict(**output, **prefill.verdict, safety_flagged=prefill.flagged)

    def prepare_inputs_for_generation(self, *args, inputs_embeds=None, prefill=None, **kwargs):  # keeps `prefill` back
        return super().prepare_inputs_for_generation(*args, inputs_embeds=inputs_embeds, **kwargs)

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, **kwargs):
        if prefill := model_kwargs.pop("prefill", None):  # these are its outputs; later steps are the library's own
            prefill.take(outputs.img_safety_logits)
            del model_kwargs["do_safety"], model_kwargs["granularity"]
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    def refusal(self):
        """Why these weights cannot judge (`str`), or `None` if they can."""
        return self.img_safety_head.refusal(self.config.safety_categories)

    def mark_trained(self, categories=None):
        """Declares the guard trained for its names or new ones (`list[str]`): to rename, or after LoRA on itself."""
        categories = list(categories or self.config.safety_categories)
        check_categories(categories, self.config.num_safety_categories)
        self.img_safety_head.declare(categories)
        self.config.safety_categories = categories

    def _score(self, pooled):
        """`(n, hidden_size)` features -> `(n, num_safety_categories)` float32 logits, finite outside of training."""
        logits = self.img_safety_head(pooled, self.config.safety_categories)
        if not self.training and not (pooled.isfinite().all() and logits.isfinite().all()):
            raise FloatingPointError(
                "no verdict: scores are NaN or infinite; if float16 overflowed, load as torch.bfloat16"
            )
        return logits

    def _check_request(self, input_ids, granularity, cache=None, safety_labels=None, picture_categories=None):
        if granularity not in GRANULARITIES:
            raise ValueError(f"granularity must be one of {GRANULARITIES}, got {granularity!r}")
        if not isinstance(input_ids, torch.Tensor):
            raise ValueError("a verdict needs the prompt as input_ids, whose placeholders tell where pictures stand")
        if cache is not None and cache.get_seq_length() > 0:
            raise ValueError("a verdict does not go with a kept cache: pass the whole conversation without it")
        if safety_labels is not None:
            if granularity != "prompt":
                raise ValueError(f"safety_labels go with granularity='prompt', got {granularity!r}")
            return
        if picture_categories is not None:
            raise ValueError("picture_categories need safety_labels beside them: pass -100 for prompts without one")
        if self.training:
            raise RuntimeError("dropout makes verdicts random in training: call model.eval(), or pass safety_labels")
        if refusal := self.refusal():
            raise RuntimeError(f"SafeQwen cannot judge with these weights: {refusal}")

    def _check_generation(self, threshold, granularity, kwargs):
        """Refuses what has no verdict or does not go with a threshold, and returns the end-of-sequence token's id."""
        for name in ("inputs_embeds", "mm_encoder_outputs", "assistant_model", "prefill_chunk_size"):
            if self._setting(name, kwargs) is not None:
                raise ValueError(f"a verdict does not go with {name}: pass input_ids and pixel_values without it")
        if threshold is None:
            return None
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
            raise ValueError(f"safety_threshold must be a probability in [0, 1], got {threshold!r}")
        if "safe" not in self.config.safety_categories:
            raise ValueError(f"safety_threshold needs a category 'safe', but they are {self.config.safety_categories}")
        if granularity == "patch":
            raise ValueError("safety_threshold goes with granularity 'prompt' or 'image', got 'patch'")
        if self._setting("prompt_lookup_num_tokens", kwargs) is not None:
            raise ValueError("safety_threshold does not go with prompt_lookup_num_tokens: leave out one of them")
        if (eos_token_id := self._setting("eos_token_id", kwargs)) is None:
            raise ValueError("safety_threshold ends answers by an eos_token_id, but none is set: pass one")
        return eos_token_id

    def _setting(self, name, kwargs):
        sources = (kwargs.get("generation_config"), self.generation_config)
        values = (kwargs.get(name), *(getattr(source, name, None) for source in sources))
        return next((value for value in values if value is not None), None)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        """As the library's; weights must fit the config. `ignore_mismatched_sizes=True` starts a misfit guard anew."""
        path, config = pretrained_model_name_or_path, kwargs.get("config")
        if type(config).__name__ == "Qwen2_5_VLConfig":  # from AutoConfig or `pipeline` without remote code
            kwargs["config"] = cls.config_class.from_dict(config.to_dict())
        spare_guard(kwargs)
        model, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        if getattr(model, "_hf_peft_config_loaded", False):  # 5.x would not tell what the base lacked
            raise ValueError(f"{path} is an adapter: load its base, and then PeftModel.from_pretrained(base, adapter)")
        for name in [name for name in vars(model.generation_config) if name.startswith("safety_") and name in kwargs]:
            delattr(model.generation_config, name)  # the library copies what is given for the config
        head = model.img_safety_head
        if check_loaded(model, info) and path is not None:  # the columns mean what the config beside them says
            saved = cls.config_class.from_pretrained(path, **{o: kwargs[o] for o in HUB_OPTIONS if o in kwargs})
            if head.refusal(saved.safety_categories) is None:
                head.seal(saved.safety_categories)
        if kwargs.get("ignore_mismatched_sizes") and head.refusal(model.config.safety_categories):
            head.start_anew(model.config.text_config.initializer_range)
        return (model, info) if output_loading_info else model

    @classmethod
    def _load_pretrained_model(cls, model, state_dict, checkpoint_files, *args, **kwargs):
        check_tensors(model, state_dict, checkpoint_files)
        return super()._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # Trainer resumes from the released names that `save_pretrained` writes, by load_state_dict(strict=False).
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[prefix + current_name(key.removeprefix(prefix))] = state_dict.pop(key)
            if key == f"{prefix}{GUARD}.mlp.0.bias":  # a guard that was saved without a digest
                state_dict.setdefault(f"{prefix}{GUARD}.{DIGEST}", torch.zeros(32, dtype=torch.uint8))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As the library's; weights of an earlier save in the folder, which would win over these, are removed."""
        if kwargs.get("state_dict") is None and self.refusal() is None:  # a guard may be trained without the model
            self.img_safety_head.seal(self.config.safety_categories)
        super().save_pretrained(save_directory, *args, **kwargs)
        files = [Path(save_directory, name) for name in ("model.safetensors", "model.safetensors.index.json")]
        ages = sorted((file.stat().st_mtime_ns, file) for file in files if file.exists())
        if len(ages) == 2 and ages[0][0] < ages[1][0]:
            ages[0][1].unlink()


class SafeQwen2_5_VLForImageClassification(SafeQwen2_5_VLForConditionalGeneration):
    """The guard for clients that know pictures only, such as `pipeline("image-classification", ...)`: a view."""

    _auto_class = "AutoModelForImageClassification"
    main_input_name = "pixel_values"

    @can_return_tuple
    def forward(self, pixel_values, image_grid_thw):
        """`guard`'s float32 logits, `(num_pictures, num_safety_categories)`, by the prompt of `safety_prompt_ids`."""
        before, after = (self.config.safety_prompt_ids[side] for side in ("before", "after"))
        if max(*before, *after) >= self.config.text_config.vocab_size:
            raise ValueError("config.safety_prompt_ids exceed the vocabulary: set those of this model's chat template")
        sizes = (image_grid_thw.prod(dim=-1) // self.config.vision_config.spatial_merge_size**2).tolist()
        rows = [torch.tensor([*before, *[self.config.image_token_id] * size, *after]) for size in sizes]
        inputs = {"input_ids": rows, "attention_mask": [torch.ones_like(row) for row in rows]}
        inputs = {name: pad_sequence(part, True).to(pixel_values.device) for name, part in inputs.items()}
        verdict = self.guard(**inputs, pixel_values=pixel_values, image_grid_thw=image_grid_thw)
        return ImageClassifierOutput(logits=verdict.img_safety_logits)


class Prefill(LogitsProcessor):
    """What one call of `generate` wants of its prefill, and the verdict that comes of it; it travels with the call."""

    threshold = flagged = None  # flagged: (batch_size,) bools

    def __init__(self, pictures, batch_size, granularity, streamer):
        self.pictures, self.batch_size, self.granularity, self.streamer = pictures, batch_size, granularity, streamer
        self.verdict = SafeQwen2_5_VLVerdict()

    def take(self, logits):
        """Keeps the verdict; of prompts that were repeated for beams or samples that of the first copy."""
        if not self.pictures:
            return
        rows = [*range(self.batch_size)] if self.granularity == "prompt" else [p.row for p in self.pictures]
        copies = len(logits) // len(rows)  # of a prompt, and with it of what came for it, one behind the other
        logits = [logits[number + (copies - 1) * rows.index(row)] for number, row in enumerate(rows)]
        if self.granularity == "patch":
            logits = [patches.reshape(*p.shape, -1) for patches, p in zip(logits, self.pictures)]
        self.verdict = SafeQwen2_5_VLVerdict.of(logits if self.granularity == "patch" else torch.stack(logits))
        if self.threshold is not None:
            unsafe = 1 - self.verdict.img_safety_probs[:, self.safe_column]
            # A prompt is as unsafe as the worst of its pictures; without one NaN, which is no threshold's.
            nothing, rows = unsafe.new_full((self.batch_size,), float("nan")), torch.tensor(rows, device=unsafe.device)
            self.flagged = nothing.scatter_reduce(0, rows, unsafe, "amax", include_self=False) >= self.threshold
        if hasattr(self.streamer, "put_verdict"):
            self.streamer.put_verdict(self.verdict)

    def __call__(self, input_ids, scores):
        """Leaves the prompts that were flagged nothing to say but the end of the sequence."""
        if not self.pictures:
            return scores
        end = torch.full_like(scores, -float("inf"))
        end[:, self.eos_token_id] = 0.0
        flagged = self.flagged.to(scores.device).repeat_interleave(len(scores) // len(self.flagged))  # one a beam
        return torch.where(flagged[:, None], end, scores)
