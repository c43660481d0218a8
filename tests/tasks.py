"""A small transcribed corpus, a small encoder, and fine-tunings on them."""

from pathlib import Path
from typing import Any

import torch

from synthetic import write_speech_like

WORDS = ("ab", "ba", "abba", "cab", "a", "bac")
FINETUNE = [
    "name=test",
    "preset=nano",
    "trainer.accelerator=cpu",
    "loader.workers=0",
    "optim.updates=12",
    "optim.warmup_updates=2",
    "callbacks.checkpoint_every=4",
    "callbacks.validate_every=6",
    "batch.seconds=8",
    "batch.micro_seconds=4",
    "batch.max_seconds=4",
    "trained.freeze_updates=3",
    "trained.layer_decay=0.8",
    "encoder.channel_prob=0.4",
    "encoder.channel_length=4",
    "encoder.layer_drop=0.3",
    "encoder.dropout=0.1",
]  # everything that is random is on


def text_of(speaker: int, number: int) -> str:
    """Two or three words."""
    return " ".join(WORDS[(speaker + step * number + step) % len(WORDS)] for step in range(2 + number % 2))


def make_task_shards(folder: Path, *, speakers: int = 5, utterances: int = 4, **columns: dict[tuple[int, int], str]) -> Path:
    """A shard set with transcripts (`text`), words (`word`) and `phones`; `columns` replace some of them by (speaker, number)."""
    from openwavlm.shards.prepare import make_shards

    lines = ["path\tspeaker\ttext\tword\tphones"]
    for speaker in range(speakers):
        for number in range(utterances):
            path = write_speech_like(folder / "audio" / f"s{speaker}-{number}.flac", 0.7 + 0.3 * number, number, speaker)
            text = text_of(speaker, number)
            values = {"text": text, "word": WORDS[number % 3], "phones": " ".join(text.replace(" ", "_"))}
            values |= {name: given[speaker, number] for name, given in columns.items() if (speaker, number) in given}
            lines.append("\t".join([str(path), f"s{speaker}", *values.values()]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.tsv").write_text("\n".join(lines) + "\n")
    output = folder / "shards"
    make_shards(
        input=folder / "corpus.tsv",
        output=output,
        layout="manifest",
        source="spoken",
        min_seconds=0.1,
        join_short=False,
        utterances_per_shard=8,
    )
    return output


def make_encoder(folder: Path, **changes: Any) -> Path:
    """A random encoder as a folder of Hugging Face."""
    from dataclasses import replace

    from openwavlm.checkpoints.huggingface import save_huggingface
    from openwavlm.model.config import WavLMConfig
    from openwavlm.model.wavlm import WavLM
    from random_models import randomise

    config = WavLMConfig(
        conv_dims=(16,) * 7,
        dim=32,
        ffn_dim=48,
        heads=4,
        layers=2,
        positional_kernel=8,
        positional_groups=4,
        num_buckets=16,
        max_distance=40,
    )
    torch.manual_seed(0)
    save_huggingface(randomise(WavLM(replace(config, **changes))), folder)  # type: ignore[arg-type]
    return folder


def values_of(overrides: list[str]) -> dict[str, Any]:
    """The values of a fine-tuning as `openwavlm finetune` composes them."""
    import openwavlm.cli.finetune  # noqa: F401 (registers the defaults of the classes)
    from openwavlm.runs.compose import composed, plain

    return plain(composed("finetune", overrides))


def begin(overrides: list[str], directory: Path) -> None:
    """Fine-tunes as the command does, in a process of `runs.launch`."""
    from openwavlm.downstream.launch import finetune

    finetune(values_of(overrides), directory)
