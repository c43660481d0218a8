"""The shard sets of the loop, from synthesised or given corpora."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openwavlm.pipeline.listing import fingerprint
from openwavlm.pipeline.stages import Chain, Stage
from openwavlm.shards.prepare import make_shards
from openwavlm.shards.stats import sentences
from openwavlm.synthesis.corpus import synthesize

log = logging.getLogger(__name__)

SETS = ("train", "dev", "test")


def shard_sets(chain: Chain, config: dict[str, Any]) -> tuple[dict[str, Stage], Path | None]:
    """Makes or finds the shard sets.

    Args:
        chain: Where the stages are.
        config: `conf/iterate.yaml` as plain values; its `synthesis`, `corpora`, `alignments` and `workers` are read.

    Returns:
        `train`, `dev`, `test` and for probes `train_clean`, `dev_clean`, `test_clean`, each the stage that made it; the table of phone
        times, or None.

    Raises:
        ValueError: If a corpus is refused.
    """
    if not config["synthesis"]:
        given = {f"corpora.{name}.input": corpus["input"] for name, corpus in config["corpora"].items() if corpus}
        for key, path in (given | {"alignments": config["alignments"]}).items():
            if path and not Path(path).exists():
                raise ValueError(f"{key} must be a folder or a file, but {path} does not exist: correct the path")
        shards = {
            name: chain.run(f"shards/{name}", corpus, [], _shards(corpus, config), content=fingerprint(Path(corpus["input"])))
            for name, corpus in config["corpora"].items()
            if corpus
        }
        times = Path(config["alignments"]) if config["alignments"] else None
        for name in SETS:
            shards.setdefault(f"{name}_clean", shards[name])
        return shards, times
    settings = dict(config["synthesis"])
    made = chain.run(
        "corpus", settings, [], lambda folder: synthesize(output=folder / "audio", workers=config["workers"], **settings)
    )
    audio = made.folder / "audio"
    shards = {}
    for name in (*SETS, *(f"{name}_clean" for name in SETS)):
        corpus = {"input": str(audio / f"{name}.tsv"), "layout": "manifest", "source": "demo"}
        shards[name] = chain.run(f"shards/{name}", {"set": name}, [made], _shards(corpus, config))
    return shards, audio / "phones.tsv"


def _shards(corpus: dict[str, Any], config: dict[str, Any]) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        stats = make_shards(output=folder, workers=config["workers"], **corpus)
        for sentence in sentences(stats):
            log.info("%s: %s", corpus["input"], sentence)
        return stats

    return make
