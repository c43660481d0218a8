"""Which layer of an iteration's model the next codebook is fitted on."""

from collections.abc import Mapping
from typing import Any

from openwavlm.evaluation.features import EncoderFeatures
from openwavlm.evaluation.measure import ProbeSettings
from openwavlm.evaluation.sets import ProbeSet
from openwavlm.evaluation.units import UnitSettings, choose_layer, layer_pnmi
from openwavlm.model.wavlm import WavLM


def pnmi_by_layer(model: WavLM, train: ProbeSet, dev: ProbeSet, settings: ProbeSettings) -> list[float]:
    """Corrected PNMI of the units of layers 1, 2, … on development speakers, codebooks fitted on training speakers.

    Raises:
        ValueError: If no frame of `dev` has a phone.
    """
    units = UnitSettings(
        clusters=settings.clusters,
        codebook_seeds=settings.codebook_seeds,
        fit_frames=settings.codebook_frames,
        quick=True,
    )
    found = layer_pnmi(EncoderFeatures(model), train, dev, units)
    return [round(found[layer], 5) for layer in sorted(found)]


def next_layer(iteration: int, layers: int, probed: Mapping[str, Any] | None) -> int:
    """`choose_layer` by what an iteration's probe found.

    Args:
        iteration: Number of the iteration that trained the model, from 1.
        layers: How many layers the model has.
        probed: The probe's figures; None without alignments. Those of a chain that was begun before units were measured by layer
            have no `pnmi_of_layers`: it goes on with the layer that tells phones best, as it began.
    """
    if probed is not None and "pnmi_of_layers" not in probed:
        return max(1, int(probed["phones"]["chosen_layer"]))
    return choose_layer(iteration, layers, dict(enumerate(probed["pnmi_of_layers"], start=1)) if probed else None)
