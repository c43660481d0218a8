"""A release: a run's model with head, codebooks and a model card, from which others continue without clustering again."""

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openwavlm.batches.settings import label_folders
from openwavlm.downstream import symbols
from openwavlm.downstream.export import export_task
from openwavlm.labels.labelling import LabelPacks
from openwavlm.report.content import Iteration, read_iteration
from openwavlm.report.recipe import recipe_of
from openwavlm.runs.export import export_run
from openwavlm.runtime.atomic import write_atomically

log = logging.getLogger(__name__)
_UNSTATED = "not stated"


def release_run(
    run: Path,
    output: Path | None = None,
    *,
    checkpoint: str = "newest",
    weights: str = "trained",
    name: str | None = None,
    licence: str = "",
    data_licence: str = "",
    languages: Sequence[str] = (),
    push_to_hub: str = "",
) -> Path:
    """Writes a release folder; returns it.

    A run of pre-training gets the encoder in Hugging Face's format, `pretraining_head.safetensors`, and a folder `codebook` (and
    `codebook-2`, … for further label sets) by which other audio gets the same labels. A fine-tuning gets the model with its head.
    `README.md` is a model card of huggingface_hub.

    Args:
        run: Run directory; `checkpoint` and `weights` as in `export_run`.
        output: Folder to write; by default `run/release`.
        name: Name of the model; by default that of the run.
        licence: Licence of the weights, an identifier of the hub such as `cc-by-4.0`.
        data_licence: Licence of the training data, in words.
        languages: Codes of the languages of the training data.
        push_to_hub: Repository on the hub to upload the folder to, `USER/NAME`; nothing is uploaded without it.

    Raises:
        ValueError: If huggingface_hub is not installed, or the run cannot be exported.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ValueError("a release needs huggingface_hub, which is not installed: pip install 'openwavlm[hf]'")
    output = output or run / "release"
    tuned = (run / symbols.NAME).is_file()
    if tuned:
        export_task(run, output, checkpoint=checkpoint, weights=weights)
        books: list[Codebook] = []
    else:
        export_run(run, output, checkpoint=checkpoint, weights=weights)
        books = _write_codebooks(run, output)
    iteration = read_iteration(run, name)
    card = _card(iteration, books, tuned=tuned, licence=licence, data_licence=data_licence, languages=languages)
    write_atomically(output / "README.md", card.encode())
    if push_to_hub:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(push_to_hub, exist_ok=True)
        api.upload_folder(folder_path=str(output), repo_id=push_to_hub)
        log.info("uploaded %s to %s", output, push_to_hub)
    return output


class Codebook:
    """A codebook of a release: its folder, hash, number of clusters and features."""

    def __init__(self, folder: str, book: Any) -> None:
        self.folder, self.hash, self.clusters = folder, book.hash, len(book)
        self.features: dict[str, Any] = book.features


def _write_codebooks(run: Path, output: Path) -> list[Codebook]:
    """Copies the codebook of each label set out of the run's labels."""
    sources = read_iteration(run, None).config["data"]["sources"]
    labels = label_folders(next(iter(sources.values()))["labels"])
    found = []
    for number, folder in enumerate(labels):
        book = LabelPacks.open(folder).codebook
        name = "codebook" if number == 0 else f"codebook-{number + 1}"
        book.save(output / name)
        found.append(Codebook(name, book))
    return found


def _card(
    iteration: Iteration,
    books: list[Codebook],
    *,
    tuned: bool,
    licence: str,
    data_licence: str,
    languages: Sequence[str],
) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        license=licence or None,
        language=list(languages) or None,
        library_name="transformers",
        tags=["speech", "wavlm", "openwavlm"],
        pipeline_tag=_pipeline(iteration) if tuned else "feature-extraction",
    )
    sections = [
        ("Training", _training(iteration)),
        ("Training data", _training_data(iteration, data_licence)),
        *([("Labels", _labels(books))] if books else []),
        ("Figures", _figures(iteration)),
        ("Limits", _limits(iteration, licence)),
        ("Use", _use(iteration, books, tuned=tuned)),
    ]
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {iteration.name}\n\n{_subject(iteration)}\n\n{body}\n"))


def _pipeline(iteration: Iteration) -> str:
    return "audio-classification" if iteration.config["task"]["name"] == "sid" else "automatic-speech-recognition"


def _subject(iteration: Iteration) -> str:
    if "task" in iteration.config:
        return f"A speech model for the task {iteration.config['task']['name']}, fine-tuned by OpenWavLM from {iteration.config['init']}."
    return (
        "A self-supervised speech encoder of WavLM's family, pre-trained by OpenWavLM: masked prediction with utterance mixing."
    )


def _training(iteration: Iteration) -> str:
    rows = [("updates", str(iteration.updates)), *recipe_of(iteration)]
    if iteration.wall_seconds:
        processes = (iteration.record.get("segments") or [{}])[-1].get("world_size", 1)
        rows.append(("process-hours", f"{iteration.wall_seconds * processes / 3600:.2f} ({processes} processes)"))
    return "\n".join(f"- {topic}: {text}" for topic, text in rows)


def _training_data(iteration: Iteration, licence: str) -> str:
    record, config = iteration.record, iteration.config
    hours = f"{iteration.audio_seconds / 3600:.2f} h of audio in all updates"
    named = ", ".join(sorted(name for name in record.get("sources", []) if name)) or _UNSTATED
    prints = [f"`{key}` {value}" for key, value in sorted(record.get("fingerprints", {}).items()) if key.startswith("shards.")]
    return "\n".join(
        [
            f"- sources: {named}; sets {', '.join(config['data']['sources'])}",
            f"- seen: {hours}",
            f"- licence of the data: {licence or _UNSTATED}",
            f"- identity of the shard sets: {'; '.join(prints)}",
        ]
    )


def _labels(books: list[Codebook]) -> str:
    lines = []
    for book in books:
        features = book.features
        source = (
            f"layer {features['layer']} of the model {features['teacher']}"
            if "teacher" in features
            else features.get("name", _UNSTATED)
        )
        lines.append(f"- `{book.folder}`: {book.clusters} clusters of {source}, hash {book.hash}")
    return "\n".join(lines)


def _figures(iteration: Iteration) -> str:
    rows = [
        f"- {name}: {float(values[-1]):.4f}" for name, values in iteration.validation.items() if name != "step" and len(values)
    ]
    if not rows:
        return "Nothing was measured on held-out speakers."
    return "\n".join([f"On the validation part, after update {int(iteration.validation['step'][-1])}:", "", *rows])


def _limits(iteration: Iteration, licence: str) -> str:
    init = iteration.record.get("init") or iteration.record.get("init_from") or {}
    seen = init.get("held_out_seen")
    rows = seen.get("rows") if isinstance(seen, dict) else seen
    contamination = "no other model was the start, so held-out speakers were new to it"
    if init:
        contamination = {
            None: "the start's training data are not on record",
            0: "no held-out rows or speakers are in the start's training",
        }.get(rows, f"{rows} held-out rows or speakers are in the start's training")
    return "\n".join(
        [
            f"- contamination: {contamination}",
            "- not measured: other domains, languages, recording conditions and groups of speakers than those of the training data",
            *([] if licence else ["- the licence of the weights is not stated: ask the publisher"]),
        ]
    )


def _use(iteration: Iteration, books: list[Codebook], *, tuned: bool) -> str:
    if tuned:
        return "See `transformers.pipeline`; recordings one at a time, 16 kHz, mono."
    lines = ["```python", "import transformers", "", 'model = transformers.WavLMModel.from_pretrained("FOLDER")', "```"]
    if books:
        lines += ["", "To continue encoder and prediction head on other audio, labelled without clustering again:", "", "```bash"]
        lines += [
            "openwavlm assign-labels shards=SHARDS codebook=FOLDER/codebook output=LABELS teacher=TEACHER"
            if "teacher" in books[0].features
            else "openwavlm assign-labels shards=SHARDS codebook=FOLDER/codebook output=LABELS"
        ]
        lines += ["openwavlm train init_from=FOLDER data.sources.speech.shards=SHARDS data.sources.speech.labels=LABELS", "```"]
    return "\n".join(lines)
