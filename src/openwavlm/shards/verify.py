"""Compares a shard set with its checksums and counts, and decodes a sample of it again."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from openwavlm.audio.encode import pcm_id, pcm_md5
from openwavlm.runtime.atomic import sha256_of
from openwavlm.runtime.pool import run_jobs
from openwavlm.runtime.randomness import stable_hash, uniform, words
from openwavlm.shards.corpora.utterance import utterance_key
from openwavlm.shards.done import check_task_done, read_done_file, task_file
from openwavlm.shards.index import Index, ShardInfo, read_record, shard_identity, shard_metadata
from openwavlm.shards.reader import ShardReader, UnreadableAudio
from openwavlm.shards.tasks import TaskLine, names_of, read_task, task_lines
from openwavlm.shards.verify_input import MAKE_AGAIN, RESTORE, audio_by_key


@dataclass(frozen=True)
class ShardVerification:
    """Numbers of tars read, of rows in the index and of rows decoded and compared, and a sentence for each damage found."""

    shards: int
    rows: int
    decoded: int
    problems: list[str]

    def sentence(self) -> str:
        """Verdict for the terminal."""
        verdict = f"{self.shards} shards with {self.rows} utterances read, {self.decoded} decoded: "
        return verdict + (f"{len(self.problems)} problems, first: {self.problems[0]}" if self.problems else "no problems")


def verify_shards(path: Path | str, *, share: float = 0.01, seed: int = 0, workers: int = 1) -> ShardVerification:
    """Reads every tar and every file of the index of a shard set and compares them; decodes a sample of the rows.

    Both identities of every shard are computed again from the index, and each done-file is compared with it. If `make_shards` can
    extend the set, settings, task list and the tasks' done-files are checked too.

    Args:
        path: The shard set.
        share: Share of the rows that is decoded and compared with its MD5; at least one row of every shard.
        seed: Seed of the sample.
        workers: Local processes.

    Raises:
        ValueError: If `share` is outside [0, 1], or there is no readable index.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], but is {share}")
    index = Index.open(path, check=False)
    problems = index.problems() + _name_problems(index)
    numbers, verify = range(len(index.shards)), partial(_verify_shard, index.path, share, seed)
    found = sorted(run_jobs(verify, numbers, workers=workers, description="reading shards"))
    problems += [problem for _, _, part in found for problem in part]
    listed = {shard.name for shard in index.shards}
    problems += [
        f"{tar} is not in the index: run openwavlm make-shards again"
        for tar in sorted((index.path / "shards").glob("*/*.tar"))
        if tar.relative_to(index.path).as_posix() not in listed
    ]
    problems += _growth_problems(index)
    return ShardVerification(len(numbers), len(index), sum(decoded for _, decoded, _ in found), problems)


def _verify_shard(path: Path, share: float, seed: int, shard: int) -> tuple[int, int, list[str]]:
    """Returns the shard's number, the number of decoded rows, and the problems."""
    index = Index.open(path, check=False)
    info = index.shards[shard]
    tar = index.path / info.name
    if not tar.is_file():
        return shard, 0, [f"{tar} is missing"]
    problems = []
    if tar.stat().st_size != info.nbytes:
        problems.append(f"{tar} must have {info.nbytes} bytes, but has {tar.stat().st_size}")
    elif sha256_of(tar) != info.checksum:
        problems.append(f"{tar} does not have its checksum")
    rows = np.arange(index.first_row[shard], index.first_row[shard + 1])
    if shard_identity(index.pcm[rows], index.key[rows], index.num_samples[rows]) != info.identity:
        problems.append(f"the index rows of {tar} do not have their identity")
    problems += _done_file_problems(tar.with_suffix(".json"), info)
    members = _count_members(tar)
    if members != 2 * len(rows):
        problems.append(f"{tar} must hold {2 * len(rows)} members, but a tar reader finds {members}")
    draws = uniform(words(seed, "verify", len(rows), micro=shard))
    chosen = np.flatnonzero(draws < max(share, draws.min(initial=1) + 1e-12))
    reader = ShardReader(index)
    for row in rows[chosen]:
        try:
            samples = reader.read(int(row))
        except UnreadableAudio as error:
            problems.append(str(error))
            continue
        if pcm_id(pcm_md5(samples)) != int(index.pcm[row]):
            problems.append(f"row {row} of {tar} does not decode to the samples of its MD5")
    reader.close()
    return shard, len(chosen), problems


def _name_problems(index: Index) -> list[str]:
    """Problems of shards with speakers, recordings, sources, languages or keys that do not have their checksum."""
    problems = []
    try:
        keys = index.keys
        for number, info in enumerate(index.shards):
            first, last = int(index.first_row[number]), int(index.first_row[number + 1])
            tar = index.path / info.name
            if shard_metadata(index.names(first, last)) != info.metadata:
                problems.append(f"the speakers, recordings, sources and languages of {tar} do not have their checksum (metadata)")
            if keys and [stable_hash(key) for key in keys[first:last]] != index.key[first:last].tolist():
                problems.append(f"the keys of {tar} in keys.txt do not have the hashes in key.npy")
    except ValueError as error:
        problems.append(str(error))
    return problems


def _done_file_problems(file: Path, info: ShardInfo) -> list[str]:
    """Problems of a shard's done-file; a set without done-files can be used, but not extended."""
    try:
        same = not file.is_file() or read_done_file(file).info == info
    except ValueError as error:
        return [str(error)]
    return [] if same else [f"{file} does not describe the shard of the index"]


def _count_members(tar: Path) -> int:
    try:
        with tarfile.open(tar, "r:") as file:
            return sum(1 for _ in file)
    except tarfile.TarError:
        return 0


def _growth_problems(index: Index) -> list[str]:
    """Problems of the files that `make_shards` reads to extend a set; none if all are absent, since such a set was assembled otherwise."""
    path = index.path
    settings, listing = path / "settings.json", path / "tasks.jsonl"
    lines = task_lines(listing) if listing.is_file() else []
    remedies = {settings: RESTORE, listing: RESTORE}
    remedies |= {task_file(path, line.number): MAKE_AGAIN for line in lines}
    remedies |= {(path / info.name).with_suffix(".json"): MAKE_AGAIN for info in index.shards}
    if not any(file.exists() for file in remedies):
        return []
    problems = [f"{file} is missing: {remedy}" for file, remedy in remedies.items() if not file.is_file()]
    if listing.is_file() and not lines:
        problems.append(f"{listing} is empty: {RESTORE}")
    source = None
    try:
        source = read_record(settings, path, remedy=RESTORE).text("source") if settings.is_file() else None
    except ValueError as error:
        problems.append(str(error))
    numbers = {info.name: number for number, info in enumerate(index.shards)}
    for line in lines:
        try:
            problems += _task_problems(index, numbers, line, source)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _task_problems(index: Index, numbers: dict[str, int], line: TaskLine, source: str | None) -> Iterator[str]:
    """Yields differences between a task, its done-file and the rows of its shards (`numbers` by name); no `source`: without keys."""
    listing, file = index.path / "tasks.jsonl", task_file(index.path, line.number)
    items = read_task(listing, line).items
    if not file.is_file():
        return
    done = read_record(file, index.path, remedy=MAKE_AGAIN)
    check_task_done(done)
    shards = done.mapping("shards")
    own = sorted(numbers[name] for name in shards.keys() & numbers.keys())
    if {index.shards[number].name: index.shards[number].nbytes for number in own} != shards:
        yield f"{file} names other shards than the index: {MAKE_AGAIN}"
    skipped = {entry.text("name") for entry in done.objects("skipped")}
    alone = [item[0].name for item in items if len(item) == 1 and item[0].name not in skipped]
    keys = audio_by_key(index, own)
    lacking = sum(stable_hash(utterance_key(source, name)) not in keys for name in alone) if source is not None else 0
    planned = len(names_of(items))
    if done.values.get("planned", planned) != planned or lacking:
        yield f"{listing}, line {line.number + 1} is not the task of {file} ({lacking} utterances have no row): {RESTORE}"
