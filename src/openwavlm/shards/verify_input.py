"""Compares a shard set with the recordings that it was made from, by decoding a sample of them again."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from openwavlm.audio.containers.flac import flac_md5
from openwavlm.audio.encode import pcm_id
from openwavlm.runtime.pool import run_jobs
from openwavlm.runtime.randomness import stable_hash
from openwavlm.shards.corpora.listing import corpus_root
from openwavlm.shards.decoding_tasks import TaskDecoder
from openwavlm.shards.done import task_file
from openwavlm.shards.index import Index, read_record
from openwavlm.shards.tasks import Item, TaskLine, read_task, task_lines
from openwavlm.shards.writer import make_row

RESTORE = "restore it from a copy, or the set cannot be extended"
MAKE_AGAIN = "restore it from a copy, or run openwavlm make-shards with the same input, which makes its task again"


@dataclass(frozen=True)
class InputVerification:
    """Numbers of rows made again from the input and of all rows, and a sentence for each recording that is missing or has other audio."""

    rows: int
    all_rows: int
    problems: list[str]

    def sentence(self) -> str:
        """Verdict for the terminal."""
        verdict = f"{self.rows} of {self.all_rows} rows made again from the input: "
        return verdict + (f"{len(self.problems)} recordings have changed" if self.problems else "all recordings are unchanged")


def verify_input(
    path: Path | str, input: Path | str, *, share: float = 0.01, seed: int = 0, workers: int = 1
) -> InputVerification:
    """Decodes recordings of the input again and compares their audio with the shard set's, sample by sample.

    If a decoder has another version than in `settings.json`, samples of compressed audio may differ.

    Args:
        path: The shard set.
        input: Folder or manifest that it was made from.
        share: Share of the recordings that is decoded; at least one of each task.
        seed, workers: As in `verify_shards`.

    Raises:
        ValueError: If the input does not exist, or `settings.json` or `tasks.jsonl` of the set is missing or damaged.
    """
    path, input = Path(path), Path(input)
    if not input.exists():
        raise ValueError(f"the input {input} does not exist: give the folder or manifest that {path} was made from")
    settings = read_record(path / "settings.json", path, remedy=RESTORE)
    for name in ("layout", "source", "channels"):
        settings.text(name)
    settings.number("max_hours")
    root = corpus_root(input, settings.text("layout"))
    verify = partial(_verify_task, path, root, settings.values, share, seed)
    found = list(run_jobs(verify, task_lines(path / "tasks.jsonl"), workers=workers, description="decoding the input"))
    all_rows = len(Index.open(path, check=False))
    return InputVerification(sum(rows for rows, _ in found), all_rows, sorted(problem for _, part in found for problem in part))


def _verify_task(
    path: Path, root: Path, settings: dict[str, Any], share: float, seed: int, line: TaskLine
) -> tuple[int, list[str]]:
    """Makes rows of a task again; returns their number, and a sentence for each recording that differs."""
    done = read_record(task_file(path, line.number), path, remedy=MAKE_AGAIN)
    skipped = {entry.text("name") for entry in done.objects("skipped")}
    index, shards = Index.open(path, check=False), done.mapping("shards")
    pcm_of_key = audio_by_key(index, [number for number, info in enumerate(index.shards) if info.name in shards])
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in read_task(path / "tasks.jsonl", line).items:
        if usable := [utterance for utterance in item if utterance.name not in skipped]:
            groups[usable[0].path].append(usable)
    draws = {name: stable_hash(f"{seed}/input/{name}") / 2**64 for name in groups}
    bound = max(share, min(draws.values(), default=1.0) + 1e-12)
    rows = 0
    other: set[str] = set()
    lost: dict[str, str] = {}
    for name in sorted(name for name, draw in draws.items() if draw < bound):
        decoder = TaskDecoder(root, settings["channels"], settings["max_hours"])
        for clips in decoder.decode_items(groups[name]):
            row = make_row(clips, settings["source"])
            rows += 1
            if pcm_of_key.get(stable_hash(row.key)) != pcm_id(flac_md5(row.flac)):
                other |= {utterance.path for utterance, _ in clips}
        lost |= {entry["path"]: entry["detail"] for entry in decoder.skipped}
    problems = [f"{root / name} cannot be decoded as before ({detail})" for name, detail in lost.items()]
    return rows, problems + [f"{root / name} has other audio than {path}" for name in sorted(other - lost.keys())]


def audio_by_key(index: Index, shards: Iterable[int]) -> dict[int, int]:
    """Maps the keys of the rows of some shards to the identities of their audio; reads no other row of the index."""
    audio: dict[int, int] = {}
    for number in shards:
        rows = slice(int(index.first_row[number]), int(index.first_row[number + 1]))
        audio |= zip(index.key[rows].tolist(), index.pcm[rows].tolist(), strict=True)
    return audio
