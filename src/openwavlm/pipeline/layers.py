"""Information about phones in each layer of an iteration's model, by which the next codebook's layer is chosen."""

from openwavlm.evaluation.features import EncoderFeatures
from openwavlm.evaluation.measure import ProbeSettings
from openwavlm.evaluation.sets import ProbeSet
from openwavlm.evaluation.units import UnitSettings, layer_pnmi
from openwavlm.model.wavlm import WavLM


def pnmi_by_layer(model: WavLM, train: ProbeSet, dev: ProbeSet, settings: ProbeSettings) -> list[float]:
    """Corrected PNMI of the units of layers 1, 2, … on development speakers, with codebooks fitted on training speakers.

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
