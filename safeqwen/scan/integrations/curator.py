"""
NeMo Curator: a stage that judges the pictures of an `ImageBatch` and drops those that are to be blocked.

It reads `ImageObject.image_data`, and writes the verdict to `ImageObject.metadata["safeqwen"]`, a `dict` of types that
JSON gives back unchanged:

    label               str    the likeliest category; null if there is an error, like all below but the fingerprints
    score               float  its probability in [0, 1]
    unsafe              float  1 - p(safe) in [0, 1]; null without a category "safe"
    scores              dict   category -> the model's own probability (not calibrated), in the model's order
    frames              int    how many views were judged: 2 for an array with an alpha channel that looks different on
                               white and on black paper; `scores` are those of the less safe one
    decision            dict   `Decision.to_dict()` of the policy; null without a policy
    error               str    why there is no verdict; null if there is one
    model_fingerprint   str    of the weights ([`safeqwen.fingerprint.weights_fingerprint`])
    policy_fingerprint  str    sha256 of the policy's JSON; null without one
"""

import logging
import os
from dataclasses import dataclass, replace

import numpy as np
import torch

from safeqwen.fingerprint import weights_fingerprint
from safeqwen.judging.load import load
from safeqwen.judging.pipeline import SafetyPipeline
from safeqwen.judging.policy import SafetyPolicy
from safeqwen.pictures import UnreadableImage
from safeqwen.scan.rows import policy_fingerprint


try:
    from nemo_curator.stages.base import ProcessingStage
    from nemo_curator.stages.resources import Resources
    from nemo_curator.tasks import ImageBatch
except ModuleNotFoundError as error:
    raise ImportError(f"{__name__} needs {error.name}: pip install nemo-curator") from error


logger = logging.getLogger(__name__)

KEY = "safeqwen"  # in `ImageObject.metadata`


@dataclass
class SafetyFilterStage(ProcessingStage[ImageBatch, ImageBatch]):
    """
    Judges each picture of a batch. Like Curator's own filters it returns a batch of those that pass.

    A picture is dropped if the policy's action is "block"; without a policy, if its unsafe probability is 0.5 or more.
    One that cannot be judged is never taken for safe: it is dropped too, and a warning says why. With `drop=False` all
    pictures stay, and `metadata` tells them apart.

    Args:
        model (`str` or `os.PathLike`): a folder or Hub repository, which every worker loads by [`safeqwen.load`].
        policy ([`SafetyPolicy`], `str` or `os.PathLike`, *optional*): decides; a policy, or the path of its file or
            folder. By default the one that lies beside the weights, if there is one.
        drop (`bool`): whether pictures are dropped.
        max_pixels (`int`, *optional*): larger pictures are shrunk to this many, by default to the processor's bound.
        model_inference_batch_size (`int`): pictures a forward, at most.
        num_threads (`int`): threads of a worker that prepare pictures while others are judged.
        num_gpus_per_worker (`float`, *optional*): GPUs, or the part of one, that a worker takes. By default one
            if this process sees a GPU, else none.
        name (`str`): of the stage.

    Raises:
        ValueError, OSError, RuntimeError: by `setup` and `process`, as [`safeqwen.load`] and a call of
            [`SafetyPipeline`] raise them: what is wrong with the model or the policy fails the pipeline.
    """

    model: str | os.PathLike
    policy: SafetyPolicy | str | os.PathLike | None = None
    drop: bool = True
    max_pixels: int | None = None
    model_inference_batch_size: int = 16
    num_threads: int = 4
    num_gpus_per_worker: float | None = None
    name: str = "image_safety_filter"

    def __post_init__(self):
        if self.num_gpus_per_worker is None:
            self.num_gpus_per_worker = float(torch.cuda.is_available())
        self.resources = Resources(gpus=self.num_gpus_per_worker)

    def inputs(self):
        return ["data"], []

    def outputs(self):
        return ["data"], []

    def setup(self, worker_metadata=None):
        """Loads the model; called once in each worker."""
        model, processor = load(self.model)
        self._judge = SafetyPipeline(
            model,
            processor,
            policy=self.policy or model.safety_policy,
            max_pixels=self.max_pixels,
            batch_size=self.model_inference_batch_size,
            num_workers=self.num_threads,
        )
        self._fingerprints = {
            "model_fingerprint": weights_fingerprint(self.model),
            "policy_fingerprint": policy_fingerprint(self._judge.settings.policy),
        }

    def process(self, task: ImageBatch) -> ImageBatch:
        """Returns the batch with the pictures that pass, all with their verdicts."""
        verdicts = self._judge.verdicts(picture_of(image) for image in task.data)
        passed, num_errors = [], 0
        for image, verdict in zip(task.data, verdicts, strict=True):
            fields = verdict.to_dict()
            del fields["image"]
            image.metadata[KEY] = fields | self._fingerprints
            if verdict.error is not None:
                num_errors += 1
                logger.warning("%s: not judged: %s", image.image_id or image.image_path, verdict.error)
            if not self.drop or passes(verdict):
                passed.append(image)
        self._log_metrics({"num_dropped": len(task.data) - len(passed), "num_errors": num_errors})
        return replace(task, data=passed)


def picture_of(image):
    """Returns the pixels (`np.ndarray`) of an `ImageObject`, or why there are none (`UnreadableImage`)."""
    if isinstance(image.image_data, np.ndarray):
        return image.image_data
    return UnreadableImage(
        f"image_data must be a NumPy array (height, width, channels), got {type(image.image_data).__name__}: put the "
        "stage after the one that reads the pictures, and before those that remove image_data"
    )


def passes(verdict):
    """Returns whether a filter lets a picture pass (`bool`), by its [`Verdict`]; not if there is an error."""
    if verdict.error is not None:
        return False
    if verdict.decision is not None:
        return verdict.decision.action != "block"
    return not verdict.flagged
