"""Figures of labels and layers for `openwavlm quality` (definitions: `unit_figures`; rules: DESIGN §8)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.evaluation import abx
from openwavlm.evaluation.conditions import change_of
from openwavlm.evaluation.features import SPECTRA, EncoderFeatures, Features, MfccFeatures, spectral_baselines
from openwavlm.evaluation.intervals import Interval, sign_places
from openwavlm.evaluation.phones.alignment_files import read_alignments
from openwavlm.evaluation.quality_rows import QualityRow, rows_of
from openwavlm.evaluation.sets import ProbeSet
from openwavlm.evaluation.settings import QualitySettings
from openwavlm.evaluation.shard_sets import Judged, judged_set
from openwavlm.evaluation.unit_figures import UnitTally
from openwavlm.evaluation.units import UnitSettings, choose_layer, fit_layers, tally_layers
from openwavlm.evaluation.unseen import fitted_set, judged_rows
from openwavlm.labels.store import LabelStore
from openwavlm.labels.teacher import open_teacher
from openwavlm.runtime.devices import named_device
from openwavlm.runtime.progress import ProgressBar
from openwavlm.shards.index import Index

DEFAULT_CLUSTERS = 100


def judge(settings: QualitySettings) -> tuple[dict[str, Any], list[QualityRow]]:
    """Measures labels and layers beside units of MFCC and log-mel, raw and normalised, and shuffled ones.

    Returns:
        Content of `quality.json` (`rows`, `chosen_layer`, `sentences`, the judged speech and the speech for fitting), and the rows.

    Raises:
        ValueError: If a folder or file is damaged or of another kind, no speaker is surely unseen, or too few recordings have an
            alignment.
    """
    index = Index.open(settings.shards)
    stores = {folder: LabelStore.open(folder, index) for folder in settings.labellings}
    rows = judged_rows(settings, index, stores)
    alignments = None
    if settings.alignments is not None:
        alignments = read_alignments(settings.alignments, file_format=settings.format, tier=settings.tier)
    judged = judged_set(
        Path(settings.shards),
        rows,
        alignments,
        folding=settings.folding,
        with_silence=settings.with_silence,
        seconds=settings.seconds,
        max_unmatched_share=settings.max_unmatched_share,
    )
    fit = fitted_set(settings, index, rows, judged)
    encoder, layers = _encoder(settings)
    table = _measure(settings, judged, fit, stores, encoder, layers)
    result = _result(settings, judged, fit, table, layers_of_model=len(encoder.dims) - 1 if encoder else None)
    if settings.abx:
        result["abx"] = _write_abx(judged, encoder, layers, Path(settings.output) / "abx")
    return result, table


def _encoder(settings: QualitySettings) -> tuple[EncoderFeatures | None, list[int]]:
    if settings.encoder is None:
        if settings.layers is not None:
            raise ValueError(f"layers={settings.layers} needs a model, but encoder is null: add encoder=DIR")
        return None, []
    model = open_teacher(settings.encoder).model.to(named_device(settings.device))
    top = model.config.layers
    wanted = range(top + 1) if settings.layers in (None, "all") else settings.layers
    if isinstance(wanted, str) or not wanted or not all(isinstance(layer, int) and 0 <= layer <= top for layer in wanted):
        raise ValueError(f"layers must be all or a list out of 0…{top} (0 is the encoder's input), but is {settings.layers}")
    return EncoderFeatures(model), sorted(set(wanted))


def _measure(
    settings: QualitySettings,
    judged: Judged,
    fit: ProbeSet,
    stores: Mapping[Path, LabelStore],
    encoder: Features | None,
    layers: list[int],
) -> list[QualityRow]:
    clusters = settings.clusters or max((store.num_classes for store in stores.values()), default=DEFAULT_CLUSTERS)
    labels: dict[tuple[str, str, int | None], list[UnitTally]] = {
        (str(folder), "labels", None): [_tally_labels(judged, store)] for folder, store in stores.items()
    }
    sizes = {store.num_classes for store in stores.values()} | ({clusters} if encoder or not stores else set())
    spectral = spectral_baselines()
    passes = (len(spectral) * len(sizes) + bool(encoder)) * (fit.seconds + len(settings.conditions) * judged.utterances.seconds)
    table: list[QualityRow] = []
    with ProgressBar(passes, counts=False, transient=True) as bar:

        def named(title: str) -> Callable[[str, float], None]:
            return lambda part, seconds: bar.advance(seconds, f"{title}, {part}")

        of_baselines = {
            (name, size): fit_layers(features, fit, [0], _units(settings, size), named(f"{SPECTRA[name]} {size}"))
            for name, features in spectral.items()
            for size in sorted(sizes)
        }
        of_model = fit_layers(encoder, fit, layers, _units(settings, clusters), named("layers")) if encoder else {}
        for condition in settings.conditions:
            change = change_of(condition, seed=0)
            baselines: dict[str, dict[int, list[UnitTally]]] = {name: {} for name in spectral}
            for (name, size), books in of_baselines.items():
                title = named(f"{SPECTRA[name]} {size}, {condition}")
                found = tally_layers(spectral[name], books, judged.utterances, change=change, progress=title)
                baselines[name][len(books[0].codebooks[0])] = found[0]
            tallies = dict(labels) if condition == "clean" else {}
            if encoder:
                found = tally_layers(encoder, of_model, judged.utterances, change=change, progress=named(f"layers, {condition}"))
                tallies |= {(f"layer {layer}", "layer", layer): of for layer, of in found.items()}
            table += rows_of(tallies, baselines, condition)
    return table


def _units(settings: QualitySettings, clusters: int) -> UnitSettings:
    return UnitSettings(
        clusters=clusters,
        codebook_seeds=tuple(settings.codebook_seeds),
        fit_frames=settings.fit_frames,
        frames_per_cluster=settings.frames_per_cluster,
        memory_gb=settings.memory_gb,
    )


def _tally_labels(judged: Judged, store: LabelStore) -> UnitTally:
    utterances = judged.utterances
    tally = UnitTally(len(utterances.inventory), store.num_classes, utterances.speakers)
    for number, (utterance, row) in enumerate(zip(utterances.utterances, judged.rows, strict=True)):
        units = store.read(row)
        if len(units):  # a row that was unreadable when it was labelled has none
            tally.add(utterance.speaker, units, utterance.phones, number)
    return tally


def _result(
    settings: QualitySettings, judged: Judged, fit: ProbeSet, table: Sequence[QualityRow], *, layers_of_model: int | None
) -> dict[str, Any]:
    utterances, matches = judged.utterances, judged.matches
    pnmi = {row.layer: row.figures.pnmi for row in table if row.layer is not None and row.condition == "clean"}
    chosen = choose_layer(1, layers_of_model, pnmi) if layers_of_model and any(pnmi) and utterances.inventory else None
    speech = {
        "seconds": utterances.seconds,
        "speakers": len(utterances.speakers),
        "without_speaker": int((Index.open(Path(settings.shards)).speaker[np.array(judged.rows)] == 0).sum()),
        "phones": len(utterances.inventory),
        "utterances": len(utterances),
        "without_alignment": len(matches.unknown) + len(matches.ambiguous),
        "unused_alignments": len(matches.unused),
        "fingerprint": utterances.fingerprint,
    }
    return {
        "format_version": 1,
        "asked": {name: value for name, value in vars(settings).items() if name != "output"},
        "judged": speech,
        "fitted_on": {"seconds": fit.seconds, "speakers": len(fit.speakers), "held_out": settings.held_out != 0},
        "chosen_layer": chosen,
        "sentences": _sentences(settings, speech, fit, table, chosen),
        "rows": [row.as_json() for row in table],
    }


def _sentences(
    settings: QualitySettings, speech: Mapping[str, Any], fit: ProbeSet, table: Sequence[QualityRow], chosen: int | None
) -> list[str]:
    fitted = f"codebooks of {len(settings.codebook_seeds)} seeds fitted on {fit.seconds:.0f} s of {len(fit.speakers)} speakers"
    who = "the same speakers, which is no evidence about others" if settings.held_out == 0 else "other speakers"
    against = f"against {speech['phones']} phones ({speech['without_alignment']} recordings without an alignment left out)"
    if settings.alignments is None:
        against = "without phones, so their figures are empty"
    sentences = [f"Judged on {speech['seconds']:.0f} s of {speech['speakers']} speakers {against}; {fitted}: {who}."]
    if speech["without_speaker"]:
        sentences.append(
            f"{speech['without_speaker']} of {speech['utterances']} utterances are of unknown speakers, and each of their recordings "
            "counts as a speaker: intervals are narrower than over speakers, a speaker may be on both sides, and speaker information is of "
            "recordings."
        )
    sentences += [
        f"Labels {row.name}: PNMI {row.figures.pnmi:.3f}, {_against(row.difference, row.baseline)}."
        for row in table
        if row.kind == "labels" and row.difference
    ]
    layers = [row for row in table if row.kind == "layer" and row.condition == "clean"]
    if chosen is not None:
        best = next(row for row in layers if row.layer == chosen)
        words = f"Best layer on these speakers: {chosen}, PNMI {best.figures.pnmi:.3f}"
        if best.difference:
            words += f", {_against(best.difference, best.baseline)}"
        others = [(row.layer, best.figures.minus(row.figures)) for row in layers if row is not best]
        near = [f"{layer} (visible from {apart.visible:.3f})" for layer, apart in others if apart.outcome == "equal"]
        sentences.append(words + (f"; equal to the best: layers {', '.join(near)}" if near else "") + ".")
        sentences += [
            f"Layer {chosen} in condition {row.condition}: PNMI {row.figures.pnmi:.3f}, {_against(row.difference, row.baseline)}."
            for row in table
            if row.layer == chosen and row.condition != "clean" and row.difference
        ]
    return sentences


def _against(difference: Interval, decider: str) -> str:
    """The outcome of a difference to the deciding baseline with its interval."""
    # "higher" is decided by the highest baseline, "equal" and "lower" by one that need not be the highest.
    one = "a baseline" if difference.outcome in ("equal", "lower") else "the best baseline"
    baseline = f"{one}, units of {SPECTRA[decider]} of the same K"
    if difference.outcome == "unknown":
        return f"{difference.value:+.3f} against {baseline} (no interval: one speaker)"
    places = sign_places(difference.low, difference.high, 3)
    ends = f"{difference.value:+.{places}f}, 95 % interval {difference.low:+.{places}f} to {difference.high:+.{places}f}"
    words = f"{difference.outcome} {'to' if difference.outcome == 'equal' else 'than'} {baseline} ({ends}"
    return f"{words}; smallest visible difference {difference.visible:.3f})" if difference.outcome == "equal" else f"{words})"


def _write_abx(judged: Judged, encoder: Features | None, layers: list[int], folder: Path) -> dict[str, Any]:
    tokens = abx.write_items(judged, folder)
    folders = abx.write_features(judged, MfccFeatures(), [0], folder, "mfcc")
    if encoder:
        folders += abx.write_features(judged, encoder, layers, folder)
    return {"tokens": tokens, "features": folders, "frequency": 50}
