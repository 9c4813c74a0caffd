"""Frames of videos, taken evenly over the whole clip."""

import os

import numpy as np
import torch

from safeqwen.data.sources import load_picture


def load_video(source, fps=2.0, max_frames=32):
    """
    Returns frames of a video and how many of them make a second: `(uint8 tensor (frames, 3, height, width), float)`.

    Args:
        source (`str` or `list`): a file that PyAV decodes, or the frames themselves, as pictures of one size.
        fps (`float`): frames to take a second; of a list, how many of its frames made a second.
        max_frames (`int`): at most this many, evenly spaced over the whole clip.

    Raises:
        ValueError: if the video cannot be read.
    """
    if isinstance(source, list):
        frames = [np.asarray(load_picture(frame)) for frame in source]
        if len({frame.shape for frame in frames}) != 1:
            raise ValueError("a video needs one or more frames, all of one size")
        kept = np.linspace(0, len(frames) - 1, min(len(frames), max_frames)).round().astype(int)
        return torch.from_numpy(np.stack([frames[i] for i in kept])).movedim(-1, 1), fps * len(kept) / len(frames)

    from transformers.video_utils import load_video as decode

    if not isinstance(source, str) or not os.path.isfile(source):
        raise ValueError(f"{source}: there is no such video file; a video is a file here, or a list of pictures")

    def sample(metadata, **kwargs):
        total, rate = metadata.total_num_frames, metadata.fps
        return np.linspace(0, total - 1, min(max(round(total / rate * fps), 2), max_frames, total)).round().astype(int)

    try:
        frames, metadata = decode(source, backend="pyav", sample_indices_fn=sample)
    except ImportError as error:
        raise ImportError("videos need PyAV: pip install av, or give a video as a list of pictures") from error
    except Exception as error:  # of whatever kind the decoder raises
        raise ValueError(f"{source}: cannot be read as a video ({error}); convert it to MP4") from error
    if len(frames) < len(metadata.frames_indices):
        raise ValueError(f"{source}: ends before its last frame; get the whole file anew, or convert it to MP4")
    return torch.from_numpy(frames).movedim(-1, 1), len(frames) * metadata.fps / metadata.total_num_frames
