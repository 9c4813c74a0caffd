"""What a heat map paints: nothing where nothing is known, in the right place, in colours that are ordered."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from safeqwen.showing.colours import colour, overlay, strength, upsample


GREY = Image.new("RGB", (40, 20), (128, 128, 128))


def changed(values, opacity=1.0):
    return np.abs(np.asarray(overlay(GREY, values, opacity)).astype(int) - 128).max()


def test_colours_are_viridis_within_six_of_255():
    steps = np.linspace(0, 1, 256)
    original = 255 * matplotlib.colormaps["viridis"](steps)[:, :3]
    assert np.abs(colour(steps) - original).max() <= 6


def test_stronger_is_lighter_at_every_step():
    lightness = colour(np.linspace(0, 1, 256)) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > -0.5).all() and lightness[-1] > 200 > 30 > lightness[0]


@pytest.mark.parametrize("value", [0, 5, -5])
def test_an_all_equal_map_paints_nothing(value):
    assert changed(np.full((2, 4), value)) == 0


def test_a_map_that_is_nearly_equal_stays_pale():
    values = np.full((2, 4), 5.0)
    values[0, 0] = 5.1
    assert 0 < strength(values).max() < 0.03


def test_strength_by_hand():
    assert strength([[0, 3], [1, 0]]).tolist() == [[0, 1], [0, 0]]  # the even share is 1
    # The even share is 2, the strongest has 1 more: half of twice the share. What speaks against counts as 0.
    assert strength([[3, 3], [2, -9]]).tolist() == [[0.5, 0.5], [0, 0]]
    # In all 0.5 of what is needed for full paint.
    assert strength([[0.5, 0], [0, 0]]).tolist() == [[0.5, 0], [0, 0]]


def test_evidence_against_is_not_painted():
    assert changed([[-5, -1], [-2, -3]]) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="NaN or infinite"):
        overlay(GREY, [[0, value]])


@pytest.mark.parametrize("values", [[1, 2], [[]], 3, [[[1]]]])
def test_what_has_not_rows_and_columns_is_refused(values):
    with pytest.raises(ValueError, match="rows and columns"):
        overlay(GREY, values)


@pytest.mark.parametrize("opacity", [-0.1, 1.1, float("nan")])
def test_opacity_is_a_share(opacity):
    with pytest.raises(ValueError, match="opacity"):
        overlay(GREY, [[0, 1]], opacity)


def test_without_opacity_the_picture_stays():
    assert changed([[0, 9]], 0) == 0


def test_upsampling_by_hand():
    """Two patches over four pixels: their middles are at 1 and 3, the pixels' at 0.5, 1.5, 2.5 and 3.5."""
    np.testing.assert_allclose(upsample([[0, 4]], 4, 1), [[0, 1, 3, 4]], atol=1e-6)
    corners = upsample([[1, 2], [3, 4]], 8, 6)
    assert corners.shape == (6, 8)
    assert [corners[0, 0], corners[0, -1], corners[-1, 0], corners[-1, -1]] == [1, 2, 3, 4]


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 3), (1, 0), (1, 3)])
def test_each_corner_is_painted_in_its_corner(row, column):
    values = np.zeros((2, 4))
    values[row, column] = 9
    painted = np.asarray(overlay(GREY, values, 1.0)).astype(int)
    y, x = (0, 19)[row], (0, 39)[column // 3]
    assert painted[y, x].tolist() == [253, 231, 37]
    assert painted[19 - y, 39 - x].tolist() == [128, 128, 128]


def test_a_picture_of_another_mode_is_painted_in_rgb():
    assert overlay(Image.new("L", (4, 4)), [[0, 9]]).mode == "RGB"
