"""Extracts features or units of a folder of recordings: `openwavlm extract --help`."""

import logging
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from openwavlm.cli.app import command
from openwavlm.labels.feature_files import extract_features_of_folder, extract_units_of_folder

log = logging.getLogger(__name__)


@command("extract")
def main(config: DictConfig) -> None:
    """Runs the extraction and logs a line. The model's key is `encoder`: Hydra reads `model=…` as a choice of `conf/model/`."""
    folder, output = Path(config.input), Path(config.output)
    model = Path(config.encoder) if config.encoder else None
    shared = {"workers": config.workers, "max_skip_rate": config.max_skip_rate}
    if config.codebook:
        if config.layers is not None:
            raise ValueError(f"units come from the layer of their codebook, but layers is {config.layers}: leave layers out")
        result = extract_units_of_folder(model, folder, output, Path(config.codebook), merge=config.merge, **shared)
        written = str(output / "units.tsv")
    else:
        if model is None:
            raise ValueError("features come from a model, but none was given: add encoder=DIR, or codebook=DIR for units")
        result = extract_features_of_folder(model, folder, output, layers=_layers(config.layers), dtype=config.dtype, **shared)
        written = f"{output}/NAME.npy, (layers, frames, dim)"
    skipped = f", {len(result.skipped)} skipped" if result.skipped else ""
    kept = f" ({result.kept} of an earlier call)" if result.kept else ""
    log.info(f"{result.files} recordings{kept}, {result.frames} frames{skipped} -> {written}")


def _layers(value: Any) -> Literal["all"] | list[int]:
    if value is None or value == "all":
        return "all"
    listed = OmegaConf.to_container(value) if OmegaConf.is_list(value) else [value]
    assert isinstance(listed, list)
    if not all(isinstance(layer, int) for layer in listed):
        raise ValueError(f"layers must be all or a list of numbers, but is {listed}: write it as layers=[6,9]")
    return [int(layer) for layer in listed if isinstance(layer, int)]
