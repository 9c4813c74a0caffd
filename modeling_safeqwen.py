"""
SafeQwen2.5-VL: Qwen2.5-VL with a Visual Guard Module (arXiv 2506.04704).

The guard averages the last hidden states of a prompt's picture tokens and maps them to one logit per safety category.
This file adds that, and nothing else, to transformers' Qwen2.5-VL: tokens and logits stay the base model's, and a
verdict is only ever computed from weights that were loaded or trained.

Read in this order: `SafetyHead` (the guard), `forward`, `generate`, `guard`; the rest keeps wrong numbers from looking
right (`_locate_pictures`, `_refuse_unless_ready`, `from_pretrained`).
"""

import copy
import functools
import inspect
import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.torch_version import TorchVersion
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    modeling_outputs,
)
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils import ModelOutput, can_return_tuple, logging

from .configuration_safeqwen import GUARD_FIELDS, SafeQwen2_5_VLConfig


logger = logging.get_logger(__name__)

if TorchVersion("5.3.0") <= TorchVersion(transformers.__version__) < TorchVersion("5.5.4"):
    # huggingface/transformers#45325: on one folder and picture a verdict of 0.1102 where all others give 0.1057
    raise ImportError(
        f"transformers {transformers.__version__} places still pictures wrongly (huggingface/transformers#45325), "
        "which silently changes every verdict; SafeQwen needs 4.57.x, 5.0-5.2 or 5.5.4 and later: "
        "pip install -U transformers"
    )

# transformers 5.3 on reads picture positions from mm_token_type_ids; before, the model found them in input_ids.
TAKES_TOKEN_TYPES = "mm_token_type_ids" in inspect.signature(Qwen2_5_VLModel.forward).parameters
# transformers 5.1 on computes all positions once, in `generate`; before, each step computed its own.
POSITIONS_IN_GENERATE = hasattr(Qwen2_5_VLForConditionalGeneration, "_prepare_position_ids_for_generation")
# transformers 5.x can encode the pictures first and hand each chunk of a chunked prefill its part of them.
TAKES_ENCODED_PICTURES = "mm_encoder_outputs" in inspect.signature(Qwen2_5_VLModel.forward).parameters
# transformers 5.24 on calls the key-value cache `cache`; both names are taken there.
CACHE = "cache" if "cache" in inspect.signature(Qwen2_5_VLModel.forward).parameters else "past_key_values"
# transformers 5.24 on returns what the vision tower gave, too, and has an output class with these fields.
StockOutput = getattr(modeling_outputs, "MultimodalCausalLMOutputWithPast", CausalLMOutputWithPast)

try:
    from transformers import conversion_mapping
except ImportError:  # transformers 4.x renames the tensors of released folders by `_checkpoint_conversion_mapping`
    conversion_mapping = None

TEXT, IMAGE, VIDEO = 0, 1, 2  # the values of mm_token_type_ids
GUARD = "img_safety_head"
UNQUANTIZED = ("lm_head", GUARD, f"{GUARD}.mlp")  # HQQ compares names without the layers' numbers
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
NEEDS_PIXELS = "do_safety needs the pictures themselves: pass pixel_values, not mm_encoder_outputs"
OVERFLOW = (
    "the features or scores of a picture are NaN or infinite, so there is no verdict; in float16 this is an overflow: "
    "load the model with dtype=torch.bfloat16 or torch.float32"
)
PICTURE_INPUTS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")


@dataclass
class SafeQwen2_5_VLCausalLMOutputWithPast(StockOutput):
    """
    What Qwen2.5-VL's forward returns, and the verdict.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, when `labels` or `safety_labels` are given):
            Language-modelling loss + `safety_loss_lambda` * `safety_loss`, or the one of them that was asked for.
        rope_deltas (`torch.LongTensor` of shape `(batch_size, 1)`, *optional*, transformers 4.x only):
            As Qwen2.5-VL returns it.
        img_safety_logits (`torch.FloatTensor` of shape `(batch_size, num_safety_categories)`, *optional*):
            float32 scores, when a verdict was asked for and the batch holds a picture; NaN in rows without one.
        img_safety_probs (`torch.FloatTensor` of shape `(batch_size, num_safety_categories)`, *optional*):
            Softmax of the logits, in [0, 1]. `None` while the guard is untrained.
        safety_loss (`torch.FloatTensor` of shape `()`, *optional*, when `safety_labels` are given):
            Cross-entropy averaged over the labels, of prompts and of pictures, that are not -100; 0 if there are none.
        picture_safety_logits (`torch.FloatTensor` of shape `(num_pictures, num_safety_categories)`, *optional*, when
            `picture_categories` are given): float32 scores of each picture by itself, in the order of the prompts.
    """

    rope_deltas: torch.LongTensor | None = None
    img_safety_logits: torch.FloatTensor | None = None
    img_safety_probs: torch.FloatTensor | None = None
    safety_loss: torch.FloatTensor | None = None
    picture_safety_logits: torch.FloatTensor | None = None


@dataclass
class SafeQwen2_5_VLVerdict(ModelOutput):
    """
    What `guard` returns: both fields float32, and `None` when the batch holds no picture.

    Args:
        img_safety_logits (`torch.FloatTensor`, or a list of them for `granularity="patch"`):
            Scores, of the shape that `guard` documents for each granularity.
        img_safety_probs (the same):
            Softmax of the logits over the categories, in [0, 1].
    """

    img_safety_logits: torch.FloatTensor | list[torch.FloatTensor] | None = None
    img_safety_probs: torch.FloatTensor | list[torch.FloatTensor] | None = None


@dataclass
class SafeQwen2_5_VLGenerateOutput(GenerateDecoderOnlyOutput):
    """
    What `generate(do_safety=True, return_dict_in_generate=True)` returns.

    Args:
        img_safety_logits, img_safety_probs (`torch.FloatTensor`, or lists of them for `granularity="patch"`):
            The verdict of the prefill, float32, of the shape that `guard` documents for the granularity, whatever the
            beams or returned sequences: `(batch_size, num_safety_categories)` by default, NaN in rows without a new
            picture. `None` when no prompt holds a new picture.
        safety_flagged (`torch.BoolTensor` of shape `(batch_size,)`, *optional*, when `safety_threshold` is given):
            Which prompts were stopped after the prefill; `None` when no row holds a new picture.
    """

    img_safety_logits: torch.FloatTensor | list[torch.FloatTensor] | None = None
    img_safety_probs: torch.FloatTensor | list[torch.FloatTensor] | None = None
    safety_flagged: torch.BoolTensor | None = None


@dataclass
class SafeQwen2_5_VLGenerateBeamOutput(GenerateBeamDecoderOnlyOutput):
    """As `SafeQwen2_5_VLGenerateOutput`, from a beam search."""

    img_safety_logits: torch.FloatTensor | list[torch.FloatTensor] | None = None
    img_safety_probs: torch.FloatTensor | list[torch.FloatTensor] | None = None
    safety_flagged: torch.BoolTensor | None = None


@dataclass
class Picture:
    """A still picture or a video in a batch: its merged patches are the tokens `start` to `start + size` of `row`."""

    row: int
    start: int
    size: int
    modality: int  # IMAGE or VIDEO
    index: int  # among the batch's pictures of that modality, in the order of their grids
    shape: tuple[int, ...]  # merged patches: (rows, columns), with the frames first for a video


@dataclass
class Prefill:
    """
    What one `generate` call tells its first forward, and what it learns from it.

    It travels with the call's own arguments, so that nothing stays on the module and threads cannot mix verdicts.
    """

    batch_size: int
    judged: list[Picture] = field(default_factory=list)  # on which a verdict is asked for
    cached: int = 0  # tokens of the conversation that have gone through the model
    granularity: str = "prompt"
    safety_threshold: float | None = None
    streamer: object = None
    pictures: dict | None = None  # the pixels and grids that are not in the kept cache yet
    position_ids: torch.LongTensor | None = None  # (3, batch, sequence), where the library would misplace pictures
    rope_deltas: torch.LongTensor | None = None
    features: list[torch.FloatTensor] | None = None  # of each judged picture, (tokens so far, hidden)
    verdict: SafeQwen2_5_VLVerdict = field(default_factory=SafeQwen2_5_VLVerdict)
    flagged: torch.BoolTensor | None = None  # (batch,)

    def take_positions(self, inputs):
        """The positions of the `inputs`, `(batch * beams, new tokens, ...)`: the last ones of the conversation."""
        beams = inputs.shape[0] // self.batch_size
        return self.position_ids[..., -inputs.shape[1] :].repeat_interleave(beams, dim=1)

    def collect(self, hidden_states, token_types):
        """
        Keeps the judged pictures' part of the next tokens' hidden states.

        Args:
            hidden_states (`torch.FloatTensor` of shape `(batch_size * beams, new tokens, hidden_size)`)
            token_types (`torch.LongTensor` of shape `(batch_size * beams, new tokens)`)

        Returns:
            `bool`: whether the pictures have just become complete. Chunked prefill brings them piece by piece.

        Raises:
            RuntimeError: if these are not the tokens at which the pictures were located.
        """
        first, last = self.cached, self.cached + hidden_states.shape[1]
        beams = hidden_states.shape[0] // self.batch_size
        places = [
            (p.row * beams, slice(max(p.start - first, 0), max(p.start + p.size - first, 0))) for p in self.judged
        ]
        if not all(bool(token_types[place].gt(TEXT).all()) for place in places):
            raise RuntimeError(
                "the library's generate fed other tokens than the prompt's, so no picture can be judged; report"
                f" this with the arguments of generate and the version ({transformers.__version__})"
            )
        pieces = [hidden_states[place] for place in places]
        self.features = pieces if self.features is None else [torch.cat(pair) for pair in zip(self.features, pieces)]
        self.cached = last
        end = max(p.start + p.size for p in self.judged)
        return first < end <= last

    def receive(self, verdict, categories):
        self.verdict, self.features = verdict, None
        if self.safety_threshold is not None:
            unsafe = 1 - verdict.img_safety_probs[:, categories.index("safe")]
            if self.granularity == "image":  # a prompt is as unsafe as the worst of its pictures
                rows = torch.tensor([picture.row for picture in self.judged], device=unsafe.device)
                nothing = unsafe.new_full((self.batch_size,), float("nan"))
                unsafe = nothing.scatter_reduce(0, rows, unsafe, "amax", include_self=False)
            self.flagged = unsafe >= self.safety_threshold  # NaN rows: not flagged
        if hasattr(self.streamer, "put_verdict"):
            self.streamer.put_verdict(verdict)


class EndFlagged(LogitsProcessor):
    """Leaves the prompts that the prefill flagged nothing to say but the end of the sequence."""

    def __init__(self, prefill, eos_token_id):
        self.prefill = prefill
        self.eos_token_id = eos_token_id

    def __call__(self, input_ids, scores):
        if self.prefill.flagged is None:
            return scores
        end = torch.full_like(scores, -float("inf"))
        end[:, self.eos_token_id] = 0.0
        flagged = self.prefill.flagged.to(scores.device)
        flagged = flagged.repeat_interleave(scores.shape[0] // flagged.shape[0])  # one a beam
        return torch.where(flagged[:, None], end, scores)


def moves_inputs(method):
    """Lets `method` take tensors from any device, as a model does that accelerate has spread over several."""

    @functools.wraps(method)
    def moving(self, *args, **kwargs):
        if not hasattr(self, "_hf_hook"):  # else accelerate moves them
            device = self.model.language_model.embed_tokens.weight.device  # get_input_embeddings searches for it
            args = [_moved(value, device) for value in args]
            kwargs = {name: _moved(value, device) for name, value in kwargs.items()}
        return method(self, *args, **kwargs)

    moving.__signature__ = inspect.signature(method)  # `generate` asks for it at every step
    return moving


class SafetyHead(nn.Module):
    """
    The Visual Guard Module: `(..., hidden_size)` pooled features -> `(..., num_safety_categories)` logits.

    Its weights are random until they were loaded, or trained: a gradient has reached them and they have changed since.
    """

    def __init__(self, config):
        super().__init__()
        width = config.text_config.hidden_size
        hidden = int(width * config.safety_head_hidden_scale)
        layers = []
        for _ in range(config.safety_num_hidden_layers):
            layers += [nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.1)]
            width = hidden
        self.mlp = nn.Sequential(*layers, nn.Linear(width, config.num_safety_categories))
        self.trained = False
        self._bias_at_gradient = []  # at most one; a list, since the replicas of DataParallel share it

    def forward(self, pooled):
        dtype = self.mlp[0].weight.dtype
        # Quantised weights are stored as integers, which would cut the features off; their layers cast for themselves.
        logits = self.mlp(pooled.to(dtype) if dtype.is_floating_point else pooled)
        if logits.requires_grad and self.training and not self.trained and self._is_trainable():
            logits.register_hook(self._note_gradient)
        return logits.float()  # the softmax of half-precision logits loses the small probabilities

    def is_trained(self):
        """`bool`: whether the weights were loaded or trained."""
        bias = self.mlp[-1].bias
        if not self.trained and self._bias_at_gradient and not bias.is_meta:  # on meta: offloaded, out of sight
            self.trained = not torch.equal(self._bias_at_gradient[0].to(bias), bias)
        return self.trained

    def _is_trainable(self):
        # By attribute: a replica of DataParallel has no parameters().
        layers = [layer for layer in self.mlp if isinstance(layer, nn.Linear)]
        return all(tensor.requires_grad for layer in layers for tensor in (layer.weight, layer.bias))

    def _note_gradient(self, gradient):
        # A gradient that overflowed in half precision leads to no step: the gradient scaler skips it.
        if not self._bias_at_gradient and gradient.isfinite().all() and gradient.any():
            self._bias_at_gradient.append(self.mlp[-1].bias.detach().clone())

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        if all(_fits(state_dict, prefix, *named) for named in self.named_parameters()):
            self.trained = _looks_trained(state_dict[f"{prefix}mlp.{len(self.mlp) - 1}.bias"])


class SafeQwen2_5_VLForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """
    Qwen2.5-VL with a guard over its pictures.

    Without `do_safety` it is `Qwen2_5_VLForConditionalGeneration` on the same weights, to the bit, but where the
    library misplaces pictures: in prompts given as `inputs_embeds`, after a kept cache, and on transformers 5.x in
    inputs without `mm_token_type_ids`. There it answers as the library does about the same prompt given as ids, whole
    and with them.

    A model that was built from a configuration, or whose checkpoint lacked tensors, refuses to judge until the missing
    weights have come through `from_pretrained`, `load_state_dict` or training.
    """

    config_class = SafeQwen2_5_VLConfig
    _auto_class = "AutoModelForImageTextToText"  # makes save_pretrained copy this file and write the auto_map
    _no_split_modules = [*(Qwen2_5_VLForConditionalGeneration._no_split_modules or ()), "SafetyHead"]

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls._register_renames()

    @classmethod
    def _register_renames(cls):
        """
        Teaches transformers 5.x the released names of our tensors.

        It looks renames up by class name and skips classes it does not know: without this the language model of a
        released folder would stay randomly initialised, behind plausible verdicts.
        """
        if conversion_mapping is None:
            return
        for parent in ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl"):  # 5.0-5.5 know the model type only
            if (renames := conversion_mapping.get_checkpoint_conversion_mapping(parent)) is not None:
                # overwrite: every folder loaded with trust_remote_code imports this file anew
                conversion_mapping.register_checkpoint_conversion_mapping(cls.__name__, renames, overwrite=True)
                break

    def __init__(self, config):
        super().__init__(config)
        self.img_safety_head = SafetyHead(config)
        self.model.register_forward_pre_hook(_refuse_safety_labels, with_kwargs=True)
        self.post_init()
        # Names of backbone tensors that are still as randomly drawn, and their sums when a gradient first came by.
        self._unloaded = {name for name, _ in self.named_parameters() if not name.startswith(GUARD)}
        self._sums_at_gradient = {}

    # ------------------------------------------------------------------------------------------------- the verdict

    @moves_inputs
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        video_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
        second_per_grid_ts: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict | None = None,
        cache=None,
        do_safety: bool = False,
        safety_labels: torch.LongTensor | None = None,
        picture_categories: torch.LongTensor | None = None,  # Trainer would want "*labels" in every batch
        prefill: Prefill | None = None,
        **kwargs,
    ):
        """
        Qwen2.5-VL's forward, with a verdict on the prompt's pictures.

        The parameters that are not listed are Qwen2.5-VL's, on both generations of transformers. `mm_token_type_ids`
        need not be given: picture tokens are recognised by `input_ids`, or by `inputs_embeds`.

        Args:
            do_safety (`bool`, *optional*, defaults to `False`):
                Judge the pictures among these tokens.
            safety_labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Category of each prompt in [0, num_safety_categories), or -100 for none. Adds `safety_loss` to the
                loss, and the verdict too, unless the guard is untrained: then its logits are returned in training
                mode only, and probabilities never.
            picture_categories (`torch.LongTensor` of shape `(num_pictures,)`, *optional*):
                Beside `safety_labels`: category of each picture or video by itself, in the order of the prompts, or
                -100 for none. Without them a guard that learns from prompts of several pictures is not told which of
                them its label is about, and `granularity="image"` suffers.
            prefill (`Prefill`, *optional*):
                Internal to `generate`.

        Returns:
            [`SafeQwen2_5_VLCausalLMOutputWithPast`]

        Raises:
            RuntimeError: on `do_safety` without `safety_labels`, in training mode, where dropout makes verdicts
                random, or if guard or backbone hold weights that were neither loaded nor trained.
            FloatingPointError: outside of training, if the features or scores of a picture are not finite.
            ValueError: if pictures, placeholders and masks do not fit together; if labels are no integers, too many
                or few, out of range, or label a prompt without a picture; if `picture_categories` come alone.
        """
        cache = past_key_values if cache is None else cache
        if prefill is not None:
            prompt = input_ids if inputs_embeds is None else inputs_embeds
            if prefill.pictures is not None:
                if prompt.shape[0] != prefill.batch_size:
                    raise ValueError("a kept cache of beams cannot take a new picture: leave the cache out")
                pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw, second_per_grid_ts = (
                    prefill.pictures[key] for key in PICTURE_INPUTS
                )
            if prefill.position_ids is not None:
                position_ids = prefill.take_positions(prompt)
                self.model.rope_deltas = prefill.rope_deltas
        judge = do_safety or safety_labels is not None
        if do_safety and not (self.training and safety_labels is not None):
            self._refuse_unless_ready()
        if judge and mm_encoder_outputs:
            raise ValueError(NEEDS_PIXELS)
        if picture_categories is not None and safety_labels is None:
            raise ValueError("picture_categories need safety_labels beside them: -100 for prompts that have none")

        has_pictures = pixel_values is not None or pixel_values_videos is not None or bool(mm_encoder_outputs)
        if has_pictures or judge or prefill is not None:
            picture_ids = self._placeholder_ids(inputs_embeds) if input_ids is None else input_ids
            token_types = self._token_types(picture_ids)  # (batch, sequence)
        if judge:
            pictures = self._locate_pictures(
                token_types, attention_mask, pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw
            )
            batch_size, rows = token_types.shape[0], sorted({picture.row for picture in pictures})
            if safety_labels is not None:
                self._check_labels("safety_labels", safety_labels, batch_size, "prompts")
                for row, label in enumerate(safety_labels.tolist()):
                    if label != -100 and row not in rows:
                        raise ValueError(
                            f"safety_labels[{row}] is {label}, but prompt {row} holds no picture: use -100"
                        )
            if picture_categories is not None:
                self._check_labels("picture_categories", picture_categories, len(pictures), "pictures")
        if has_pictures and position_ids is None:
            if cache is not None and cache.get_seq_length() > 0:
                if judge:
                    raise ValueError(
                        "forward cannot tell where in the conversation a picture after a kept cache stands: pass its "
                        "position_ids, or call generate with the whole conversation and the cache"
                    )
            elif input_ids is None:  # the library would give the pictures the positions of text
                position_ids, self.model.rope_deltas = self._rope_index(
                    picture_ids, attention_mask, image_grid_thw, video_grid_thw, second_per_grid_ts
                )
        if TAKES_TOKEN_TYPES:
            # Always from the ids: without them the library silently gives the pictures the positions of text.
            kwargs["mm_token_type_ids"] = token_types if has_pictures else mm_token_type_ids
        if mm_encoder_outputs:
            kwargs["mm_encoder_outputs"] = mm_encoder_outputs

        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            second_per_grid_ts=second_per_grid_ts,
            return_dict=True,
            **{CACHE: cache},
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state  # (batch, sequence, hidden), after the final norm
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden_states[:, kept, :])

        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )

        safety_logits = safety_probs = safety_loss = picture_logits = None
        if judge:
            features = [hidden_states[p.row, p.start : p.start + p.size] for p in pictures]
            # Without any picture: no rows, but with a gradient.
            pooled = self._pool_prompts(features, pictures) if pictures else hidden_states[:, :0].flatten(0, 1).float()
            scores = self._score(pooled)  # (prompts with a picture, categories)
            if safety_labels is not None:
                labelled, targets = scores, safety_labels.to(scores.device).long()[rows]
                if picture_categories is not None and pictures:
                    picture_logits = self._score(self._pool_pictures(features))  # (pictures, categories)
                    labelled = torch.cat([scores, picture_logits])
                    targets = torch.cat([targets, picture_categories.to(scores.device).long()])
                # The sum over no rows is a zero that still has a gradient, which DDP wants.
                safety_loss = F.cross_entropy(labelled, targets, ignore_index=-100, reduction="sum")
                safety_loss = safety_loss / targets.ne(-100).sum().clamp(min=1)
                weighted = self.config.safety_loss_lambda * safety_loss
                loss = weighted if loss is None else loss + weighted.to(loss.device)
            ready = self._refusal() is None
            if rows and (ready or self.training):
                safety_logits = self._spread(scores, rows, batch_size)
                safety_probs = safety_logits.softmax(dim=-1) if ready else None
            else:
                picture_logits = None
        if self._unloaded and self.training:  # not on the loss, which a trainer may compute for itself
            reached = hidden_states if hidden_states.requires_grad else logits
            if reached.requires_grad:
                reached.register_hook(self._note_gradient)
        if prefill is not None and prefill.judged and prefill.collect(hidden_states, token_types):
            verdict = self._judge(prefill.features, prefill.judged, prefill.batch_size, prefill.granularity)
            prefill.receive(verdict, self.config.safety_categories)

        return SafeQwen2_5_VLCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{name: value for name, value in outputs.items() if name != "last_hidden_state"},
            img_safety_logits=safety_logits,
            img_safety_probs=safety_probs,
            safety_loss=safety_loss,
            picture_safety_logits=picture_logits,
        )

    @moves_inputs
    def generate(
        self,
        inputs=None,
        generation_config=None,
        logits_processor=None,
        *args,
        do_safety: bool = False,
        safety_threshold: float | None = None,
        granularity: str = "prompt",
        **kwargs,
    ):
        """
        Qwen2.5-VL's generate, to the token, with the verdict of the same prefill that starts the answer.

        With a kept cache (`past_key_values`, or `cache` from transformers 5.24 on) pass the whole conversation and
        all its pictures; the verdict is on the pictures that the cache does not hold yet.

        Args:
            do_safety (`bool`, *optional*, defaults to `False`):
                Return the verdict; needs `return_dict_in_generate=True`, since plain tokens have no place for it.
            safety_threshold (`float` in [0, 1], *optional*):
                Prompts whose unsafe probability, 1 - p(safe), is at least this end after the prefill: their answer is
                the end-of-sequence token. Implies `do_safety`. With `granularity="image"` that of the worst of a
                prompt's pictures counts.
            granularity (`str`, *optional*, defaults to `"prompt"`):
                What one verdict is about: `"prompt"`, `"image"` or `"patch"`, as in `guard`.
            streamer (*optional*):
                As the library takes it. If it has a method `put_verdict`, that is called with the
                [`SafeQwen2_5_VLVerdict`] before the first token of the answer is put.
            inputs, generation_config, logits_processor, args, kwargs:
                As the library's `generate` takes them.

        Returns:
            [`SafeQwen2_5_VLGenerateOutput`] or [`SafeQwen2_5_VLGenerateBeamOutput`] if a verdict and a dictionary were
            asked for; otherwise what the library returns.

        Raises:
            RuntimeError, FloatingPointError: as `forward`.
            ValueError: on another granularity; if `safety_threshold` is outside of [0, 1], or comes with "patch", or
                there is no category "safe" or end-of-sequence token for it to work with; if pictures and placeholders
                do not fit together; with `mm_encoder_outputs`; with `prefill_chunk_size` where the library cannot
                split pictures; with assisted decoding of a prompt that comes as `inputs_embeds` or after a kept cache.
        """
        if "past_key_values" in kwargs:
            kwargs[CACHE] = kwargs.pop("past_key_values")
        judge = do_safety or safety_threshold is not None
        self._check_granularity(granularity)
        if judge:
            self._refuse_unless_ready()
            if kwargs.get("mm_encoder_outputs") is not None:
                raise ValueError(NEEDS_PIXELS)
        if safety_threshold is not None:
            eos_token_id = self._generation_setting("eos_token_id", generation_config, kwargs)
            self._check_threshold(safety_threshold, eos_token_id, granularity)
        prefill = self._prepare_prefill(inputs, kwargs, judge)
        if prefill is not None:
            kwargs["prefill"] = prefill
        if judge:
            prefill.granularity, prefill.streamer = granularity, kwargs.get("streamer")
            is_chunked = self._generation_setting("prefill_chunk_size", generation_config, kwargs) is not None
            if is_chunked and (prefill.pictures is not None or not TAKES_ENCODED_PICTURES):
                raise ValueError(
                    "prefill_chunk_size does not go with a verdict after a kept cache, nor on transformers 4.x, which "
                    "gives every chunk all the pictures: leave it out"
                )
        if safety_threshold is not None:
            prefill.safety_threshold = safety_threshold
            logits_processor = LogitsProcessorList([*(logits_processor or []), EndFlagged(prefill, eos_token_id)])

        output = super().generate(inputs, generation_config, logits_processor, *args, **kwargs)

        if not judge:
            return output
        if isinstance(output, torch.Tensor):
            if do_safety and not hasattr(prefill.streamer, "put_verdict"):
                logger.warning_once(
                    "generate(do_safety=True) returns its verdict with return_dict_in_generate=True only"
                )
            return output
        with_verdict = {
            GenerateDecoderOnlyOutput: SafeQwen2_5_VLGenerateOutput,
            GenerateBeamDecoderOnlyOutput: SafeQwen2_5_VLGenerateBeamOutput,
        }[type(output)]
        return with_verdict(**output, **prefill.verdict, safety_flagged=prefill.flagged)

    @moves_inputs
    @torch.no_grad()
    def guard(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        video_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
        second_per_grid_ts: torch.Tensor | None = None,
        granularity: str = "prompt",
    ):
        """
        The verdict alone: no `lm_head`, no key-value cache, and nothing after the last picture is computed.

        Attention is causal, so text after a picture could not move its verdict.

        Args:
            granularity (`str`, *optional*, defaults to `"prompt"`):
                What one verdict is about.
                - `"prompt"`: fields of shape `(batch_size, num_safety_categories)`, as `forward` returns them.
                - `"image"`: `(num_pictures, num_safety_categories)`, each picture or video pooled over its own tokens,
                  in the order of the prompts.
                - `"patch"`: a list with one `(rows, columns, num_safety_categories)` map a picture, in that order,
                  over its merged patches; `(frames, rows, columns, num_safety_categories)` for a video.
            input_ids, attention_mask, ...:
                What the processor returns. `mm_token_type_ids` is taken for convenience and not needed.

        Returns:
            [`SafeQwen2_5_VLVerdict`]

        Raises:
            RuntimeError, FloatingPointError: as `forward`.
            ValueError: on another granularity; if pictures, placeholders and masks do not fit together.
        """
        self._check_granularity(granularity)
        self._refuse_unless_ready()
        pictures, features = self._picture_features(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            second_per_grid_ts=second_per_grid_ts,
        )
        if not pictures:
            return SafeQwen2_5_VLVerdict()
        batch_size = (inputs_embeds if input_ids is None else input_ids).shape[0]
        return self._judge(features, pictures, batch_size, granularity)

    @moves_inputs
    @torch.no_grad()
    def guard_features(self, **inputs):
        """
        What `img_safety_head` is given to judge a prompt by: to train it on a frozen backbone, pass by pass the same.

        Takes what `guard` takes. The guard itself may be untrained.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, hidden_size)`: the mean over each prompt's picture tokens,
            float32; NaN in rows without a picture.

        Raises:
            RuntimeError: if the backbone holds weights that were neither loaded nor trained.
            FloatingPointError: if the features of a picture are not finite.
            ValueError: if pictures, placeholders and masks do not fit together.
        """
        if refusal := self._refusal(guard=False):
            raise RuntimeError(f"the features would be random: {refusal}; load a complete checkpoint")
        pictures, features = self._picture_features(**inputs)
        prompts = inputs["inputs_embeds"] if inputs.get("input_ids") is None else inputs["input_ids"]
        if not pictures:
            hidden_size = self.config.text_config.hidden_size
            return torch.full((prompts.shape[0], hidden_size), float("nan"), device=prompts.device)
        pooled = self._pool_prompts(features, pictures)
        if not pooled.isfinite().all():
            raise FloatingPointError(OVERFLOW)
        return self._spread(pooled, sorted({picture.row for picture in pictures}), prompts.shape[0])

    def _picture_features(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        inputs_embeds=None,
        pixel_values=None,
        pixel_values_videos=None,
        image_grid_thw=None,
        video_grid_thw=None,
        mm_token_type_ids=None,
        second_per_grid_ts=None,
    ):
        """
        The batch's pictures, and the last hidden states of each, `(picture.size, hidden_size)`.

        Returns:
            `tuple`: (`list[Picture]`, `list[torch.FloatTensor]`), both in the order of the prompts.
        """
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(f"guard takes an attention_mask of 2 dimensions, got {attention_mask.ndim}")
        picture_ids = self._placeholder_ids(inputs_embeds) if input_ids is None else input_ids
        token_types = self._token_types(picture_ids)
        pictures = self._locate_pictures(
            token_types, attention_mask, pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw
        )
        if not pictures:
            return [], []

        # Prompts without a picture and whatever follows the last picture need no pass.
        rows = sorted({picture.row for picture in pictures})
        length = max(picture.start + picture.size for picture in pictures)
        picture_ids = picture_ids[rows, :length]
        if attention_mask is not None:
            attention_mask = attention_mask[rows, :length]
        if position_ids is not None:
            position_ids = position_ids[..., rows, :length]
        else:  # the library would keep them on the module, in the way of an answer that another thread is giving
            position_ids, _ = self._rope_index(
                picture_ids, attention_mask, image_grid_thw, video_grid_thw, second_per_grid_ts
            )
        outputs = self.model(
            input_ids=None if input_ids is None else picture_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=None if inputs_embeds is None else inputs_embeds[rows, :length],
            use_cache=False,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            return_dict=True,
        )
        hidden_states = outputs.last_hidden_state  # (prompts with a picture, length, hidden)
        return pictures, [hidden_states[rows.index(p.row), p.start : p.start + p.size] for p in pictures]

    def _judge(self, features, pictures, batch_size, granularity):
        """
        The verdict on pictures.

        Args:
            features (`list` of `torch.FloatTensor` of shape `(picture.size, hidden_size)`): last hidden states.
            pictures (`list[Picture]`): one or more, in the order of the prompts.
            batch_size (`int`): number of prompts.
            granularity (`str`): as in `guard`.

        Returns:
            [`SafeQwen2_5_VLVerdict`]
        """
        if granularity == "patch":
            scores = self._score(torch.cat(features).float()).split([picture.size for picture in pictures])
            maps = [tokens.unflatten(0, picture.shape) for tokens, picture in zip(scores, pictures)]
            return SafeQwen2_5_VLVerdict(maps, [logits.softmax(dim=-1) for logits in maps])
        if granularity == "image":
            logits = self._score(self._pool_pictures(features))
        else:
            rows = sorted({picture.row for picture in pictures})
            logits = self._score(self._pool_prompts(features, pictures))
            logits = self._spread(logits, rows, batch_size)
        return SafeQwen2_5_VLVerdict(logits, logits.softmax(dim=-1))

    @staticmethod
    def _pool_prompts(features, pictures):
        """The mean over all of a prompt's picture tokens, `(prompts with a picture, hidden_size)`, float32."""
        prompts = {}
        for tokens, picture in zip(features, pictures):
            prompts.setdefault(picture.row, []).append(tokens)
        # fp32: summing a thousand fp16 tokens loses the tail
        return torch.stack([torch.cat(tokens).float().mean(dim=0) for tokens in prompts.values()])

    @staticmethod
    def _pool_pictures(features):
        """The mean over each picture's own tokens, `(num_pictures, hidden_size)`, float32."""
        return torch.stack([tokens.float().mean(dim=0) for tokens in features])

    def _score(self, pooled):
        """`(n, hidden_size)` features -> `(n, num_safety_categories)` float32 logits, finite outside of training."""
        logits = self.img_safety_head(pooled)
        if not self.training and not (pooled.isfinite().all() and logits.isfinite().all()):
            raise FloatingPointError(OVERFLOW)
        return logits

    @staticmethod
    def _spread(logits, rows, batch_size):
        """The logits or features of `rows` as a whole batch, NaN in the rows that hold no picture."""
        if len(rows) == batch_size:
            return logits
        spread = logits.new_full((batch_size, logits.shape[1]), float("nan"))
        spread[rows] = logits
        return spread

    # ------------------------------------------------------------------------------------- where the pictures stand

    def _token_types(self, input_ids):
        """`(batch_size, sequence_length)` ids -> the kind of each token: `TEXT`, `IMAGE` or `VIDEO`."""
        return input_ids.eq(self.config.image_token_id) * IMAGE + input_ids.eq(self.config.video_token_id) * VIDEO

    def _placeholder_ids(self, inputs_embeds):
        """`(batch_size, sequence_length, hidden_size)` embeddings -> ids of the vision tokens, 0 for all text."""
        ids = torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        for token_id in (self.config.vision_start_token_id, self.config.image_token_id, self.config.video_token_id):
            embedding = self.get_input_embeddings()(torch.tensor(token_id, device=inputs_embeds.device))
            ids[inputs_embeds.eq(embedding).all(dim=-1)] = token_id
        return ids

    def _rope_index(self, input_ids, attention_mask, image_grid_thw, video_grid_thw, second_per_grid_ts):
        """The library's positions, `(3, batch_size, sequence_length)`, and rope deltas, `(batch_size, 1)`."""
        return self.model.get_rope_index(
            input_ids,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            second_per_grid_ts=second_per_grid_ts,
            attention_mask=attention_mask,
            **({"mm_token_type_ids": self._token_types(input_ids)} if TAKES_TOKEN_TYPES else {}),
        )

    def _locate_pictures(
        self, token_types, attention_mask, pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw
    ):
        """
        Finds each picture's tokens, and refuses batches in which tokens and pictures do not fit together.

        Returns:
            `list[Picture]`: in the order of the prompts.

        Raises:
            ValueError: if the number of pixels or of placeholder tokens is not what the grids ask for, if a picture's
                placeholders are torn apart, or if `attention_mask` hides them.
        """
        pictures = []
        for modality, pixels, grids, token, name in (
            (IMAGE, pixel_values, image_grid_thw, "<|image_pad|>", "image_grid_thw"),
            (VIDEO, pixel_values_videos, video_grid_thw, "<|video_pad|>", "video_grid_thw"),
        ):
            rows, columns = (index.tolist() for index in token_types.eq(modality).nonzero(as_tuple=True))
            grids = [] if grids is None else grids.tolist()  # (frames, rows, columns) in patches before merging
            num_patches = 0 if pixels is None else pixels.shape[0]
            if num_patches != (num_needed := sum(math.prod(grid) for grid in grids)):
                raise ValueError(
                    f"the pixels hold {num_patches} patches, but {name} {grids} asks for {num_needed}: pass both as "
                    "the processor returned them"
                )
            merge = self.config.vision_config.spatial_merge_size
            shapes = [(frames, height // merge, width // merge) for frames, height, width in grids]
            sizes = [math.prod(shape) for shape in shapes]
            if sum(sizes) != len(rows):
                raise ValueError(
                    f"the prompts hold {len(rows)} {token} tokens, but the {len(grids)} pictures in {name} need "
                    f"{sum(sizes)}: give each picture its placeholders and each placeholder its picture"
                )
            first = 0
            for index, (shape, size) in enumerate(zip(shapes, sizes)):
                last = first + size - 1
                if rows[first] != rows[last] or columns[last] - columns[first] != size - 1:
                    raise ValueError(
                        f"picture {index} in {name} needs {size} {token} tokens in a row, but its placeholders are "
                        "torn apart: the pictures are in another order than their placeholders, or of another size"
                    )
                shape = shape if modality == VIDEO else shape[1:]
                pictures.append(Picture(rows[first], columns[first], size, modality, index, shape))
                first += size
        # A mask that is no tensor of this shape was made by `generate`, which has located the pictures before.
        if isinstance(attention_mask, torch.Tensor) and attention_mask.shape == token_types.shape:
            if bool((attention_mask.eq(0) & token_types.gt(TEXT)).any()):
                raise ValueError("attention_mask is 0 on picture tokens, which would hide part of a picture")
        return sorted(pictures, key=lambda picture: (picture.row, picture.start))

    def _prepare_prefill(self, inputs, kwargs, judge):
        """
        Looks at the arguments of `generate` and corrects, in `kwargs`, what the library would place wrongly.

        Returns:
            [`Prefill`], or `None` if the library needs no help and no verdict is asked for.
        """
        input_ids, inputs_embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        input_ids = inputs if input_ids is None else input_ids
        if input_ids is not None and input_ids.shape[1] > 0:
            picture_ids = input_ids
        elif inputs_embeds is not None:
            picture_ids = self._placeholder_ids(inputs_embeds)
        elif judge:
            raise ValueError("a verdict needs a prompt: pass input_ids or inputs_embeds")
        else:
            return None
        cache = kwargs.get(CACHE)
        cached = 0 if cache is None else int(cache.get_seq_length())
        prefill = Prefill(batch_size=picture_ids.shape[0], cached=cached)
        has_pictures = any(kwargs.get(key) is not None for key in PICTURE_INPUTS)
        token_types = self._token_types(picture_ids)
        if has_pictures and TAKES_TOKEN_TYPES:
            kwargs["mm_token_type_ids"] = token_types
        misplaced = has_pictures and (cached > 0 or inputs_embeds is not None)
        if not (misplaced or judge) or kwargs.get("mm_encoder_outputs"):
            return None
        attention_mask, length = kwargs.get("attention_mask"), token_types.shape[1]
        whole = length > cached and (attention_mask is None or attention_mask.shape[1] == length)
        if cached and (has_pictures or judge) and not whole:
            raise ValueError(
                f"{CACHE} holds {cached} tokens, so input_ids must hold the whole conversation, these and the "
                f"new ones, and attention_mask cover it; got {length} ids: without them no picture can be placed"
            )
        if cached and not has_pictures:
            if judge and bool(token_types[:, cached:].any()):
                raise ValueError("the new tokens hold picture placeholders, but no pixel_values came with them")
            return prefill
        *located, second_per_grid_ts = (kwargs.get(key) for key in PICTURE_INPUTS)
        pictures = self._locate_pictures(token_types, attention_mask, *located)
        if judge:
            prefill.judged = [picture for picture in pictures if picture.start >= cached]
        if not misplaced:
            return prefill
        _, image_grid_thw, _, video_grid_thw = located
        if POSITIONS_IN_GENERATE:
            context = {key: kwargs.get(key) for key in ("attention_mask", "mm_token_type_ids", *PICTURE_INPUTS)}
            kwargs["position_ids"] = self._prepare_position_ids_for_generation(picture_ids, context)
        else:
            prefill.position_ids, prefill.rope_deltas = self._rope_index(
                picture_ids, attention_mask, image_grid_thw, video_grid_thw, second_per_grid_ts
            )
        if cached:
            prefill.pictures = self._new_pictures(pictures, cached, kwargs)
            for key in PICTURE_INPUTS:
                kwargs.pop(key, None)
        return prefill

    def _new_pictures(self, pictures, cached, kwargs):
        """The pixels and grids of the pictures after the first `cached` tokens, `None` where there are none."""
        torn = [picture for picture in pictures if picture.start < cached < picture.start + picture.size]
        if torn:
            raise ValueError(
                f"the kept cache of {cached} tokens ends within a picture; crop it to the picture's start"
            )
        new = dict.fromkeys(PICTURE_INPUTS)
        for modality, pixels, grids in (
            (IMAGE, "pixel_values", "image_grid_thw"),
            (VIDEO, "pixel_values_videos", "video_grid_thw"),
        ):
            kept = sorted(p.index for p in pictures if p.modality == modality and p.start >= cached)
            if kept:
                patches = kwargs[pixels].split(kwargs[grids].prod(dim=-1).tolist())
                new[pixels] = torch.cat([patches[index] for index in kept])
                new[grids] = kwargs[grids][kept]
        return new

    # --------------------------------------------------------------------------------------- what must not be judged

    def _untrained(self):
        """`list[str]`: what is still random: `GUARD` as a whole, then the names of backbone tensors."""
        if self._sums_at_gradient:  # which of them an optimizer has moved is seen in their sums
            parameters = {name: p for name, p in self.named_parameters() if not p.is_meta}  # on meta: offloaded
            moved = {
                name
                for name, total in self._sums_at_gradient.items()
                if name in parameters and total != _total(parameters[name])
            }
            self._unloaded = self._unloaded - moved
            self._sums_at_gradient = {
                name: total for name, total in self._sums_at_gradient.items() if name not in moved
            }
        return ([] if self.img_safety_head.is_trained() else [GUARD]) + sorted(self._unloaded)

    def _refusal(self, guard=True):
        """`str` or `None`: why a verdict of these weights, or without the `guard` its features, would be random."""
        names = self._untrained()
        if GUARD in names and guard:
            return "the guard (img_safety_head) was neither loaded nor trained for these categories"
        if names := [name for name in names if name != GUARD]:
            return f"{len(names)} tensors of the backbone were neither loaded nor trained, e.g. {', '.join(names[:3])}"
        return None

    def _refuse_unless_ready(self):
        if self.training:
            raise RuntimeError(
                "in training mode dropout makes verdicts random: call model.eval() first; in a training step pass "
                "safety_labels, and the logits come with the loss"
            )
        if refusal := self._refusal():
            raise RuntimeError(
                f"SafeQwen cannot judge with these weights: {refusal}. Load a complete SafeQwen checkpoint with "
                "from_pretrained (its base first and then an adapter), or train the guard with safety_labels."
            )

    def _check_labels(self, name, labels, num_expected, judged):
        num_categories = self.config.num_safety_categories
        if not isinstance(labels, torch.Tensor) or labels.dtype not in (torch.long, torch.int):
            got = getattr(labels, "dtype", type(labels).__name__)
            raise ValueError(f"{name} must be a tensor of integers (torch.long), got {got}")
        if labels.shape != (num_expected,):
            raise ValueError(
                f"{name} must have one label for each of the {num_expected} {judged}, got shape {tuple(labels.shape)}"
            )
        for label in labels.tolist():
            if label != -100 and not 0 <= label < num_categories:
                raise ValueError(
                    f"{name} holds {label}, but the config has {num_categories} categories "
                    f"(0-{num_categories - 1}, or -100 for none); was the data labelled with another taxonomy?"
                )

    @staticmethod
    def _check_granularity(granularity):
        if granularity not in ("prompt", "image", "patch"):
            raise ValueError(f"granularity must be 'prompt', 'image' or 'patch', got {granularity!r}")

    def _check_threshold(self, safety_threshold, eos_token_id, granularity):
        is_number = isinstance(safety_threshold, (int, float)) and not isinstance(safety_threshold, bool)
        if not is_number or not 0 <= safety_threshold <= 1:
            raise ValueError(f"safety_threshold must be a probability in [0, 1], got {safety_threshold!r}")
        if "safe" not in self.config.safety_categories:
            raise ValueError(
                "safety_threshold is compared with 1 - p(safe), but no category is named 'safe': "
                f"{self.config.safety_categories}"
            )
        if granularity == "patch":
            raise ValueError("safety_threshold judges prompts or images, not patches: pass granularity='image'")
        if eos_token_id is None:
            raise ValueError("safety_threshold ends flagged answers with eos_token_id, but none is set: pass one")

    def _generation_setting(self, name, generation_config, kwargs):
        sources = (
            kwargs.get(name),
            getattr(generation_config, name, None),
            getattr(self.generation_config, name, None),
        )
        return next((value for value in sources if value is not None), None)

    def _note_gradient(self, gradient):
        """Remembers the random tensors as they are when training begins."""
        for name, parameter in self.named_parameters():
            if name in self._unloaded and name not in self._sums_at_gradient:
                if parameter.requires_grad and not parameter.is_meta:
                    self._sums_at_gradient[name] = _total(parameter)

    # ---------------------------------------------------------------------------------------------- loading and saving

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        """
        As the library's; what the checkpoint lacked is remembered, and the model refuses to judge with it.

        A `quantization_config` that is given here is applied to everything but the guard and `lm_head`.
        """
        kwargs["output_loading_info"] = True
        config = kwargs.get("config")
        if type(config).__name__ == "Qwen2_5_VLConfig":  # from AutoConfig or `pipeline` without remote code
            kwargs["config"] = cls.config_class.from_dict(config.to_dict())
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = _sparing(kwargs["quantization_config"])
        elif kwargs.get("load_in_8bit") or kwargs.get("load_in_4bit"):  # transformers 4.x
            kwargs["llm_int8_skip_modules"] = _with_unquantized(kwargs.get("llm_int8_skip_modules"))
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except RuntimeError as error:
            if "mismatch" not in str(error):
                raise
            kwargs["ignore_mismatched_sizes"] = True  # to name the tensors, which the library does not
            model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            differing = ", ".join(
                f"{name} (by the config {tuple(model.get_parameter(name).shape)})" for name in _mismatched(info)
            )
            raise RuntimeError(
                f"weights and config of {pretrained_model_name_or_path} contradict each other: {differing}. The guard "
                "(img_safety_head) has one column for each of the config's safety_categories: correct the config, or "
                "start a new guard, which then needs training, with ignore_mismatched_sizes=True."
            ) from error
        untrained = {*info["missing_keys"], *_mismatched(info), *model.config.safety_untrained}
        untrained |= {name for name in info["unexpected_keys"] if name.startswith(GUARD)}
        if getattr(model, "_hf_peft_config_loaded", False):
            untrained.add(GUARD)  # transformers 5.x then tells what the adapter lacked, not what its base lacked
        elif pretrained_model_name_or_path is not None:
            # The columns mean what the guard's own config says, whatever config it is loaded under.
            options = {option: kwargs[option] for option in HUB_OPTIONS if option in kwargs}
            saved, _ = cls.config_class.get_config_dict(pretrained_model_name_or_path, **options)
            if cls.config_class.from_dict(saved).safety_categories != model.config.safety_categories:
                untrained.add(GUARD)
        for name in GUARD_FIELDS:  # fields of the config that are given here are left in the other configuration, too
            vars(model.generation_config).pop(name, None)
        for head in model._guards():
            head.trained = not any(name.startswith(GUARD) for name in untrained)
        model._unloaded = {name for name in untrained if not name.startswith(GUARD)}
        return (model, info) if output_loading_info else model

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # `save_pretrained` writes the released names, and Trainer resumes by load_state_dict(strict=False): without
        # this it would take the guard of the checkpoint and leave the backbone as it is.
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key.removeprefix(prefix)
            if name.startswith("visual."):
                state_dict[f"{prefix}model.{name}"] = state_dict.pop(key)
            elif name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
                state_dict[f"{prefix}model.language_{name}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)
        parameters = dict(self.named_parameters())
        self._unloaded = {name for name in self._unloaded if not _fits(state_dict, prefix, name, parameters.get(name))}

    def load_adapter(self, *args, **kwargs):
        """As the library's; an adapter's guard judges if it was trained, whatever the guard that it replaces."""
        before = {id(head) for head in self._guards()}
        info = super().load_adapter(*args, **kwargs)
        base = self._guards()[0].mlp[-1].bias
        for head in self._guards():
            if id(head) in before:
                continue
            bias = head.mlp[-1].bias  # transformers 5.x does not load it through load_state_dict
            if bias.is_meta or base.is_meta or not torch.equal(bias, base.to(bias.device)):
                head.trained = _looks_trained(bias)
        return info

    def enable_adapters(self):
        """As the library's, which would leave a disabled adapter's guard off and turn only its LoRA on."""
        super().enable_adapters()
        if not isinstance(self.img_safety_head, SafetyHead):
            self.img_safety_head.enable_adapters(enabled=True)

    def _guards(self):
        """`list[SafetyHead]`: the model's own guard, then those of its adapters."""
        return [module for module in self.modules() if isinstance(module, SafetyHead)]

    def save_pretrained(self, *args, **kwargs):
        """As the library's; which tensors are still random is saved with them, and they do not judge when loaded."""
        before = self.config.safety_untrained
        self.config.safety_untrained = self._untrained()
        try:
            return super().save_pretrained(*args, **kwargs)
        finally:
            self.config.safety_untrained = before  # the config may be shared with other models

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, **kwargs):
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        model_kwargs.pop("prefill", None)  # the steps after the prefill are the library's own
        return model_kwargs

    def _get_candidate_generator(self, *args, model_kwargs, **kwargs):
        # An assistant model gets the arguments that this one got, but it is not the one that judges.
        model_kwargs = dict(model_kwargs)
        prefill, cache = model_kwargs.pop("prefill", None), model_kwargs.get(CACHE)
        cached = cache is not None and cache.get_seq_length() > 0
        if prefill is not None and (cached or model_kwargs.get("inputs_embeds") is not None):
            # Stock's text is then another one on transformers 5.x, and 4.57 crashes.
            raise ValueError(
                "assisted decoding (assistant_model, prompt_lookup_num_tokens) needs the whole prompt as input_ids, "
                f"but {CACHE + ' that holds a part of it' if cached else 'inputs_embeds'} came: leave them out"
            )
        return super()._get_candidate_generator(*args, model_kwargs=model_kwargs, **kwargs)


def _moved(value, device):
    # Nothing is done to what is there already, so that a compiled decode step is stock's.
    return value.to(device) if isinstance(value, torch.Tensor) and value.device != device else value


def _refuse_safety_labels(module, args, kwargs):
    """Stands before the backbone, which would take the labels and ignore them."""
    if kwargs.get("safety_labels") is not None or kwargs.get("picture_categories") is not None:
        raise ValueError(
            "safety_labels came to the backbone past SafeQwen's forward, which computes their loss: this trainer "
            "(TRL's SFTTrainer, for one) has a loss of its own and would leave the guard untrained; use "
            "transformers.Trainer"
        )


def _fits(state_dict, prefix, name, parameter):
    """Whether the state dict holds the parameter, in its shape."""
    tensor = state_dict.get(prefix + name)
    return tensor is not None and parameter is not None and tensor.shape == parameter.shape


def _looks_trained(bias):
    """
    Whether a guard with this last bias was trained: it starts with zeros, which the first step moves.

    Nothing else tells the guard of an adapter that was never trained from one that was.
    """
    return not bias.is_meta and bool(bias.any())


def _total(parameter):
    """A float that changes when the parameter is trained."""
    return parameter.detach().double().sum().item()


def _with_unquantized(skipped):
    """`list[str]`: the names of `skipped` modules, with those that are never quantised."""
    return [*(skipped or ()), *(name for name in UNQUANTIZED if name not in (skipped or ()))]


def _sparing(quantization_config):
    """A copy of the quantisation config that leaves the guard and `lm_head` in full precision."""
    if isinstance(quantization_config, dict):
        quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
    sparing = copy.deepcopy(quantization_config)
    # The names of most quantisers, of bitsandbytes and of HQQ; GPTQ has none and quantises decoder layers only.
    for name in ("modules_to_not_convert", "llm_int8_skip_modules", "skip_modules"):
        if hasattr(sparing, name):
            setattr(sparing, name, _with_unquantized(getattr(sparing, name)))
    return sparing


def _mismatched(loading_info):
    """Names of the tensors whose shapes differ; transformers 5.x lists them with both shapes, 4.x without."""
    return sorted(entry if isinstance(entry, str) else entry[0] for entry in loading_info["mismatched_keys"])


SafeQwen2_5_VLForConditionalGeneration._register_renames()

__all__ = ["SafeQwen2_5_VLForConditionalGeneration"]
