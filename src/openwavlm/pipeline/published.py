"""The last model, the page and the figures, copied from their stages to where a user of `runs/NAME` looks for them."""

import importlib
import shutil
from pathlib import Path
from typing import Any

from openwavlm.pipeline.stages import MARK, Stage
from openwavlm.runtime.atomic import atomic_file, write_json
from openwavlm.runtime.sealed import read_sealed
from openwavlm.training.run_files import read_summary


def check_with_transformers(exported: Path) -> dict[str, Any]:
    """Loads an export with Transformers; returns its version, or None where it is not installed.

    Raises:
        ValueError: If a key is missing, unexpected or of another shape.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        return {"transformers": None}
    transformers.utils.logging.disable_progress_bar()  # it would break the log's lines
    _, loading = transformers.WavLMModel.from_pretrained(exported, output_loading_info=True)
    transformers.Wav2Vec2FeatureExtractor.from_pretrained(exported)
    wrong = [*loading["missing_keys"], *loading["unexpected_keys"], *loading["mismatched_keys"]]
    if wrong:
        raise ValueError(f"Transformers does not load {exported} as it is: {', '.join(map(str, wrong))}")
    return {"transformers": transformers.__version__}


def publish(directory: Path, exported: Stage, reported: Stage) -> None:
    """Copies model, page and figures into the run directory, unless those of the same stages are there already.

    Args:
        directory: Run directory; gets `export/`, `report.html`, the `iterations` of `summary.json`, and `published.json` with the keys
            of the two stages.
        exported: The stage of the last model.
        reported: The stage of page and figures.
    """
    mark, keys = directory / "published.json", {"export": exported.key, "report": reported.key}
    wanted = [file for file in sorted(exported.folder.iterdir()) if file.name != MARK]
    places = [directory / "export" / file.name for file in wanted] + [directory / "report.html"]
    if mark.is_file() and read_sealed(mark, remedy="delete it") == keys and all(place.is_file() for place in places):
        return
    mark.unlink(missing_ok=True)
    for file, place in zip([*wanted, reported.folder / "report.html"], places, strict=True):
        with file.open("rb") as source, atomic_file(place) as target:
            shutil.copyfileobj(source, target)
    summary = directory / "summary.json"
    kept = read_summary(summary) if summary.is_file() else {}
    write_json(summary, kept | read_summary(reported.folder / "summary.json"))
    write_json(mark, keys)
