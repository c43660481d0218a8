"""Which layer's features make the next labels (HuBERT §III-A and table II: layer 6 of 12 after the first iteration, 9 after the second)."""

from collections.abc import Mapping


def choose_layer(iteration: int, layers: int, pnmi: Mapping[int, float] | None = None) -> int:
    """The layer whose units say most about phones on development speakers; without alignments a depth by iteration.

    Args:
        iteration: Number of the iteration, from 1, that trained the model.
        layers: How many layers the model has.
        pnmi: Layer → corrected PNMI of its units on development speakers, as far as measured; layer 0, the encoder's input, is
            never chosen, and of equals the lowest is.

    Returns:
        The measured best; else half the depth after iteration 1, three quarters after later ones, at least 1.

    Raises:
        ValueError: If there is no such iteration, or a figure is of a layer that the model does not have.
    """
    if iteration < 1 or layers < 1:
        raise ValueError(f"iterations and layers are counted from 1, but are {iteration} and {layers}: correct them")
    measured = {layer: value for layer, value in (pnmi or {}).items() if layer > 0}
    if measured and max(measured) > layers:
        raise ValueError(f"the model has layers 1 … {layers}, but there is a figure of layer {max(measured)}: measure this model")
    if measured:
        return max(sorted(measured), key=lambda layer: measured[layer])
    return max(1, round(layers * (0.5 if iteration == 1 else 0.75)))
