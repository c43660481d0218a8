"""Settings of fine-tuning: the task, its data, and what of the model is trained. Imports no torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

TaskName = Literal["ctc", "phones", "sid"]
SplitBy = Literal["speaker", "recording", "utterance"]
_SOURCE_KEYS = ("shards", "weight", "share")


@dataclass(frozen=True)
class Task:
    """The task, and the field that holds its targets.

    Attributes:
        name: `ctc` (characters of a transcript), `phones` (CTC over symbols between spaces) or `sid` (one class for an utterance:
            speaker, word, language, emotion).
        field: Field of the shards' JSON, or column of `table`, that holds the target; null = `text`, `phones` or `speaker`.
        table: TSV file with a header, `.parquet` file or folder of Hugging Face's `save_to_disk`, with the columns `key` (as in the
            shards, or the recording's name) and `field`; null = the shards' own fields.
        letters: Case of a transcript's letters: `as_is`, `upper` or `lower`.
        replace: Texts OLD=NEW, applied in order to every target before it is split into tokens, as in 'task.replace=["é=e","-= ","!="]';
            an empty NEW removes OLD.
        projection: Width of the projection before the mean in `sid` (Transformers: classifier_proj_size).
        dropout: Probability of dropout before the output layer of `ctc` and `phones` (fairseq: final_dropout).
        decoder: Decoder of the test part of `ctc` and `phones`: `greedy`, or `beam`, which decodes it a second time by a beam search (extra
            `decode`). Validation is always greedy.
        lexicon: Text file for `beam` with a word on each line, and its symbols after it where they are not its letters; null = any
            sequence of symbols.
        language_model: ARPA file (or KenLM's binary) for `beam`, over the lexicon's words, or without a lexicon over symbols, `|` between
            words; null = none.
        lm_weight: Factor on the language model's log-probabilities.
        word_score: Added to the score for each word of the lexicon.
        beam: Hypotheses that a beam search keeps.

    Raises:
        ValueError: If a number is out of its range, or keys of a beam search are given without one.
    """

    name: TaskName = "ctc"
    field: str | None = None
    table: str | None = None
    letters: Literal["as_is", "upper", "lower"] = "as_is"
    replace: list[str] = dataclasses.field(default_factory=list)
    projection: int = 256
    dropout: float = 0.1
    decoder: Literal["greedy", "beam"] = "greedy"
    lexicon: str | None = None
    language_model: str | None = None
    lm_weight: float = 2.0
    word_score: float = 0.0
    beam: int = 50

    def __post_init__(self) -> None:
        if self.projection < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"task.projection must be at least 1 and task.dropout lie in [0, 1), but are {self.projection}, {self.dropout}"
            )
        for entry in self.replace:
            if "=" not in entry[1:]:
                raise ValueError(
                    f"task.replace must be texts OLD=NEW, but has {entry!r}: 'task.replace=[\"{entry or 'OLD'}=\"]' removes it"
                )
        self._check_decoder()

    def _check_decoder(self) -> None:
        if not (self.beam >= 1 and 0 <= self.lm_weight < float("inf") and abs(self.word_score) < float("inf")):
            raise ValueError(
                "task.beam must be at least 1, task.lm_weight not negative and task.word_score finite, but are "
                f"{self.beam}, {self.lm_weight}, {self.word_score}"
            )
        given = [f"task.{key}" for key in ("lexicon", "language_model") if getattr(self, key)]
        if given and self.decoder == "greedy":
            raise ValueError(
                f"{given[0]} is used by task.decoder=beam alone, but task.decoder is greedy: set it, or leave the file out"
            )
        if self.decoder == "beam" and not self.of_sequences:
            raise ValueError(f"task.decoder=beam decodes sequences, but task={self.name} predicts one class: leave it out")
        if self.lexicon and self.name == "phones":
            raise ValueError("task.lexicon is a lexicon of words, but task=phones predicts phones: leave it out")

    @property
    def replacements(self) -> list[tuple[str, str]]:
        """(old, new) of `replace`."""
        places = [(entry, entry.index("=", 1)) for entry in self.replace]
        return [(entry[:place], entry[place + 1 :]) for entry, place in places]

    @property
    def of_sequences(self) -> bool:
        """Whether the target is a sequence of tokens, and not one class."""
        return self.name != "sid"

    @property
    def target(self) -> str:
        """Name of the field with the targets."""
        return self.field or {"ctc": "text", "phones": "phones", "sid": "speaker"}[self.name]


@dataclass(frozen=True)
class TaskData:
    """Data of a fine-tuning: what is trained on, what chooses the checkpoint (`validation`), and what is measured once (`test`).

    Attributes:
        sources: Name → {shards: folder, weight: factor on its hours (1), share: instead of hours × weight}.
        validation: Name → {shards: folder}: separate sets for validation; then `validation_share` must be 0.
        test: Name → {shards: folder}: separate sets that are measured once, after the last update; then `test_share` must be 0.
        split: What stays on one side of the split of `sources`: `speaker`, `recording` or `utterance`; null = `utterance` where the
            target is the speaker, else `speaker`.
        validation_share: Expected share of the speakers (recordings, utterances) for validation.
        test_share: Expected share of the speakers (recordings, utterances) for the test.
        validation_speakers: Names of speakers, as in the shards' JSON, that are held out for validation, whatever their hash.
        test_speakers: Names of speakers for the test.
        split_seed: Seed of the split; separate from the run's seed.
        validation_seconds: Most seconds of audio in a validation pass.
        allow_overlap: Whether validation and test may hold speakers of the training part, or audio of the encoder's pre-training; the
            overlap is then printed.
        streams: Shard streams for the slots of a step.
        max_skip_rate: Share of rows that may be unreadable before the run stops.

    Raises:
        ValueError: If a source has an unknown or missing key, or a number is out of range.
    """

    sources: dict[str, dict[str, Any]]
    validation: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    test: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    split: SplitBy | None = None
    validation_share: float = 0.1
    test_share: float = 0.0
    validation_speakers: list[str] = dataclasses.field(default_factory=list)
    test_speakers: list[str] = dataclasses.field(default_factory=list)
    split_seed: int = 0
    validation_seconds: float = 3600.0
    allow_overlap: bool = False
    streams: int = 1
    max_skip_rate: float = 1e-3

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("data.sources is empty: name at least one, as in data.sources.speech.shards=shards/x")
        for group, sets in (("sources", self.sources), ("validation", self.validation), ("test", self.test)):
            for name, values in sets.items():
                _check_source(f"data.{group}.{name}", values, _SOURCE_KEYS if group == "sources" else _SOURCE_KEYS[:1])
        names = [*self.sources, *self.validation, *self.test]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"every source, validation and test set needs a name of its own, but {twice[0]} is there twice: rename one"
            )
        shared = [name for name, source in self.sources.items() if source.get("share") is not None]
        if shared and len(shared) < len(self.sources):
            raise ValueError(f"data.sources must all have a share or none, but only {', '.join(shared)} has one: set it for all")
        if not (0 <= self.validation_share < 1 and 0 <= self.test_share < 1 and self.validation_share + self.test_share < 1):
            raise ValueError(
                "data.validation_share and data.test_share must lie in [0, 1), and their sum too, but are "
                f"{self.validation_share}, {self.test_share}"
            )
        for part, sets, speakers in (
            ("validation", self.validation, self.validation_speakers),
            ("test", self.test, self.test_speakers),
        ):
            if getattr(self, f"{part}_share") and (sets or speakers):
                named = f"data.{part}" if sets else f"data.{part}_speakers"
                raise ValueError(f"{named} names what is held out, so data.{part}_share must be 0: set it")
        if not (self.streams >= 1 and 0 <= self.max_skip_rate < 1 and self.validation_seconds > 0):
            raise ValueError(
                "data.streams must be at least 1, data.max_skip_rate lie in [0, 1) and data.validation_seconds be positive, but are "
                f"{self.streams}, {self.max_skip_rate}, {self.validation_seconds}"
            )

    @property
    def all_sets(self) -> dict[str, dict[str, Any]]:
        """Sources, validation and test sets."""
        return self.sources | self.validation | self.test


def _check_source(place: str, source: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = set(source) - set(known)
    if unknown:
        raise ValueError(f"{place}.{min(unknown)} is not a known key; it takes {', '.join(known)}")
    if not isinstance(source.get("shards"), str) or not source["shards"]:
        raise ValueError(f"{place}.shards must name a folder, as in {place}.shards=shards/NAME (or remove the set with ~{place})")
    for key in ("weight", "share"):
        value = source.get(key)
        if value is not None and (not isinstance(value, int | float) or not 0 < value < float("inf")):
            raise ValueError(f"{place}.{key} must be a positive number, but is {value!r}: ~{place} removes the set")


@dataclass(frozen=True)
class Trained:
    """What of the model is trained.

    Attributes:
        encoder: `frozen` (a weighted sum of all layers is read, SUPERB's way), `top` (the last `top_layers`), `full`, or `lora`
            (low-rank adapters of the attention's linear maps, which an export merges).
        top_layers: Layers that `encoder=top` trains.
        lora_rank: Rank of the adapters of `encoder=lora`.
        weighted_sum: Whether the head reads a trained weighted sum of all layers, and not the last one; null = with a frozen encoder
            and in `sid`.
        freeze_updates: Updates over which the encoder stays as it is while the head is trained (fairseq: freeze_finetune_updates).
        extractor: Whether the convolutional extractor is trained too; fairseq never does.
        layer_decay: Factor on the learning rate from each layer to the one below it, in (0, 1]; 1 = one rate for all.
        head_lr: Factor on the learning rate of the head and of the layers' weights.

    Raises:
        ValueError: If a number is out of its range.
    """

    encoder: Literal["frozen", "top", "full", "lora"] = "full"
    top_layers: int = 2
    lora_rank: int = 8
    weighted_sum: bool | None = None
    freeze_updates: int = 0
    extractor: bool = False
    layer_decay: float = 1.0
    head_lr: float = 1.0

    def __post_init__(self) -> None:
        if self.top_layers < 1 or self.lora_rank < 1 or self.freeze_updates < 0:
            raise ValueError(
                "trained.top_layers and trained.lora_rank must be at least 1 and trained.freeze_updates not negative, but are "
                f"{self.top_layers}, {self.lora_rank}, {self.freeze_updates}"
            )
        if not (0 < self.layer_decay <= 1 and 0 < self.head_lr < float("inf")):
            raise ValueError(
                f"trained.layer_decay must lie in (0, 1] and trained.head_lr be positive, but are {self.layer_decay}, {self.head_lr}"
            )


@dataclass(frozen=True)
class Regularisation:
    """Dropout, masks and computation of the encoder; its architecture is that of `init`. Null = the value of the checkpoint.

    Attributes:
        dropout: After attention, feed-forward and the encoder's input.
        attention_dropout: Of attention weights.
        activation_dropout: Inside the feed-forward.
        input_dropout: Of the projected features.
        layer_drop: Probability that a layer is skipped in an update.
        channel_prob: Summed width of the channel masks over the encoder's width (fairseq: mask_channel_prob).
        channel_length: Channels of one mask (fairseq: mask_channel_length).
        attention_backend: `auto`, `sdpa`, `eager` or `flex`.
        recompute: `none`, `extractor` or `all`: what the backward pass computes again to save memory.
        compile_layers: Whether torch.compile compiles each layer.

    Raises:
        ValueError: If a channel mask is out of range.
    """

    dropout: float | None = None
    attention_dropout: float | None = None
    activation_dropout: float | None = None
    input_dropout: float | None = None
    layer_drop: float | None = None
    channel_prob: float = 0.0
    channel_length: int = 64
    attention_backend: Literal["auto", "sdpa", "eager", "flex"] = "auto"
    recompute: Literal["none", "extractor", "all"] = "none"
    compile_layers: bool = False

    def __post_init__(self) -> None:
        if self.channel_length < 1 or not 0 <= self.channel_prob <= self.channel_length:
            raise ValueError(
                "encoder.channel_length must be at least 1 and encoder.channel_prob lie in 0 … channel_length, but are "
                f"{self.channel_length}, {self.channel_prob}"
            )

    def of_config(self) -> dict[str, Any]:
        """The values that replace those of an encoder's config."""
        names = ("dropout", "attention_dropout", "activation_dropout", "input_dropout", "layer_drop")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        fixed = ("attention_backend", "recompute", "compile_layers")
        return given | {name: getattr(self, name) for name in fixed}
