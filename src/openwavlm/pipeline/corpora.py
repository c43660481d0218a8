"""Shard sets of the loop, from synthesised or given corpora."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openwavlm.pipeline.stages import Chain, Stage, fingerprint
from openwavlm.shards.corpora.listing import list_corpus
from openwavlm.shards.prepare import make_shards
from openwavlm.shards.settings import source_name
from openwavlm.shards.splits import split_hash
from openwavlm.shards.stats import sentences
from openwavlm.synthesis.corpus import FORMAT_VERSION, synthesize

log = logging.getLogger(__name__)

SETS = ("train", "dev", "test")
_CLEAN = tuple(f"{name}_clean" for name in SETS)
_HELD_OUT_SHARE = 0.05  # of the speakers, each for dev and test


def shard_sets(chain: Chain, config: dict[str, Any]) -> tuple[dict[str, Stage], Path | None]:
    """Makes or finds the shard sets, by `synthesis`, `corpora`, `alignments` and `workers` of the config.

    Returns:
        Stages of `train`, `dev`, `test` and for probes of `train_clean`, `dev_clean`, `test_clean`; the table of phone times, or None.

    Raises:
        ValueError: If a corpus or the table does not exist, a set has no corpus, one folder cannot be split by speaker, or a corpus
            is refused.
    """
    if config["synthesis"]:
        return _synthesised(chain, config)
    corpora = _given(config)
    content = functools.cache(fingerprint)
    shards = {
        name: chain.run(f"shards/{name}", corpus, [], _shards(corpus, config), content=content(Path(corpus["input"])))
        for name, corpus in corpora.items()
    }
    for name, clean in zip(SETS, _CLEAN, strict=True):
        shards.setdefault(clean, shards[name])
    return shards, Path(config["alignments"]) if config["alignments"] else None


def _synthesised(chain: Chain, config: dict[str, Any]) -> tuple[dict[str, Stage], Path]:
    settings = dict(config["synthesis"])
    made = chain.run(
        "corpus",
        settings | {"format_version": FORMAT_VERSION},
        [],
        lambda folder: synthesize(output=folder / "audio", workers=config["workers"], **settings),
    )
    audio = made.folder / "audio"
    shards = {}
    for name in (*SETS, *_CLEAN):
        corpus = {"input": str(audio / f"{name}.tsv"), "layout": "manifest", "source": "demo"}
        shards[name] = chain.run(f"shards/{name}", {"set": name}, [made], _shards(corpus, config))
    return shards, audio / "phones.tsv"


def _given(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Arguments of `make_shards` for each set: those of `corpora.NAME`, or of parts of `corpora.input`."""
    values = config["corpora"]
    corpora = {name: of for name, of in values.items() if name in (*SETS, *_CLEAN) and of and of.get("input")}
    whole = {name: value for name, value in values.items() if name not in (*SETS, *_CLEAN)}
    inputs = {f"corpora.{name}.input": corpus["input"] for name, corpus in corpora.items()}
    for key, path in (inputs | {"corpora.input": whole.get("input"), "alignments": config["alignments"]}).items():
        if path and not Path(path).exists():
            raise ValueError(f"{key} must be a folder or a file, but {path} does not exist: correct the path")
    twice = [name for name in SETS if name in corpora]
    if whole.get("input") and twice:
        raise ValueError(
            f"corpora.input is split into train, dev and test, but corpora.{twice[0]}.input is given too: omit one of them"
        )
    if whole.get("input"):
        corpora = {name: whole | {"speakers": between} for name, between in speaker_ranges(whole).items()} | corpora
    for name in SETS:
        if name not in corpora:
            raise ValueError(
                f"iterate needs recordings, but corpora.{name}.input is not given: give corpora.input=DIR, which is split by speaker, or "
                "corpora.train.input, corpora.dev.input and corpora.test.input"
            )
    return corpora


def speaker_ranges(corpus: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Ranges of `split_hash` that split the speakers of a corpus, given as arguments of `make_shards`, into train, dev and test.

    Hashes in the lowest 5 % are dev, as with `data.validation_share=0.05`, and those in the next 5 % are test. If a set gets no
    speaker this way, as in a small corpus, the speaker with the lowest hash is dev and the next one is test.

    Returns:
        First hash of each set and the one after its last; a set that keeps its range keeps its speakers when the corpus grows.

    Raises:
        ValueError: If a speaker is unknown, or there are fewer than three.
    """
    path = Path(corpus["input"])
    columns = {field: column for field, column in (corpus.get("columns") or {}).items() if column}
    settings = {"layout": "folder", "speaker_folder": 0, "language": ""} | corpus | {"columns": columns}
    utterances = list_corpus(path, settings, corpus.get("subfolders") or ()).utterances
    if unknown := sum(not utterance.speaker for utterance in utterances):
        raise ValueError(
            f"corpora.input is split by speaker, but {unknown} of {len(utterances)} recordings of {path} have no speaker: set "
            "corpora.speaker_folder or name speakers in the manifest, or give corpora.train.input, corpora.dev.input and corpora.test.input"
        )
    source = source_name(corpus.get("source"), path)
    hashes = sorted({split_hash(f"{source}/{utterance.speaker}") for utterance in utterances})
    if len(hashes) < len(SETS):
        raise ValueError(
            f"corpora.input is split by speaker into train, dev and test, which takes 3 speakers, but {path} has {len(hashes)}: set "
            "corpora.speaker_folder to the folder that names the speaker, or give corpora.train.input, corpora.dev.input and "
            "corpora.test.input"
        )
    ends = [int(share * 2.0**64) for share in (_HELD_OUT_SHARE, 2 * _HELD_OUT_SHARE)]
    if {sum(end <= one for end in ends) for one in hashes} != {0, 1, 2}:
        ends = hashes[1:3]
    ranges = {"train": (ends[1], 2**64), "dev": (0, ends[0]), "test": (ends[0], ends[1])}
    sizes = {name: sum(first <= one < end for one in hashes) for name, (first, end) in ranges.items()}
    log.info("%s is split by speaker: %s", path, ", ".join(f"{size} {name}" for name, size in sizes.items()))
    return ranges


def _shards(corpus: dict[str, Any], config: dict[str, Any]) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        stats = make_shards(output=folder, workers=config["workers"], **corpus)
        for sentence in sentences(stats):
            log.info("%s: %s", corpus["input"], sentence)
        return stats

    return make
