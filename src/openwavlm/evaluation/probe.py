"""Figures of a model on held-out speakers beside their baselines, the content of `summary.json` (DESIGN §8)."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from openwavlm.evaluation.conditions import CONDITIONS
from openwavlm.evaluation.features import EncoderFeatures, Features, spectral_baselines
from openwavlm.evaluation.intervals import by_cluster, group_places, interval, ratio_interval
from openwavlm.evaluation.measure import ProbeSettings, measure
from openwavlm.evaluation.measured import Measured
from openwavlm.evaluation.sets import ProbeSet
from openwavlm.evaluation.unit_figures import paired_pseudo_values, pnmi_pseudo_values, unit_quality
from openwavlm.evaluation.unseen import check_disjoint_speakers
from openwavlm.labels.kmeans import one_torch_thread
from openwavlm.model.wavlm import WavLM
from openwavlm.runtime.progress import ProgressBar


def probe_model(
    model: WavLM,
    train: ProbeSet,
    dev: ProbeSet,
    test: ProbeSet,
    settings: ProbeSettings,
    *,
    cache: Path | None = None,
    workers: int = 1,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Measures every layer of a model, and spectral baselines and an untrained encoder of its config on the same frames.

    Ridge probes and codebooks are fitted on `train`, layers and penalties chosen on `dev`, `test` is read once. Changes neither
    torch's generators nor the model.

    Args:
        model: The encoder, on any device, not sharded.
        train: Clean speech of training speakers.
        dev: Other speakers.
        test: Other speakers again, not seen in training (see `unseen.check_unseen_audio`).
        cache: Folder that keeps the baselines' figures, keyed by audio, phones, features and settings; never the model's.
        workers: Baselines and model that are measured at a time, each in a thread; the figures are the same.
        show_progress: Whether to show a bar on standard error if that is a terminal.

    Returns:
        For JSON, accuracies as shares, on test frames unless stated otherwise.

        - `phones`: `layers` (all; 0 is the encoder's input), `layers_dev`, `chosen_layer`, `chosen`; the baselines of one frame `mfcc`
          (raw), `mfcc_norm` (normalised over the utterance), `logmel_raw`, `logmel` (normalised), and each with five frames to each
          side, as `mfcc_context`; `untrained` (its best layer on dev), `majority`; `intervals`: lower and upper end of each;
          `differences` of `chosen` less each baseline: value, lower and upper end, smallest visible difference; `by_speaker`: sums for
          paired differences of two models; `telephone` and `noise10` with the same names; `multi`: all of these, with probes fitted
          on training speech in the three conditions in turn (codebooks are fitted on clean speech).
        - `units`: for `clean`, `telephone`, `noise10` the corrected PNMI of `chosen`, `mfcc`, `mfcc_norm`, `logmel_raw`, `logmel`,
          `untrained`, the largest `spread` over codebook seeds, `differences` as above with their `verdicts`,
          `by_speaker`: `frames` and pseudo-values of `chosen` for the difference of two models, `details`.
        - `speakers`: accuracy among the test speakers by layer; `chosen` on dev where dev has two speakers.
        - `cost`: seconds of audio and of time.

    Raises:
        ValueError: If the sets have different inventories or share a speaker, or a part has no frame with a phone.
    """
    if not train.inventory == dev.inventory == test.inventory:
        raise ValueError("training, dev and test must number phones by one inventory, but theirs differ: make one for all three")
    check_disjoint_speakers(train=train, dev=dev, test=test)
    measured, seconds = _measure_all(model, (train, dev, test), settings, cache, workers=workers, show_progress=show_progress)
    parts = {"train": train, "dev": dev, "test": test}
    return summary(
        {
            "phones": _phones(measured, train, test),
            "units": {condition: _units(measured, condition, test) for condition in CONDITIONS},
            "speakers": _speakers(measured["chosen"]),
            "cost": {
                "seconds": seconds,
                "model_audio_seconds": float(measured["chosen"].audio_seconds),
                "set_seconds": {part: probe_set.seconds for part, probe_set in parts.items()},
                "set_speakers": {part: len(probe_set.speakers) for part, probe_set in parts.items()},
            },
        }
    )


def _measure_all(
    model: WavLM,
    sets: tuple[ProbeSet, ProbeSet, ProbeSet],
    settings: ProbeSettings,
    cache: Path | None,
    *,
    workers: int,
    show_progress: bool,
) -> tuple[dict[str, Measured], dict[str, float]]:
    """Figures and seconds of the baselines and of the model (`chosen`; seconds under `model`)."""
    encoder = EncoderFeatures(model)
    untrained = EncoderFeatures.untrained(model.config, settings.seed, encoder.device)
    kinds: dict[str, Features] = {**spectral_baselines(), "untrained": untrained, "model": encoder}
    train, dev, test = (part.seconds for part in sets)
    total = 2 * (train + dev) + test + (len(CONDITIONS) - 1) * min(test, settings.degraded_seconds)

    def measured(name: str, features: Features) -> tuple[Measured, float]:
        left = total

        def progress(part: str, done: float) -> None:
            nonlocal left
            if ended.is_set():
                raise CancelledError
            left -= done
            bar.advance(done, f"probe {name}, {part}")

        spectral = not isinstance(features, EncoderFeatures)
        begin = time.perf_counter()
        figures = measure(
            features,
            *sets,
            settings,
            units_layer=0 if spectral else None,
            judged_layers=range(len(features.dims)) if spectral else (),
            cache=cache,
            progress=progress,
        )
        progress("done", left)  # what was cached or shorter than asked for
        return figures, time.perf_counter() - begin

    ended = Event()
    bar = ProgressBar(total * len(kinds), visible=show_progress, counts=False, transient=True)
    with bar, _threads(workers) as pool:
        # The encoders first, which take longest.
        begun = {name: pool.submit(measured, name, kinds[name]) for name in reversed(kinds)}
        try:
            for future in wait(begun.values(), return_when=FIRST_EXCEPTION).done:
                future.result()
            found = {name: begun[name].result() for name in kinds}
        finally:  # after an error or Ctrl-C the others end too
            ended.set()
            pool.shutdown(cancel_futures=True)
    figures = {"chosen" if name == "model" else name: of for name, (of, _) in found.items()}
    return figures, {name: seconds for name, (_, seconds) in found.items()}


@contextmanager
def _threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool; with several workers each computes on one thread, whatever the others do meanwhile."""
    with ExitStack() as settings:
        if workers > 1:
            settings.enter_context(one_torch_thread())
            settings.enter_context(threadpool_limits(limits=1))
        yield settings.enter_context(ThreadPoolExecutor(workers))


def _layers_of(measured: dict[str, Measured]) -> dict[str, tuple[Measured, int]]:
    """Measurement and layer of each figure, by name."""
    found = {"chosen": (measured["chosen"], int(measured["chosen"].chosen))}
    for name in (name for name in measured if name not in ("chosen", "untrained")):
        found |= {name: (measured[name], 0), f"{name}_context": (measured[name], 1)}
    untrained = measured["untrained"]
    return found | {"untrained": (untrained, int(untrained.chosen))}


def _phones(measured: dict[str, Measured], train: ProbeSet, test: ProbeSet) -> dict[str, Any]:
    chosen = measured["chosen"]
    speakers = [utterance.speaker for utterance in test.utterances]
    figures: dict[str, Any] = {
        "layers": [chosen.accuracy(layer) for layer in range(len(chosen.dev_accuracy))],
        "layers_dev": chosen.dev_accuracy,
        "chosen_layer": int(chosen.chosen),
        "penalties": chosen.penalty,
        "untrained_layer": int(measured["untrained"].chosen),
        "majority": _majority(train, test),
        "frames": int(chosen.frames[0].sum()),
        "phones": len(test.inventory),
        "speakers": len(test.speakers),
    }
    for place, condition in enumerate(CONDITIONS):
        into = figures if condition == "clean" else figures.setdefault(condition, {"frames": int(chosen.frames[place].sum())})
        into |= _phones_in(measured, place, speakers)
    multi = {condition: _phones_in(measured, place, speakers, multi=True) for place, condition in enumerate(CONDITIONS)}
    figures["multi"] = multi.pop("clean") | multi
    return figures


def _phones_in(measured: dict[str, Measured], place: int, speakers: Sequence[str], *, multi: bool = False) -> dict[str, Any]:
    """Accuracies in one condition, their intervals and the differences of `chosen` less each baseline; `speakers` by utterance."""
    frames = by_cluster(measured["chosen"].frames[place], speakers)
    correct = {
        name: by_cluster((of.correct_multi if multi else of.correct)[place, layer], speakers)
        for name, (of, layer) in _layers_of(measured).items()
    }
    ours, found = correct["chosen"], {name: ratio_interval(theirs, frames) for name, theirs in correct.items()}
    baselines = [name for name in correct if name != "chosen"]
    return {name: figure.value for name, figure in found.items()} | {
        "intervals": {name: [figure.low, figure.high] for name, figure in found.items()},
        "differences": {name: ratio_interval(ours - correct[name], frames).as_list() for name in baselines},
        "by_speaker": {"speakers": sorted(set(speakers)), "correct": ours, "frames": frames},
    }


def _majority(train: ProbeSet, test: ProbeSet) -> float:
    """Share of test frames with the most frequent phone of training: the accuracy without any feature."""

    def counts(probe_set: ProbeSet) -> np.ndarray:
        phones = np.concatenate([utterance.phones for utterance in probe_set.utterances])
        return np.bincount(phones[phones >= 0], minlength=len(probe_set.inventory))

    judged = counts(test)
    return float(judged[counts(train).argmax()] / max(judged.sum(), 1))


def _units(measured: dict[str, Measured], condition: str, test: ProbeSet) -> dict[str, Any]:
    joints = {name: of.units[CONDITIONS.index(condition)] for name, of in measured.items()}
    details = {name: unit_quality(joint.sum(axis=1)) for name, joint in joints.items()}
    pnmi = {name: quality["pnmi"] for name, quality in details.items()}
    pseudo = {name: pnmi_pseudo_values(joint) for name, joint in joints.items()}
    differences = {
        name: interval(paired_pseudo_values(pseudo["chosen"], pseudo[name]), pnmi["chosen"] - value)
        for name, value in pnmi.items()
        if name != "chosen"
    }
    # In order of the rows: beyond MAX_GROUPS several speakers share one.
    speakers = sorted(group_places(test.speakers).items(), key=lambda entry: entry[1])
    return {
        **pnmi,
        "spread": max(quality["spread"] for quality in details.values()),
        "differences": {name: difference.as_list() for name, difference in differences.items()},
        "verdicts": {name: difference.outcome for name, difference in differences.items()},
        "by_speaker": {
            "speakers": [name for name, _ in speakers],
            "frames": joints["chosen"][0].sum(axis=(1, 2)),
            "pseudo_values": pseudo["chosen"],
        },
        "details": details,
    }


def _speakers(chosen: Measured) -> dict[str, Any]:
    figures: dict[str, Any] = {"layers": chosen.speaker_test, "layers_dev": chosen.speaker_dev}
    if np.isfinite(chosen.speaker_dev).all():
        layer = int(chosen.speaker_dev.argmax())
        figures |= {"chosen_layer": layer, "chosen": float(chosen.speaker_test[layer])}
    return figures


def summary(value: Any) -> Any:
    """Figures for JSON: rounded to 5 places, None where not finite; lists and dictionaries entry by entry."""
    if isinstance(value, dict):
        return {name: summary(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [summary(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return round(float(value), 5) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
