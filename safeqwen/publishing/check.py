"""`safeqwen check`: whether a published folder loads, judges and answers, and says what its training run said.

How far merged weights may move the logits: rounding a weight makes a relative error of at most u, 2^-11 in float16 and
2^-8 in bfloat16. The errors of a matrix's entries are independent, so that its output is off by about u / sqrt(3).
The layers' errors are independent, too: they add up in quadrature, as their outputs do in the residual stream, so that
the relative error stays at a few u for any number of layers. Measured on the demo and on random Qwen2.5-VLs of 2 + 2,
3 + 4 and 28 + 32 layers, relative to the largest logit: 0.1 u to 2.6 u, without a trend. Allowed are 8 u: 0.4 % in
float16 and 3 % in bfloat16. A merge that loses LoRA is off by as much as LoRA moved the logits; the check says how
much that is.
"""

import ast
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from huggingface_hub import ModelCard
from peft import PeftModel
from PIL import Image, ImageDraw
from safetensors import safe_open
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from safeqwen.fingerprint import weights_fingerprint
from safeqwen.hub import CODE_FILES
from safeqwen.hub.configuration_safeqwen import AUTO_MAP
from safeqwen.hub.guard_safeqwen import GUARD
from safeqwen.hub.modeling_safeqwen import SafeQwen2_5_VLForConditionalGeneration
from safeqwen.judging.policy import POLICY_FILE, SafetyPolicy
from safeqwen.loading import refuse_two_saves
from safeqwen.pictures import UnreadableImage, read_image
from safeqwen.prompt import chat_prompt, prompt_ids
from safeqwen.publishing.evaluations import check_weights_of, eval_results
from safeqwen.publishing.export import RECORD
from safeqwen.publishing.model_card import front_matter
from safeqwen.publishing.record import load_run_model, read_run


QUESTION = "What is in this picture?"
DIGEST = "categories_digest"  # of the guard: bytes that are no weights
VIEW = "AutoModelForImageClassification"  # knows pictures only, and takes no prompt
IMPORTS = {"torch", "transformers"}
IMPORTS |= {"collections", "copy", "dataclasses", "functools", "hashlib", "inspect", "math", "pathlib", "typing"}
CARD_FIELDS = ("license", "library_name", "pipeline_tag", "tags")
ROUNDING = {"F16": 2**-11, "BF16": 2**-8, "F32": 2**-18}  # for F32 what float32 arithmetic adds up to, generously
ALLOWED_ROUNDINGS = 8
SAME = 1e-4  # how far two ways to one number may differ in float32
AGAIN = "export the run again"


@dataclass
class Finding:
    """What came of one check: whether it passed, and what was found, or the reason and the remedy."""

    name: str
    passed: bool
    detail: str


class CheckFailed(Exception):
    """The reason and the remedy."""


def check(folder, run=None, image=None, device="cpu"):
    """Yields a [`Finding`] for each check of a folder that `safeqwen export` wrote.

    The folder's code is run only if it is this package's own. One model is held at a time, in float32.

    Args:
        folder (`str` or `os.PathLike`)
        run (`str` or `os.PathLike`, *optional*): the run that it was made of, to compare with.
        image (`str` or `os.PathLike`, *optional*): the picture to judge; by default a drawn house.
        device (`str` or `torch.device`, *optional*): where the models run.

    Raises:
        ValueError: before anything is checked, if `folder` is no model's, `run` is no finished run, or the image
            cannot be read.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        adapter = "; it holds an adapter, which PeftModel.from_pretrained loads onto its base"
        raise ValueError(
            f"{folder} is no model's folder, having no config.json"
            + (adapter if (folder / "adapter_config.json").exists() else "")
        )
    if run is not None:
        read_run(run)
    try:
        pictures = [draw_house()] if image is None else read_image(image)
    except UnreadableImage as error:
        raise ValueError(str(error)) from error
    return _findings(_Published(folder, run, pictures, torch.device(device)))


def draw_house():
    """Returns a house on light ground (`PIL.Image`, RGB, 224 x 224 pixels): something to judge."""
    picture = Image.new("RGB", (224, 224), "lightcyan")
    brush = ImageDraw.Draw(picture)
    brush.rectangle((56, 104, 168, 190), fill="khaki", outline="black", width=4)
    brush.polygon(((36, 104), (112, 36), (188, 104)), fill="firebrick", outline="black", width=4)
    brush.rectangle((96, 140, 126, 190), fill="black")
    return picture


def _findings(published):
    checks = [
        ("code", published.check_code),
        ("categories", published.check_categories),
        ("AutoProcessor", published.check_processor),
        (SafeQwen2_5_VLForConditionalGeneration.__name__, published.check_weights),
        ("verdict", published.check_verdict),
        ("answer", published.check_answer),
        *(
            (route, partial(published.check_view if route == VIEW else published.check_auto_class, route))
            for route in AUTO_MAP
            if route.startswith("AutoModel") and hasattr(transformers, route)
        ),
        (Qwen2_5_VLForConditionalGeneration.__name__, published.check_plain),
        ("model card", published.check_card),
    ]
    if (published.folder / POLICY_FILE).exists():
        checks.append(("policy", published.check_policy))
    if published.run is not None:
        checks.append(("run", published.check_run))
    for name, function in checks:
        try:
            yield Finding(name, True, function())
        except Exception as error:  # whatever a library raises for a folder that is broken in its own way
            yield Finding(name, False, " ".join(str(error).split()) or type(error).__name__)


class _Published:
    """The folder under test. Each check returns what it found, or raises."""

    def __init__(self, folder, run, pictures, device):
        self.folder, self.run, self.pictures, self.device = folder, run, pictures, device
        self.code_is_ours = False
        self.processor = self.inputs = None
        self.model = None  # until the checks that need it are done
        self.logits = self.safety_logits = None  # (1, sequence, vocabulary), (1, categories)
        self.picture_logits = None  # (pictures, categories)

    def check_code(self):
        found = {file.name for file in self.folder.glob("**/*.py")}
        ours = {file.name for file in CODE_FILES}
        if found != ours:
            raise CheckFailed(f"the code files are {sorted(found)}, not {sorted(ours)}: {AGAIN}")
        for file in CODE_FILES:
            code = (self.folder / file.name).read_bytes()
            if foreign := sorted(_imported(code) - IMPORTS):
                raise CheckFailed(
                    f"{file.name} imports {', '.join(foreign)}, which whoever loads it may not have; it should need "
                    f"nothing but torch and transformers: {AGAIN}"
                )
            if code != file.read_bytes():
                raise CheckFailed(
                    f"{file.name} differs from that of the installed safeqwen: {AGAIN}, or check with the version "
                    "that wrote it"
                )
        auto_map = self._config().get("auto_map") or {}
        if not auto_map.items() >= AUTO_MAP.items():  # further entries are the folder's own
            raise CheckFailed(f"the auto_map of config.json is {auto_map}; expected were {AUTO_MAP}: {AGAIN}")
        self.code_is_ours = True
        return f"{len(CODE_FILES)} files, those of the installed safeqwen"

    def check_categories(self):
        names = self._config().get("safety_categories")
        if names is None:
            raise CheckFailed(f"config.json names no safety_categories: {AGAIN}")
        records = {file: json.loads(file.read_text(encoding="utf-8")) for file in self._records() if file.exists()}
        for file, record in records.items():
            if record["safety_categories"] != names:
                raise CheckFailed(
                    f"config.json names {names}, but {file.name} says that the run trained "
                    f"{record['safety_categories']}: {AGAIN}"
                )
        return f"{len(names)}" + ("" if records else f"; no {RECORD} to compare them with")

    def _records(self):
        return [self.folder / RECORD, *([] if self.run is None else [Path(self.run) / "run.json"])]

    def check_processor(self):
        for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
            if not (self.folder / name).exists():
                raise CheckFailed(f"there is no {name}, which transformers 4.x needs: use safeqwen's save_processor")
        self.processor = AutoProcessor.from_pretrained(self.folder)
        text = chat_prompt(self.processor, len(self.pictures), QUESTION, add_generation_prompt=True)
        inputs = self.processor(text=[text], images=self.pictures, return_tensors="pt").to(self.device)
        image_token = self._config().get("image_token_id")
        num_tokens = int((inputs["input_ids"] == image_token).sum())
        expected = sum(inputs["image_grid_thw"].prod(dim=-1).tolist()) // self.processor.image_processor.merge_size**2
        if num_tokens != expected:
            raise CheckFailed(
                f"the prompt has {num_tokens} tokens {image_token} (image_token_id of config.json), but its pictures "
                f"are {expected}: is it the processor of another model?"
            )
        self._check_prompt()
        self.inputs = inputs
        return f"{len(self.pictures)} x {expected // len(self.pictures)} picture tokens"

    def _check_prompt(self):
        """The token ids that config.json keeps for those who judge without a processor are this processor's."""
        ids = prompt_ids(self.processor)
        named = self._config().get("safety_prompt_ids", ids)
        if named != ids:
            raise CheckFailed(
                f"config.json has the safety_prompt_ids {named}, but those of the processor's prompt are {ids}: "
                f"{AGAIN}"
            )

    def check_weights(self):
        refuse_two_saves(self.folder)
        self._check_columns()
        model, info = SafeQwen2_5_VLForConditionalGeneration.from_pretrained(
            self.folder, dtype=torch.float32, output_loading_info=True
        )
        self.model = model.to(self.device).eval()
        for what in ("missing", "unexpected"):
            if names := sorted(info[f"{what}_keys"]):
                raise CheckFailed(f"{len(names)} tensors are {what}, e.g. {', '.join(names[:3])}: {AGAIN}")
        for name, parameter in model.named_parameters():
            if not parameter.isfinite().all():
                raise CheckFailed(f"{name} is not finite: {AGAIN}, or train it again")
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        return f"{num_parameters:,} parameters in {'/'.join(sorted(self._dtypes()))}"

    def _check_columns(self):
        shapes = {name: shape for name, (_, shape) in self._stored().items() if name.startswith(f"{GUARD}.mlp.")}
        names = self._config().get("safety_categories")
        if shapes and names is not None:
            num_columns = shapes[max(shapes, key=lambda name: int(name.split(".")[2]))][0]
            if num_columns != len(names):
                raise CheckFailed(f"config.json names {len(names)}, but the guard has {num_columns} columns: {AGAIN}")

    def check_verdict(self):
        model, inputs = self._needed(self.model), self._needed(self.inputs)
        logits, safety_logits = _judged(model, inputs)
        probs = model.guard(**inputs).img_safety_probs
        generated = model.generate(
            **inputs, do_safety=True, return_dict_in_generate=True, max_new_tokens=1, do_sample=False
        ).img_safety_probs
        categories = model.config.safety_categories
        if probs.shape != (1, len(categories)):
            raise CheckFailed(f"the verdict has the shape {tuple(probs.shape)}, not {(1, len(categories))}: {AGAIN}")
        if not probs.isfinite().all() or probs.min() < 0 or abs(probs.sum() - 1) > SAME:
            raise CheckFailed(f"the verdict is no probabilities, finite and with the sum 1: {probs.tolist()}: {AGAIN}")
        for name, other in (("forward", safety_logits.softmax(dim=-1)), ("generate", generated)):
            if _distance(other, probs) > SAME:
                raise CheckFailed(f"guard gives {probs.tolist()}, but {name} {other.tolist()}: please report this")
        self.logits, self.safety_logits = logits, safety_logits
        self.picture_logits = model.guard(**inputs, granularity="image").img_safety_logits
        score, label = probs[0].max(dim=0)
        return f"{categories[label]} {score:.1%}, one from guard, forward and generate"

    def check_answer(self):
        model, inputs = self._needed(self.model), self._needed(self.inputs)
        self.model = None  # the last to use it
        output = model.generate(
            **inputs, do_safety=True, return_dict_in_generate=True, max_new_tokens=32, do_sample=False
        )
        tokens = output.sequences[0, inputs["input_ids"].shape[1] :]
        if not len(tokens):
            raise CheckFailed(f"generate added no token to {QUESTION!r}")
        return f"{QUESTION} {self.processor.decode(tokens, skip_special_tokens=True)!r}"

    def check_auto_class(self, route):
        logits, safety_logits = _judged(self._load_by(route), self._needed(self.inputs))
        self._compare(logits, safety_logits, SAME, f"another model when loaded by {route}: please report this")
        return "the same logits and verdict"

    def _load_by(self, route):
        if not self.code_is_ours:
            raise CheckFailed("not tried: the folder's code is not the package's, and is not run here")
        model = getattr(transformers, route).from_pretrained(self.folder, trust_remote_code=True, dtype=torch.float32)
        if type(model).__module__ == SafeQwen2_5_VLForConditionalGeneration.__module__:
            raise CheckFailed(f"it loaded the installed package's class, not that of the folder: {AGAIN}")
        return model.to(self.device).eval()

    def check_view(self, route):
        model = self._load_by(route)
        inputs, grid = self._needed(self.inputs), self._needed(self.inputs)["image_grid_thw"][:1]
        with torch.no_grad():
            logits = model(pixel_values=inputs["pixel_values"][: grid.prod()], image_grid_thw=grid).logits
        names = [model.config.id2label[i] for i in range(len(model.config.id2label))]
        if names != model.config.safety_categories:
            raise CheckFailed(
                f"its id2label is {names}, but its safety_categories are {model.config.safety_categories}: {AGAIN}"
            )
        distance = _distance(logits, self._needed(self.picture_logits)[:1])
        if not distance <= SAME:  # NaN neither
            raise CheckFailed(f"the first picture's verdict differs by {distance:.2%}: please report this")
        return "the same verdict, from the picture alone"

    def check_plain(self):
        model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            self.folder, dtype=torch.float32, output_loading_info=True
        )
        if missing := sorted(info["missing_keys"]):
            raise CheckFailed(f"{len(missing)} tensors are missing, e.g. {', '.join(missing[:3])}: {AGAIN}")
        with torch.no_grad():
            logits = model.to(self.device).eval()(**self._needed(self.inputs)).logits
        self._compare(logits, None, SAME, "another text when loaded as plain Qwen2.5-VL: please report this")
        return "the same logits"

    def check_card(self):
        file = self.folder / "README.md"
        if not file.exists():
            raise CheckFailed(f"there is no README.md: {AGAIN}")
        fields = front_matter(file.read_text(encoding="utf-8"))
        if missing := [field for field in CARD_FIELDS if not fields.get(field)]:
            raise CheckFailed(f"the front matter of README.md lacks {', '.join(missing)}: add them")
        note = "; name the licence before you publish" if fields["license"] == "unknown" else ""
        num_figures = self._check_figures(file)
        figures = f", {num_figures} figures of these weights" if num_figures else ""
        return f"license {fields['license']}, base {fields.get('base_model', 'not on the Hub')}{figures}{note}"

    def _check_figures(self, card):
        """The number of figures that the Hub shows, all of which the record holds as measured on these weights."""
        record = self.folder / RECORD
        recorded = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        evaluations = recorded.get("evaluations", [])
        shown = ModelCard.load(card, ignore_metadata_errors=False).data.eval_results or []
        if evaluations:
            check_weights_of(evaluations, weights_fingerprint(self.folder))
        if shown != eval_results(evaluations):
            raise CheckFailed(
                f"the model-index of README.md shows {len(shown)} figures, which are not those that {RECORD} holds as "
                f"evaluations: {AGAIN} with --evaluation"
            )
        return len(shown)

    def check_policy(self):
        names = self._config().get("safety_categories")
        policy = SafetyPolicy.load(self.folder, names, weights_fingerprint(self.folder))
        fitted = "fitted to these weights" if policy.model else "fitted to no particular weights"
        return f"mode {policy.mode}, unsafe from {policy.unsafe_threshold:g}, {fitted}"

    def check_run(self):
        rounding = max(ROUNDING[dtype] for dtype in self._dtypes())
        model = load_run_model(self.run, dtype=torch.float32)
        model, inputs = model.to(self.device).eval(), self._needed(self.inputs)
        logits, safety_logits = _judged(model, inputs)
        effect = ""
        if isinstance(model, PeftModel):
            with model.disable_adapter(), torch.no_grad():
                effect = f"; LoRA moved the logits by {_distance(model(**inputs).logits, logits):.2%}"
        allowed = ALLOWED_ROUNDINGS * rounding
        distance = self._compare(logits, safety_logits, allowed, f"not the run, unmerged{effect}: {AGAIN}")
        return f"logits and verdict within {distance:.3%} of the unmerged run's, {allowed:.2%} is rounding{effect}"

    def _compare(self, logits, safety_logits, allowed, reason):
        """The largest distance (`float`) to the folder's logits and verdict; at most `allowed`."""
        distance = _distance(self._needed(self.logits), logits)
        if safety_logits is not None:
            distance = max(distance, _distance(self.safety_logits, safety_logits))
        if not distance <= allowed:  # NaN neither
            raise CheckFailed(f"logits or verdict differ by {distance:.2%}, {allowed:.2%} allowed: {reason}")
        return distance

    def _config(self):
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))

    def _dtypes(self):
        """`set[str]`: what the tensors of the folder are stored as, e.g. `{"F16"}`."""
        dtypes = {dtype for name, (dtype, _) in self._stored().items() if not name.endswith(DIGEST)}
        if not dtypes or dtypes - ROUNDING.keys():
            raise CheckFailed(f"the weights are {sorted(dtypes)}, expected {', '.join(ROUNDING)}: {AGAIN}")
        return dtypes

    def _stored(self):
        """`{name: (dtype, shape)}` of the tensors in the folder's files, e.g. `("F16", [20, 1792])`."""
        stored = {}
        for file in self.folder.glob("*.safetensors"):
            with safe_open(file, "pt") as tensors:
                slices = {name: tensors.get_slice(name) for name in tensors.keys()}
                stored |= {name: (tensor.get_dtype(), tensor.get_shape()) for name, tensor in slices.items()}
        return stored

    @staticmethod
    def _needed(value):
        if value is None:
            raise CheckFailed("not tried: a check above failed")
        return value


@torch.no_grad()
def _judged(model, inputs):
    """The logits of all tokens, and of the guard."""
    output = model(**inputs, do_safety=True)
    return output.logits, output.img_safety_logits


def _distance(tensor, other):
    """The largest difference (`float`), as a share of the largest value of `other`, or of 1 if that is smaller.

    A softmax turns a difference into one of probabilities as it stands, so that small logits need be no more exact.
    """
    return float((tensor - other).abs().max() / other.abs().max().clamp(min=1))


def _imported(code):
    """The top-level modules (`set[str]`) that Python code imports, but for the files beside it."""
    modules = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.add(node.module.split(".")[0])
    return modules
