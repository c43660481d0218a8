"""Which features can be clustered, by name."""

from typing import Any

import numpy as np
from torch import Tensor

from openwavlm.targets.mfcc import MFCC_SETTINGS, mfcc_features

FEATURES = ("mfcc",)


def feature_settings(features: str) -> dict[str, Any]:
    """Everything that the values of these features depend on; part of a codebook's and a labelling's `meta.json`.

    Raises:
        ValueError: If there are no features of that name.
    """
    if features not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}, but is {features!r}: correct the name")
    return dict(MFCC_SETTINGS)


def extract_features(settings: dict[str, Any], waveform: np.ndarray) -> Tensor:
    """Features of one utterance, float32 (frames, dim), one row a model frame; `settings` as of `feature_settings`."""
    assert settings["name"] == "mfcc"
    return mfcc_features(waveform)


def check_reproducible(settings: dict[str, Any], origin: object) -> None:
    """Refuses features that this program would compute otherwise.

    Raises:
        ValueError: If `settings` are not those that a feature of the same name has here.
    """
    name = str(settings.get("name"))
    here = feature_settings(name)
    if here != settings:
        other = sorted(key for key in here.keys() | settings.keys() if here.get(key) != settings.get(key))
        raise ValueError(
            f"the features of {origin} must be made as this OpenWavLM makes {name}, but differ in {', '.join(other)}: fit the "
            "codebook again, or use the version that made it"
        )
