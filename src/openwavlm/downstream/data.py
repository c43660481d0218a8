"""Data of a fine-tuning: shard sets and targets, opened, checked and split; training schedule and the plans of held-out parts."""

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.audio.frames import SAMPLE_RATE_HZ, num_frames
from openwavlm.batches.plan import EpochPlan, MicroBatchSpec
from openwavlm.batches.schedule import Schedule, SourceStream
from openwavlm.batches.settings import Batching
from openwavlm.downstream.settings import SplitBy, Task, TaskData
from openwavlm.downstream.split import TEST, TRAINING, UNUSED, VALIDATION, shared_speakers, split_parts
from openwavlm.downstream.targets import fingerprint_of, read_table, read_targets
from openwavlm.downstream.vocabulary import Vocabulary, frames_needed
from openwavlm.shards.index import Index
from openwavlm.shards.reader import check_shards
from openwavlm.shards.splits import audio_in

log = logging.getLogger(__name__)
_SHOWN = 5
_PARTS = {TRAINING: "training", VALIDATION: "validation", TEST: "test"}


class OpenTask:
    """Shard sets and targets of a fine-tuning, opened and checked.

    Attributes:
        vocabulary: Output symbols of a CTC task; None for classes.
        classes: Labels of a classification, in order; empty for CTC.
        targets: Set → prepared target of each row, None without.
        numbers: Set → numbers of each row's target, None without.
        parts: Set → part of each row, int8 (rows,), of `split`.

    Raises:
        ValueError: If a folder is missing, damaged or of a newer format, a target is missing, empty or has symbols that the training part
            lacks, there is one class only, a part is empty, or training and held-out parts share speakers or audio.
    """

    def __init__(self, task: Task, data: TaskData, batching: Batching, seed: int) -> None:
        self.task, self.data, self.batching, self.seed = task, data, batching, seed
        self.indexes = {name: _open(values["shards"]) for name, values in data.all_sets.items()}
        table = read_table(Path(task.table), task) if task.table else None
        self.targets = {name: read_targets(index, task, table) for name, index in self.indexes.items()}
        used = {name: np.array([target is not None for target in of_set]) for name, of_set in self.targets.items()}
        for name, of_set in used.items():
            if not of_set.any():
                raise ValueError(
                    f"task.table={task.table} names no row of {self.indexes[name].path}: its keys are {_some(self.indexes[name].keys)}"
                )
        by_speaker: SplitBy = "utterance" if task.target == "speaker" else "speaker"
        self.split: SplitBy = data.split or by_speaker
        self.parts = split_parts(self.indexes, used, data, self.split)
        self.vocabulary, self.classes = self._symbols()
        self._check_symbols()
        number_of = {label: number for number, label in enumerate(self.classes)}
        self.numbers = {name: [self._numbers(target, number_of) for target in of_set] for name, of_set in self.targets.items()}
        self._check_overlap()
        self.left_out = self._leave_out()
        self._background = ThreadPoolExecutor(1, thread_name_prefix="plan")

    def _symbols(self) -> tuple[Vocabulary | None, tuple[str, ...]]:
        trained = [
            target
            for name in self.data.sources
            for target, part in zip(self.targets[name], self.parts[name].tolist(), strict=True)
            if part == TRAINING and target is not None
        ]
        if self.task.of_sequences:
            return Vocabulary.of(trained, phones=self.task.name == "phones"), ()
        classes = tuple(sorted(set(trained)))
        if len(classes) < 2:
            raise ValueError(
                f"a classification needs at least two classes, but all {len(trained)} training rows have task.field={self.task.target} = "
                f"{classes[0]!r}: name another field, or add rows"
            )
        return None, classes

    def _check_symbols(self) -> None:
        """Refuses held-out targets with symbols or classes that the training part lacks."""
        rows, classes = dict[str, int](), set(self.classes)
        for of_set in self.targets.values():
            for target in of_set:
                if target is None:
                    continue
                unknown = self.vocabulary.unknown(target) if self.vocabulary else [] if target in classes else [target]
                for symbol in unknown:
                    rows[symbol] = rows.get(symbol, 0) + 1
        if rows:
            listed = ", ".join(f"{symbol!r} in {count}" for symbol, count in sorted(rows.items(), key=lambda one: -one[1])[:20])
            what, cure = (
                ("letters", f"'task.replace=[\"{max(rows, key=lambda one: rows[one])}=\"]'")
                if self.vocabulary
                else (
                    "classes",
                    "data.split=utterance, or a task.table without these rows",
                )
            )
            raise ValueError(
                f"{len(rows)} {what} of held-out rows do not occur in the training part ({listed} rows): map or remove them by {cure}"
            )

    def _numbers(self, target: str | None, number_of: Mapping[str, int]) -> list[int] | None:
        if target is None:
            return None
        return self.vocabulary.encode(target) if self.vocabulary else [number_of[target]]

    def _check_overlap(self) -> None:
        speakers = shared_speakers(self.indexes, self.parts, (VALIDATION, TEST))
        if speakers and self.split == "speaker" and self.task.target != "speaker":
            self._refuse(
                f"{len(speakers)} speakers of the training part are in the validation or test part ({_some(speakers)})",
                "name sets of other speakers",
            )
        for part in (VALIDATION, TEST):
            shared = [key for key, index in self._shared_audio(part)]
            if shared:
                self._refuse(
                    f"{len(shared)} rows of the {_PARTS[part]} part have audio of the training part ({_some(shared)})",
                    "remove them from one",
                )

    def _shared_audio(self, part: int) -> Iterator[tuple[str, Index]]:
        for name, index in self.indexes.items():
            chosen = np.flatnonzero(self.parts[name] == part)
            if not len(chosen):
                continue
            for source in self.data.sources:
                found = audio_in(np.asarray(index.pcm[chosen]), self.indexes[source], self.parts[source] == TRAINING)
                yield from ((index.keys[row], index) for row in chosen[found].tolist())

    def _refuse(self, found: str, cure: str) -> None:
        if not self.data.allow_overlap:
            raise ValueError(f"held-out data must be new to the model, but {found}: {cure}, or set data.allow_overlap=true")
        log.warning("%s (data.allow_overlap)", found)

    def _leave_out(self) -> dict[str, list[str]]:
        """Marks training rows that cannot be trained on as unused; returns their keys by reason."""
        found: dict[str, list[str]] = {"too long": [], "too short": [], "with fewer frames than symbols": []}
        for name in self.data.sources:
            index = self.indexes[name]
            frames = num_frames(np.asarray(index.num_samples, dtype=np.int64))
            for row in np.flatnonzero(self.parts[name] == TRAINING).tolist():
                numbers = self.numbers[name][row]
                assert numbers is not None
                if frames[row] > self.batching.max_frames:
                    reason = "too long"
                elif frames[row] < self.batching.min_frames:
                    reason = "too short"
                elif self.vocabulary is not None and frames_needed(numbers) > frames[row]:
                    reason = "with fewer frames than symbols"
                else:
                    continue
                found[reason].append(index.keys[row])
                self.parts[name][row] = UNUSED
        if not any((self.parts[name] == TRAINING).any() for name in self.data.sources):
            counts = ", ".join(f"{len(keys)} {reason}" for reason, keys in found.items() if keys)
            raise ValueError(
                f"no training row can be used ({counts}): raise batch.max_seconds={self.batching.max_seconds:g}, lower batch.min_seconds="
                f"{self.batching.min_seconds:g}, or check the targets"
            )
        return {reason: keys for reason, keys in found.items() if keys}

    @property
    def num_outputs(self) -> int:
        """Symbols of the vocabulary, or classes."""
        return len(self.vocabulary) if self.vocabulary is not None else len(self.classes)

    def source_names(self) -> set[str]:
        """Names under which the training recordings were prepared, the empty name included."""
        return {name for training in self.data.sources for name in self.indexes[training].sources}

    def fingerprints(self) -> dict[str, str]:
        """Identity of the data: shards, their names, targets, and the symbols in order."""
        symbols = self.vocabulary.symbols if self.vocabulary is not None else self.classes
        return {
            **{f"shards.{name}": index.fingerprint for name, index in self.indexes.items()},
            **{f"metadata.{name}": index.metadata for name, index in self.indexes.items()},
            **{f"targets.{name}": fingerprint_of(targets) for name, targets in self.targets.items()},
            "symbols": hashlib.blake2b(json.dumps(symbols).encode(), digest_size=16).hexdigest(),
        }

    def places(self) -> dict[str, str]:
        """Folder of each of the shard sets' fingerprints."""
        return {
            f"{kind}.{name}": str(index.path)
            for name, index in self.indexes.items()
            for kind in ("shards", "metadata", "targets")
        }

    def _plan(
        self, name: str, batching: Batching, usable: np.ndarray, seed: int, stream: int, streams: int, epoch: int
    ) -> EpochPlan:
        index, place = self.indexes[name], {"epoch": epoch, "stream": stream, "streams": streams}
        return EpochPlan(index.num_samples, index.first_row, usable, batching, seed=seed, source=name, **place)

    def schedule(self) -> Schedule:
        """Training schedule over all sources."""
        sources: dict[str, tuple[float, list[SourceStream]]] = {}
        streams = self.data.streams
        for name, source in self.data.sources.items():
            index, usable = self.indexes[name], self.parts[name] == TRAINING
            if not usable.any():
                raise ValueError(f"source {name} has no row to train on: remove it by ~data.sources.{name}")
            if len(index.shards) < streams:
                raise ValueError(
                    f"source {name} has {len(index.shards)} shards, fewer than data.streams={streams}: lower the latter"
                )
            share = source.get("share") or _seconds(index, usable) * (source.get("weight") or 1.0)
            plans = [partial(self._plan, name, self.batching, usable, self.seed, which, streams) for which in range(streams)]
            sources[name] = share, [SourceStream(plan, f"source {name}", self._background) for plan in plans]
        return Schedule(sources, self.batching.slots)

    def specs(self, part: int, most_seconds: float = math.inf) -> list[MicroBatchSpec]:
        """Micro-batches of whole utterances of a held-out part, each row once, at most so many seconds of each set."""
        specs: list[MicroBatchSpec] = []
        for name, index in self.indexes.items():
            usable = self.parts[name] == part
            if not usable.any():
                continue
            longest = float(np.max(index.num_samples[usable])) / SAMPLE_RATE_HZ
            seconds = max(self.batching.micro_seconds, longest + 0.1)
            batching = replace(
                self.batching, seconds=seconds, micro_seconds=seconds, max_seconds=min(1200.0, longest + 0.1), min_seconds=0.025
            )
            plan = self._plan(name, batching, usable, self.data.split_seed, stream=0, streams=1, epoch=0)
            budget = most_seconds
            for number in range(len(plan)):
                spec = plan.spec(number)
                budget -= float(np.sum(index.num_samples[spec.rows])) / SAMPLE_RATE_HZ
                if budget < 0 and specs:
                    break
                specs.append(spec)
        return specs

    def plan_key(self) -> str:
        """Hash of all that the plan depends on, except the names in the shards."""
        sources = {name: [source.get("weight"), source.get("share")] for name, source in self.data.sources.items()}
        parts = {name: hashlib.blake2b(of_set.tobytes(), digest_size=16).hexdigest() for name, of_set in self.parts.items()}
        shards = {name: index.fingerprint for name, index in self.indexes.items()}
        content = [sources, shards, parts, self.data.streams, self.seed, asdict(self.batching)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]

    def close(self) -> None:
        """Stops planning ahead."""
        self._background.shutdown(wait=False, cancel_futures=True)

    def summary(self) -> dict[str, Any]:
        """Rows, hours and speakers of each part."""
        return {_PARTS[part]: self._of_part(part) for part in _PARTS}

    def _of_part(self, part: int) -> dict[str, Any]:
        chosen = [(index, self.parts[name] == part) for name, index in self.indexes.items()]
        speakers = {
            index.speakers[number] for index, rows in chosen for number in np.unique(index.speaker[rows]).tolist() if number
        }
        return {
            "rows": sum(int(rows.sum()) for _, rows in chosen),
            "seconds": round(sum(_seconds(index, rows) for index, rows in chosen), 1),
            "speakers": len(speakers),
        }


def _open(shards: str) -> Index:
    index = Index.open(Path(shards))
    if not index.keys and len(index):
        raise ValueError(
            f"the index of {shards} has no keys, by which targets are found: delete {shards}/index and run make-shards again"
        )
    check_shards(index)
    return index


def _seconds(index: Index, rows: np.ndarray) -> float:
    return float(np.sum(index.num_samples, where=rows, dtype=np.float64)) / SAMPLE_RATE_HZ


def _some(names: Sequence[str] | Mapping[str, Any]) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (", …" if len(listed) > _SHOWN else "")
