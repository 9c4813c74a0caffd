"""The axis of counts: what can be read from it, in the panels of a report."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from safeqwen.judging.decision import ACTIONS
from safeqwen.judging.verdict import SAFE
from safeqwen.scan.report import make_plots
from safeqwen.scan.tally import NUM_BINS


HARMS = [f"harm_{number}" for number in range(8)]
HIGHEST = [1, 10, 11, 21, 40, 51, 150, 201, 999, 1_500, 4_000, 9_999, 40_000, 99_999, 2_000_000]


@pytest.mark.parametrize("highest", HIGHEST)
@pytest.mark.parametrize("number", [0, 1], ids=["scores", "categories"])
def test_the_highest_bar_has_a_tick_and_no_two_ticks_touch(highest, number):
    histograms = np.zeros((2 + len(HARMS), len(ACTIONS), NUM_BINS), dtype=np.int64)
    histograms[:, :, 0] = [1, 1, highest]
    histograms[1:, :2] = 0
    tally = SimpleNamespace(
        histograms=histograms,
        categories=[SAFE, *HARMS],
        has_safe=True,
        has_policy=True,
        by_label=dict.fromkeys([(name, action) for name in HARMS for action in ACTIONS], 1),
        num_rows=highest + 2,
        num_errors=0,
    )
    figure = make_plots(tally, {"unsafe": 0.5})[number].figure("light")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    ticks = axes.get_yticks()
    assert ticks[0] == axes.get_ylim()[0] == 0 and ticks[-1] == highest < axes.get_ylim()[1]
    labels = axes.get_yticklabels()
    assert [label.get_text() for label in labels] == [f"{tick:,}" for tick in ticks]
    boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels]
    assert all(below.y1 <= above.y0 for below, above in zip(boxes, boxes[1:]))
