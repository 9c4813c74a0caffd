"""Frames of videos."""

import numpy as np
import torch
from chats import noise, write_video

from safeqwen.data.video import load_video


def test_frames_are_taken_evenly_over_the_whole_clip(tmp_path):
    write_video(tmp_path / "clip.mp4", 40, rate=8)  # 5 seconds
    frames, fps = load_video(str(tmp_path / "clip.mp4"), fps=2.0)
    assert frames.shape == (10, 3, 48, 64) and frames.dtype == torch.uint8
    assert fps == 2.0
    # 10 of 0, 1, ..., 39, from first to last; frame i has the grey 5 * i
    greys = frames.float().mean(dim=(1, 2, 3))
    assert (greys - 5 * torch.tensor([0, 4, 9, 13, 17, 22, 26, 30, 35, 39])).abs().max() < 4
    frames, fps = load_video(str(tmp_path / "clip.mp4"), fps=2.0, max_frames=4)
    assert len(frames) == 4 and fps == 4 / 5


def test_frames_of_a_list_are_thinned_out_to_the_limit_with_their_rate():
    frames, fps = load_video([noise(seed) for seed in range(8)], fps=2.0, max_frames=3)
    expected = np.stack([np.asarray(noise(seed)) for seed in (0, 4, 7)]).transpose(0, 3, 1, 2)
    assert np.array_equal(frames.numpy(), expected)
    assert fps == 3 / 4  # 3 frames of 4 seconds
