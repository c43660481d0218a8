"""Shard sets of the study of fine-tuning: digits, phones and read speech of a folder with `manifest.tsv`, and their folds."""

import csv
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from openwavlm.pipeline.stages import Chain, Stage, fingerprint
from openwavlm.runtime.atomic import write_atomically
from openwavlm.shards.prepare import make_shards

VERSION = 1
SPEECH = ("train", "dev", "test")  # of LibriSpeech
_LEAST = 2  # utterances of each group that a phone must occur in
_PAUSES = ("sil", "sp")


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a TSV file with a header, without quoting.

    Raises:
        ValueError: If the file does not exist.
    """
    if not path.is_file():
        raise ValueError(
            f"the study needs {path}, which does not exist: give data=DIR, a folder with manifest.tsv and phones.tsv"
        )
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def task_sets(chain: Chain, data: Path) -> dict[str, Stage]:
    """Makes or finds the shard sets `digits`, `phones`, and `train`, `dev` and `test` of LibriSpeech.

    Raises:
        ValueError: If a table is missing, or names no row of a set.
    """
    rows = table(data / "manifest.tsv")
    chosen = {"digits": _digits(rows), "phones": _phones(rows, data), **_speech(rows)}
    return {name: _shards(chain, data, name, of_set) for name, of_set in chosen.items()}


def _digits(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Spoken digits: `text` and `word` are the word in letters, the speaker is the folder."""
    found = []
    for row in rows:
        folder, _, rest = row["path"].partition("/")
        if folder == "fsdd":
            found.append({"path": row["path"], "speaker": rest.partition("/")[0], "text": row["text"], "word": row["text"]})
    return found


def _phones(rows: Iterable[dict[str, str]], data: Path) -> list[dict[str, str]]:
    """Phrases with aligned phones; without stress and pauses, and without utterances of a phone that a group hardly has."""
    spoken: dict[str, list[str]] = defaultdict(list)
    for one in table(data / "phones.tsv"):
        if one["set"] == "autovot" and one["phone"] not in _PAUSES:
            spoken[one["path"]].append(re.sub(r"\d", "", one["phone"]))
    group = {row["path"]: Path(row["path"]).parts[2] for row in rows if row["path"] in spoken}
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for path, name in group.items():
        for phone in set(spoken[path]):
            counts[phone][name] += 1
    rare = {phone for phone, of in counts.items() if min(of.get(name, 0) for name in set(group.values())) < _LEAST}
    return [
        {"path": path, "speaker": name, "phones": " ".join(spoken[path])}
        for path, name in sorted(group.items())
        if not rare.intersection(spoken[path])
    ]


def _speech(rows: Iterable[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """LibriSpeech excerpts: every eighth speaker of train-clean-100 is held out for validation, test-other is the test."""
    parts: dict[str, list[dict[str, str]]] = {name: [] for name in SPEECH}
    names = {"train-clean-100": "train", "test-other": "test"}
    for row in rows:
        folder, part, *_ = (*row["path"].split("/"), "")
        if folder == "LibriSpeech" and part in names:
            parts[names[part]].append({name: row[name] for name in ("path", "speaker", "text")})
    held_out = set(sorted({row["speaker"] for row in parts["train"]})[::8])
    parts["dev"] = [row for row in parts["train"] if row["speaker"] in held_out]
    parts["train"] = [row for row in parts["train"] if row["speaker"] not in held_out]
    return parts


def _shards(chain: Chain, data: Path, name: str, rows: list[dict[str, str]]) -> Stage:
    if not rows:
        raise ValueError(
            f"{data / 'manifest.tsv'} has no row of {name}: give data=DIR, the folder with fsdd, LibriSpeech and phones"
        )

    def make(folder: Path) -> dict[str, Any]:
        header = [*rows[0], "recording"]
        lines = [header, *([str((data / row["path"]).resolve()), *list(row.values())[1:], row["path"]] for row in rows)]
        write_atomically(folder / "corpus.tsv", "".join("\t".join(line) + "\n" for line in lines).encode())
        source = {"digits": "fsdd", "phones": "autovot"}.get(name, "librispeech")
        made = make_shards(
            input=folder / "corpus.tsv",
            output=folder,
            layout="manifest",
            source=source,
            min_seconds=0.1,
            join_short=False,
        )
        return {"speakers": sorted({row["speaker"] for row in rows}), "rows": len(rows), "hours": made.get("hours")}

    settings = {"version": VERSION, "rows": rows, "data": fingerprint(data / "manifest.tsv")}
    return chain.run(f"sets/{name}", settings, [], make)
