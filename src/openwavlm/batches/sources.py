"""Data of a run: sources opened, checked and split; training schedule and validation plan."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from openwavlm.audio.frames import FRAME_RATE_HZ, HOP_SAMPLES, SAMPLE_RATE_HZ, num_frames
from openwavlm.batches.plan import EpochPlan, MicroBatchSpec
from openwavlm.batches.schedule import Schedule, SourceStream
from openwavlm.batches.settings import Batching, Data, label_folders
from openwavlm.labels.store import AT_ONCE_BYTES, LabelStore
from openwavlm.shards.index import Index
from openwavlm.shards.reader import check_shards
from openwavlm.shards.splits import check_same_names, settled_share, settlement, shared_rows, validation_rows

_UNIGRAM_ROWS = 20_000


class OpenData:
    """Sources of a run, opened and checked.

    Args:
        data: Sources and split; the attribute `data` has the share by which the speakers are split as `validation_share`, and
            `settlement` says how it differs from the config's, "" where it does not.
        validation_share: That share, where an earlier launch settled it; None settles it by the speakers of all sources.
        labels_at_once_bytes: Bytes of each labelling that are compared with their checksums at once (`LabelStore.open`).

    Raises:
        ValueError: If a folder is missing, damaged or of a newer format, labels and shards do not belong together, the codebooks
            differ, use one cluster only or were fitted on held-out speakers, a validation set has audio of a source, nothing of a
            source is left to train on, or a share of fewer than two speakers is to be held out.
    """

    def __init__(
        self,
        data: Data,
        batching: Batching,
        seed: int,
        *,
        validation_share: float | None = None,
        labels_at_once_bytes: int = AT_ONCE_BYTES,
    ) -> None:
        self.data, self.batching, self.seed = data, batching, seed
        self.indexes: dict[str, Index] = {}
        self.label_sets: dict[str, list[LabelStore]] = {}
        for name, source in data.all_sets.items():
            self.indexes[name] = index = _open(source["shards"])
            self.label_sets[name] = [
                LabelStore.open(folder, index, at_once_bytes=labels_at_once_bytes) for folder in label_folders(source["labels"])
            ]
        self.noise_index = _open(data.noise) if data.noise is not None else None
        self._check_codebooks()
        kept = validation_share is not None
        if validation_share is None:
            share, split_seed = data.validation_share, data.split_seed
            sources = [self.indexes[name] for name in data.sources]
            validation_share = settled_share(sources, share=share, split_seed=split_seed, key="data.validation_share")
        self._asked_share = data.validation_share
        self.settlement = settlement(data.validation_share, validation_share, kept=kept, key="data.validation_share")
        self._keeps_share = kept
        self.data = data = replace(data, validation_share=validation_share)
        for name, stores in self.label_sets.items():
            for store in stores:
                _check_used(store)
                self._check_codebook_was_fitted_on_no_held_out_speaker(name, store)
        self._held_out = {
            name: np.ones(len(index), dtype=bool)
            if name in data.validation
            else validation_rows(index, share=data.validation_share, split_seed=data.split_seed)
            for name, index in self.indexes.items()
        }
        self._check_validation_is_not_trained_on()
        for name in data.sources:
            self._check_source_has_training_audio(name)
        self._background = ThreadPoolExecutor(1, thread_name_prefix="plan")

    def _check_codebooks(self) -> None:
        counts = {name: len(stores) for name, stores in self.label_sets.items()}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{name} has {count}" for name, count in counts.items())
            raise ValueError(
                f"every source and validation set must have as many label sets, but {found}: give each the same codebooks"
            )
        for number in range(next(iter(counts.values()))):
            codebooks = {stores[number].codebook_hash: name for name, stores in self.label_sets.items()}
            if len(codebooks) > 1:
                where = f" (label set {number + 1})" if number or len(self.classes) > 1 else ""
                raise ValueError(
                    f"the labels of the sources {', '.join(sorted(codebooks.values()))} come from different codebooks{where}, so equal "
                    "numbers mean different sounds: assign all with one codebook"
                )

    def _check_codebook_was_fitted_on_no_held_out_speaker(self, name: str, store: LabelStore) -> None:
        fitted = store.codebook_fitted
        if "split_seed" not in fitted:  # a published codebook: its training data are unknown
            return
        index = self.indexes[name]
        check_same_names(index, fitted.get("metadata", {}), f"the codebook of {store.path}")
        if name in self.data.validation and index.fingerprint in fitted.get("indexes", []):
            share, seed = float(fitted["validation_share"]), int(fitted["split_seed"])
            fitted_on = int((~validation_rows(index, share=share, split_seed=seed)).sum())
            if fitted_on:
                raise ValueError(
                    f"no codebook may be fitted on speakers that a run is validated on, but that of validation set {name} was fitted on "
                    f"{fitted_on} of its {len(index)} rows: fit it again without {index.path}"
                )
        same_split = fitted["split_seed"] == self.data.split_seed
        if same_split and self._asked_share <= fitted["validation_share"] < self.data.validation_share:
            again = f"with validation_share={self.data.validation_share}" if self._keeps_share else "on these shard sets"
            raise ValueError(
                f"{self.settlement}; but the codebook of source {name} left out only a share of {fitted['validation_share']:.4g}, so it "
                f"was perhaps fitted on speakers that are held out: fit it again {again}, or set data.validation_share=0"
            )
        if not (same_split and self.data.validation_share <= fitted["validation_share"]):
            raise ValueError(
                f"the codebook of source {name} was fitted with validation_share={fitted['validation_share']} and split_seed="
                f"{fitted['split_seed']}, perhaps on speakers that this run holds out ({self.data.validation_share}, "
                f"{self.data.split_seed}): set data.validation_share and data.split_seed to the codebook's, or fit it again with the run's"
            )

    def _check_source_has_training_audio(self, name: str) -> None:
        long_enough, shortest = self._long_enough(name), f"batch.min_seconds={self.batching.min_seconds:g}"
        if not long_enough.any():
            raise ValueError(
                f"source {name} has no usable audio: every utterance is shorter than {shortest}: lower it, or give longer audio"
            )
        if not (long_enough & ~self._held_out[name]).any():
            why = self.settlement or f"data.validation_share={self._asked_share:g}"
            lower = "" if self.settlement else "lower data.validation_share, "
            raise ValueError(
                f"source {name} has no usable audio to train on: all of its speakers with an utterance of at least {shortest} are held "
                f"out ({why}): {lower}choose another data.split_seed (the codebook's too), set data.validation_share=0, or add speakers"
            )

    def _long_enough(self, name: str) -> np.ndarray:
        """Marks rows that the plan does not leave out as too short; bool (rows,)."""
        return num_frames(np.asarray(self.indexes[name].num_samples, dtype=np.int64)) >= self.batching.min_frames

    def _check_validation_is_not_trained_on(self) -> None:
        for name in self.data.validation:
            index = self.indexes[name]
            for source in self.data.sources:
                shared = int(shared_rows(index, self.indexes[source]).sum())
                if shared:
                    raise ValueError(
                        f"a validation set must not be trained on, but {shared} of the {len(index)} rows of data.validation.{name} "
                        f"({index.path}) have audio of data.sources.{source} ({self.indexes[source].path}): remove them from one"
                    )

    @property
    def classes(self) -> tuple[int, ...]:
        """Clusters of each label set's codebook."""
        return tuple(store.num_classes for store in next(iter(self.label_sets.values())))

    @property
    def num_classes(self) -> int:
        """Clusters of the first label set's codebook."""
        return self.classes[0]

    def source_names(self) -> set[str]:
        """Names under which the training recordings were prepared (`source=` of make_shards), the empty name included."""
        return {name for training in self.data.sources for name in self.indexes[training].sources}

    def fingerprints(self) -> dict[str, str]:
        """Identity of the run's data: shards, their names (`metadata`, on which the split depends), labels, codebook, noise."""
        return {key: fingerprint for key, fingerprint, _ in self._identities()}

    def places(self) -> dict[str, str]:
        """Folder of each of `fingerprints` except codebooks and noise."""
        return {key: str(path) for key, _, path in self._identities() if path is not None}

    def _identities(self) -> Iterator[tuple[str, str, Path | None]]:
        """Key, fingerprint and folder of each part of the data."""
        yield from ((f"shards.{name}", index.fingerprint, index.path) for name, index in self.indexes.items())
        yield from ((f"metadata.{name}", index.metadata, index.path) for name, index in self.indexes.items())
        for number in range(len(self.classes)):
            which = f".{number + 1}" if number else ""
            for name, stores in self.label_sets.items():
                yield f"labels.{name}{which}", stores[number].fingerprint, stores[number].path
            yield f"codebook{which}", next(iter(self.label_sets.values()))[number].codebook_hash, None
        if self.noise_index is not None:
            yield "noise", self.noise_index.fingerprint, None

    def _plan(self, name: str, usable: np.ndarray, seed: int, stream: int, streams: int, epoch: int) -> EpochPlan:
        index, place = self.indexes[name], {"epoch": epoch, "stream": stream, "streams": streams}
        return EpochPlan(index.num_samples, index.first_row, usable, self.batching, seed=seed, source=name, **place)

    def schedule(self) -> Schedule:
        """Training schedule over all sources; a ValueError if one has fewer shards than streams."""
        sources: dict[str, tuple[float, list[SourceStream]]] = {}
        streams = self.data.streams
        for name, source in self.data.sources.items():
            index, usable = self.indexes[name], ~self._held_out[name]
            if len(index.shards) < streams:
                raise ValueError(
                    f"source {name} has {len(index.shards)} shards, fewer than data.streams={streams}: lower the latter"
                )
            share = source.get("share") or _hours(index, usable) * (source.get("weight") or 1.0)
            plans = [partial(self._plan, name, usable, self.seed, which, streams) for which in range(streams)]
            sources[name] = share, [SourceStream(plan, f"source {name}", self._background) for plan in plans]
        return Schedule(sources, self.batching.slots)

    def validation_specs(self) -> list[MicroBatchSpec]:
        """Micro-batches of the held-out speakers, at most `validation_seconds` of audio, shared out over the sources by their hours."""
        specs: list[MicroBatchSpec] = []
        frames = {name: _samples(self.indexes[name], held_out) / HOP_SAMPLES for name, held_out in self._held_out.items()}
        share = min(1.0, self.data.validation_seconds * FRAME_RATE_HZ / max(1.0, sum(frames.values())))
        for name, held_out in self._held_out.items():
            if not held_out.any():
                continue
            plan = self._plan(name, held_out, self.data.split_seed, stream=0, streams=1, epoch=0)
            budget, first = frames[name] * share, len(specs)
            for number in range(len(plan)):
                spec = plan.spec(number)
                size = int(spec.num_frames.sum())
                if len(specs) > first and size > budget:
                    break
                budget -= size
                specs.append(spec)
        return specs

    def plan_key(self) -> str:
        """Hash of all that the plan depends on, except the names in the shards (`metadata` of `fingerprints`)."""
        sources = {name: [source.get("weight"), source.get("share")] for name, source in self.data.sources.items()}
        shards = {name: index.fingerprint for name, index in self.indexes.items()}
        settings = [self.data.streams, self.data.validation_share, self.data.split_seed, self.seed, asdict(self.batching)]
        return hashlib.sha256(json.dumps([sources, shards, settings]).encode()).hexdigest()[:32]

    def close(self) -> None:
        """Stops planning ahead."""
        self._background.shutdown(wait=False, cancel_futures=True)

    def training_rows(self) -> list[tuple[Index, np.ndarray]]:
        """Each index with the mask of its training rows, bool (rows,)."""
        return [(index, ~self._held_out[name]) for name, index in self.indexes.items() if not self._held_out[name].all()]

    def held_out_rows(self) -> dict[str, tuple[Index, np.ndarray]]:
        """Name → index and mask of its held-out rows, bool (rows,)."""
        return {name: (index, self._held_out[name]) for name, index in self.indexes.items()}

    def label_counts(self, label_set: int = 0) -> np.ndarray:
        """Counts of each label of a label set in (a regular sample of) the training rows: int64 (classes,)."""
        counts = np.zeros(self.classes[label_set], dtype=np.int64)
        for name, stores in self.label_sets.items():
            rows = np.flatnonzero(~self._held_out[name])
            for row in rows[:: max(1, len(rows) // _UNIGRAM_ROWS)].tolist():
                counts += np.bincount(stores[label_set].read(row), minlength=len(counts))
        return counts

    def summary(self) -> dict[str, float | int]:
        """Hours and speakers of training and validation, for the start of a run; `usable_validation_rows` are long enough for a batch."""
        training = [(index, ~self._held_out[name]) for name, index in self.indexes.items()]
        validation = [(index, self._held_out[name]) for name, index in self.indexes.items()]
        return {
            "training_hours": round(sum(_hours(*part) for part in training), 3),
            "validation_hours": round(sum(_hours(*part) for part in validation), 3),
            "validation_seconds": round(3600 * sum(_hours(*part) for part in validation), 1),
            "training_speakers": sum(map(_speakers, training)),
            "validation_rows": sum(int(held_out.sum()) for _, held_out in validation),
            "usable_validation_rows": sum(int((self._long_enough(name) & rows).sum()) for name, rows in self._held_out.items()),
            "validation_speakers": sum(map(_speakers, validation)),
        }


def _open(shards: str) -> Index:
    index = Index.open(Path(shards))
    check_shards(index)
    return index


def _check_used(store: LabelStore) -> None:
    """Refuses labels of one cluster: a model learns nothing from them, and its loss is 0 at once (fairseq #4521)."""
    used = int((store.label_counts > 0).sum())
    if used < 2:
        raise ValueError(
            f"labels must use at least two clusters, but {store.path} uses {used} of its {store.num_classes} clusters: make them again"
        )


def _samples(index: Index, rows: np.ndarray) -> float:
    return float(np.sum(index.num_samples, where=rows, dtype=np.float64))


def _hours(index: Index, rows: np.ndarray) -> float:
    return _samples(index, rows) / SAMPLE_RATE_HZ / 3600


def _speakers(part: tuple[Index, np.ndarray]) -> int:
    """Number of named speakers in the chosen rows."""
    index, rows = part
    return int(np.count_nonzero(np.unique(index.speaker[rows])))
