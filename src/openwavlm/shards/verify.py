"""Compares a shard set with its checksums and counts, and decodes a sample of it again."""

import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openwavlm.audio.encode import pcm_id, pcm_md5
from openwavlm.runtime.atomic import sha256_of
from openwavlm.runtime.pool import run_jobs
from openwavlm.runtime.randomness import stable_hash, uniform, words
from openwavlm.shards.growth import problems_of_growth
from openwavlm.shards.index import Index, ShardInfo, shard_identity, shard_metadata
from openwavlm.shards.reader import ShardReader, UnreadableAudio
from openwavlm.shards.shard_done import read_done_file


@dataclass(frozen=True)
class ShardVerification:
    """What was compared.

    Attributes:
        shards: Number of tars read.
        rows: Rows that they should hold.
        decoded: Rows whose audio was decoded and compared.
        problems: One sentence for each damage found.
    """

    shards: int
    rows: int
    decoded: int
    problems: list[str]

    @property
    def passed(self) -> bool:
        """True if nothing is damaged."""
        return not self.problems

    def sentence(self) -> str:
        """The verdict, for people."""
        verdict = f"{self.shards} shards with {self.rows} utterances read, {self.decoded} decoded: "
        return verdict + ("all as it should be" if self.passed else f"{len(self.problems)} problems, first: {self.problems[0]}")


@dataclass(frozen=True)
class _ShardJob:
    path: Path
    shard: int
    share: float
    seed: int


def verify_shards(path: Path | str, *, share: float = 0.01, seed: int = 0, workers: int = 1) -> ShardVerification:
    """Reads every tar and every file of the index of a shard set and compares them; decodes a sample of the rows.

    Both identities of every shard are computed again from the index, and each done-file is compared with it. Of a set that
    `make_shards` can extend, what it reads for that is read: settings, task list and the tasks' done-files.

    Args:
        path: The shard set.
        share: Share of the rows that is decoded and compared with its MD5; at least one row of every shard.
        seed: Seed of that choice.
        workers: Local processes.

    Returns:
        The problems that were found: of the index, then in shard order.

    Raises:
        ValueError: If `share` is outside [0, 1], or there is no readable index.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], but is {share}")
    index = Index.open(path, check=False)
    problems = index.problems() + _name_problems(index)
    jobs = [_ShardJob(index.path, shard, share, seed) for shard in range(len(index.shards))]
    found = sorted(run_jobs(_verify_shard, jobs, workers=workers, description="reading shards"))
    problems += [problem for _, _, part in found for problem in part]
    listed = {shard.name for shard in index.shards}
    problems += [
        f"{tar} is not in the index: run data_prep/make_shards.py again"
        for tar in sorted((index.path / "shards").glob("*/*.tar"))
        if tar.relative_to(index.path).as_posix() not in listed
    ]
    problems += problems_of_growth(index)
    return ShardVerification(len(jobs), len(index), sum(decoded for _, decoded, _ in found), problems)


def _verify_shard(job: _ShardJob) -> tuple[int, int, list[str]]:
    """Returns the shard's number, how many rows were decoded, and the problems."""
    index = Index.open(job.path, check=False)
    info = index.shards[job.shard]
    tar = index.path / info.name
    if not tar.is_file():
        return job.shard, 0, [f"{tar} is missing"]
    problems = []
    if tar.stat().st_size != info.nbytes:
        problems.append(f"{tar} must have {info.nbytes} bytes, but has {tar.stat().st_size}")
    elif sha256_of(tar) != info.checksum:
        problems.append(f"{tar} does not have its checksum")
    rows = np.arange(index.first_row[job.shard], index.first_row[job.shard + 1])
    if shard_identity(index.pcm[rows], index.key[rows], index.num_samples[rows]) != info.identity:
        problems.append(f"the index rows of {tar} do not have their identity")
    problems += _done_file_problems(tar, info)
    members = _count_members(tar)
    if members != 2 * len(rows):
        problems.append(f"{tar} must hold {2 * len(rows)} members, but a tar reader finds {members}")
    draws = uniform(words(job.seed, "verify", len(rows), micro=job.shard))
    chosen = np.flatnonzero(draws < max(job.share, draws.min(initial=1) + 1e-12))
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
    return job.shard, len(chosen), problems


def _name_problems(index: Index) -> list[str]:
    """Shards whose speakers, recordings, sources, languages or keys are not those of their checksum."""
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


def _done_file_problems(tar: Path, info: ShardInfo) -> list[str]:
    """Differences between a shard's done-file and its entry in the index; a set without done-files can be used, but not extended."""
    file = tar.with_suffix(".json")
    if not file.is_file():
        return []
    try:
        done = read_done_file(file)
    except ValueError as error:
        return [str(error)]
    return [] if done.info == info else [f"{file} does not describe the shard that the index does"]


def _count_members(tar: Path) -> int:
    try:
        with tarfile.open(tar, "r:") as file:
            return sum(1 for _ in file)
    except tarfile.TarError:
        return 0
