"""Comparison of tensors by their scale: a bound that means the same for figures of 1e-6 and of 1e6, on every CPU type."""

import torch


def assert_close_to_scale(found, expected, relative: float = 1e-5, *, message: object = "") -> None:
    """The largest difference is at most `relative` times the largest magnitude that is expected.

    Sums of float32 in another order differ by a few 1e-7 of the terms' scale, whatever the sum; so single entries are not compared
    with themselves, and no bound is absolute.
    """
    found, expected = (torch.as_tensor(x).detach().double() for x in (found, expected))
    assert found.shape == expected.shape, (message, found.shape, expected.shape)
    if not found.numel():
        return
    difference, scale = float((found - expected).abs().max()), float(expected.abs().max())
    assert difference <= relative * scale, f"{message} differs by {difference:.3g} where the scale is {scale:.3g}"
