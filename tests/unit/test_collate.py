"""From plan to batch: labels lie on their frames, draws follow the plan alone, and every piece arrives exactly once."""

import hashlib
import logging
import pickle
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from openwavlm.audio.frames import HOP_SAMPLES, num_samples_of
from openwavlm.batches import collate as collate_module
from openwavlm.batches import loader as loader_module
from openwavlm.batches.batch import MicroBatchId, PretrainBatch
from openwavlm.batches.collate import Draws, MicroBatchBuilder
from openwavlm.batches.loader import StepLoader
from openwavlm.batches.masking import draw_span_mask
from openwavlm.batches.plan import MicroBatchSpec
from openwavlm.batches.schedule import Schedule
from openwavlm.batches.settings import Batching, Data, Loading, Mixing, SpanMasking
from openwavlm.batches.sources import OpenData
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.labels.store import LabelStore
from openwavlm.runtime.randomness import words
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader
from synthetic import make_shard_set

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose

BATCHING = Batching(seconds=32.0, micro_seconds=4.0, max_seconds=2.0, min_seconds=0.5)  # eight micro-batches a step
DRAWS = Draws(seed=3, masking=SpanMasking(prob=0.65, length=8), mixing=Mixing(prob=0.7, noise_prob=0.3), layers=4, layer_drop=0.4)
Piece = tuple[int, int, int, int]


@dataclass(frozen=True)
class Corpus:
    shards: Path
    labels: Path
    noise: Path

    def builder(self, draws: Draws = DRAWS) -> MicroBatchBuilder:
        return MicroBatchBuilder({"speech": self.shards}, {"speech": [self.store(self.labels)]}, draws, self.noise)

    def store(self, labels: Path) -> LabelStore:
        return LabelStore.open(labels, Index.open(self.shards))

    def schedule(self, batching: Batching = BATCHING) -> Schedule:
        sources = {"speech": {"shards": str(self.shards), "labels": str(self.labels)}}
        return OpenData(Data(sources, validation_share=0.3), batching, 3).schedule()

    def specs(self, steps: int = 2) -> list[MicroBatchSpec]:
        schedule = self.schedule()
        return [spec for step in range(steps) for spec in schedule.step(step).specs]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    shards = make_shard_set(folder, speakers=6, utterances=4, seconds=(1.0, 4.0))
    noise = make_shard_set(folder / "noise", speakers=2, utterances=2, seconds=(0.5, 2.0), seed=9)
    fit_codebook([shards], folder / "codebook", clusters=10, engine="minibatch", min_frames_per_cluster=20, validation_share=0.3)
    assign_labels(shards, folder / "codebook", folder / "labels")
    return Corpus(shards, folder / "labels", noise)


def equal(first: PretrainBatch, second: PretrainBatch, *names: str) -> bool:
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


# --- what is in a batch -------------------------------------------------------------------------------------------------


def test_audio_and_labels_of_every_row_are_those_of_its_frames(corpus):
    index = Index.open(corpus.shards)
    store, reader, builder = LabelStore.open(corpus.labels, index), ShardReader(index), corpus.builder()
    inside = 0
    for spec in corpus.specs():
        batch = builder[spec]
        assert batch.rows.tolist() == spec.rows.tolist() and batch.start_frame.tolist() == spec.start_frame.tolist()
        for place, (row, start, frames) in enumerate(zip(spec.rows, spec.start_frame, spec.num_frames, strict=True)):
            labels = store.read(int(row))[start : start + frames]
            assert batch.labels[0, place, :frames].tolist() == labels.tolist()
            assert (batch.labels[0, place, frames:] == -1).all()
            first, size = start * HOP_SAMPLES, num_samples_of(int(frames))
            audio = reader.read(int(row))[first : first + size]
            assert batch.waveforms[place, :size].tolist() == audio.tolist() and audio.any()
            assert not batch.waveforms[place, size:].any() and batch.num_samples[place] == size
            inside += start > 0
        assert batch.valid_samples == int(batch.num_samples.sum()) and batch.num_unreadable == 0
    assert inside > 5, "pieces from inside an utterance must occur"


def test_masked_and_unmasked_frames_are_the_valid_frames_and_nothing_else(corpus):
    builder = corpus.builder()
    for spec in corpus.specs(1):
        batch = builder[spec]
        labels, mask = batch.labels[0].flatten(), batch.mask.flatten()
        assert (labels[batch.masked_index] >= 0).all() and mask[batch.masked_index].all()
        assert (labels[batch.unmasked_index] >= 0).all() and not mask[batch.unmasked_index].any()
        both = torch.cat([batch.masked_index, batch.unmasked_index]).sort().values
        assert both.tolist() == torch.nonzero(labels >= 0).flatten().tolist() and len(both) == spec.num_frames.sum()
        assert 0 < batch.num_masked < len(both)


SOURCE = int.from_bytes(hashlib.blake2b(b"speech", digest_size=8).digest(), "little")


def named(spec: MicroBatchSpec, *, epoch: int = 3, stream: int = 2, index: int = 5) -> MicroBatchSpec:
    return replace(spec, id=MicroBatchId("speech", epoch, stream, index))


def test_all_draws_of_a_batch_are_keyed_by_its_name_and_the_runs_seed(corpus, monkeypatch):
    spec, asked = named(corpus.specs(1)[0]), []
    key = {"source": SOURCE, "epoch": 3, "micro": 2 * 2**32 + 5}

    def record(seed: int, purpose: str, count: int, **place: int) -> np.ndarray:
        asked.append((purpose, seed, place))
        return words(seed, purpose, count, **place)

    monkeypatch.setattr(collate_module, "words", record)
    batch = corpus.builder()[spec]
    assert batch.mask.tolist() == draw_span_mask(DRAWS.masking, spec.num_frames, 3, **key).tolist()
    assert sorted(asked) == [("layer_drop", 3, key), ("mix.clip_start", 3, key)]


def test_layer_drop_skips_its_share_of_the_layers_and_others_in_each_micro_batch(corpus):
    builder, specs = corpus.builder(), corpus.specs(25)
    kept = np.stack([builder[spec].layer_keep.numpy() for spec in specs])
    assert kept.shape == (200, 4)
    rate, agreement = 0.4, 0.4**2 + 0.6**2
    assert np.abs((~kept).mean(axis=0) - rate).max() < 4 * (rate * (1 - rate) / 200) ** 0.5
    error = (agreement * (1 - agreement) / 200) ** 0.5
    for one in range(4):
        assert np.abs((kept[1:, one] == kept[:-1, one]).mean() - agreement) < 4.5 * error, "of neighbouring micro-batches"
        for other in range(one):
            assert np.abs((kept[:, one] == kept[:, other]).mean() - agreement) < 4.5 * error, "of two layers"
    assert len({tuple(row) for row in kept.tolist()}) == 16
    assert corpus.builder(replace(DRAWS, layer_drop=0.0))[specs[0]].layer_keep.all()
    assert not corpus.builder(replace(DRAWS, layer_drop=1.0))[specs[0]].layer_keep.any()


def test_a_padding_micro_batch_has_its_rows_and_no_masked_frame(corpus):
    spec = corpus.specs(1)[0]
    batch, padding = corpus.builder()[spec], corpus.builder()[replace(spec, weight=0.0)]
    assert (batch.weight, padding.weight) == (1.0, 0.0) and equal(batch, padding, "waveforms", "mask", "masked_index")
    assert padding.num_masked == 0 < batch.num_masked == int(batch.mask.sum())


def test_a_noise_clip_is_cut_at_any_place_up_to_its_last_one(corpus):
    lengths = Index.open(corpus.noise).num_samples[:].tolist()
    shortest = int(np.argmin(lengths))
    builder = corpus.builder(replace(DRAWS, mixing=Mixing(prob=1.0, noise_prob=1.0), noise_seconds=(min(lengths) - 5) / 16_000))
    spec, starts = corpus.specs(1)[0], Counter()
    spec = replace(spec, rows=np.zeros(16, dtype=np.uint32), start_frame=np.zeros(16, int), num_frames=np.full(16, 50))
    for index in range(150):
        excerpts = builder.noise_excerpts(named(spec, index=index))
        assert len(excerpts) == 16
        for row, start, size in excerpts:
            assert size == min(lengths) - 5 and 0 <= start <= lengths[row] - size
            starts.update([start] if row == shortest else [])
    expected = starts.total() / 6
    assert sorted(starts) == list(range(6)) and expected > 50
    assert sum((count - expected) ** 2 / expected for count in starts.values()) < 20.5  # 99.9 % at five degrees of freedom
    whole = corpus.builder(replace(DRAWS, mixing=Mixing(prob=1.0, noise_prob=1.0), noise_seconds=3.0)).noise_excerpts(spec)
    assert [entry[1:] for entry in whole] == [(0, lengths[row]) for row, _, _ in whole]


def test_a_batch_of_other_content_type_or_shape_has_another_fingerprint(corpus):
    batch = next(batch for batch in map(corpus.builder().__getitem__, corpus.specs()) if len(batch.mix) and batch.noise.numel())
    tensors = [name for name, value in vars(batch).items() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 11
    found = [batch.fingerprint()]
    for name in tensors:
        value = getattr(batch, name)
        changed = value.clone()
        changed.view(-1)[-1] = ~changed.view(-1)[-1] if value.dtype == torch.bool else changed.view(-1)[-1] + 1
        found += [replace(batch, **{name: other}).fingerprint() for other in (changed, value.reshape(1, *value.shape))]
    found += [replace(batch, mask=batch.mask.to(torch.uint8)).fingerprint()]
    found += [replace(batch, mix=replace(batch.mix, start=batch.mix.start + 1)).fingerprint()]
    assert len(set(found)) == 1 + 2 * 11 + 2


def test_switching_mixing_off_moves_no_crop_and_no_mask(corpus):
    crops = replace(BATCHING, policy="fairseq_crop")
    schedule = corpus.schedule(crops)
    mixed, clean = corpus.builder(), corpus.builder(replace(DRAWS, mixing=Mixing(prob=0.0)))
    mixtures = 0
    for spec in [*corpus.specs(), *schedule.step(0).specs]:
        first, second = mixed[spec], clean[spec]
        assert equal(
            first, second, "waveforms", "num_samples", "labels", "mask", "masked_index", "layer_keep", "rows", "start_frame"
        )
        assert len(second.mix) == 0 and second.noise.numel() == 0
        mixtures += len(first.mix)
    assert mixtures > 10


def test_switching_noise_off_moves_no_partner_of_a_speech_mixture(corpus):
    def speech(batch: PretrainBatch, rows: set[int]) -> list[tuple]:
        columns = (batch.mix.row, batch.mix.partner, batch.mix.start, batch.mix.partner_start, batch.mix.energy_ratio_db)
        return [entry for entry in zip(*(c.tolist() for c in columns), strict=True) if entry[0] in rows]

    noisy, quiet = corpus.builder(), corpus.builder(replace(DRAWS, mixing=Mixing(prob=0.7, noise_prob=0.0)))
    found = 0
    for spec in corpus.specs():
        first, second = noisy[spec], quiet[spec]
        rows = {
            row
            for row, partner in zip(first.mix.row.tolist(), first.mix.partner.tolist(), strict=True)
            if partner < len(spec.rows)
        }
        assert speech(first, rows) == speech(second, rows)
        found += len(rows) < len(first.mix)
    assert found, "noise must have been drawn"


def test_a_batch_survives_the_way_between_processes_bit_for_bit(corpus):
    builder = corpus.builder()
    for spec in corpus.specs(1):
        batch = builder[spec]
        again = pickle.loads(pickle.dumps(batch))
        assert again.fingerprint() == batch.fingerprint() and again.mix.max_length == batch.mix.max_length
        assert (again.id, again.weight, again.num_unreadable, again.valid_samples) == (batch.id, 1.0, 0, batch.valid_samples)
        assert batch.fingerprint() != replace(batch, mask=~batch.mask).fingerprint()
    assert pickle.loads(pickle.dumps(builder))[spec].fingerprint() == batch.fingerprint()


# --- rows that cannot be read -------------------------------------------------------------------------------------------


def without_row(corpus: Corpus, row: int, folder: Path) -> Corpus:
    """A copy of the corpus in which the FLAC frames of one row are overwritten; its header stays."""
    shutil.copytree(corpus.shards, folder / "shards")
    index = Index.open(folder / "shards")
    with (index.path / index.shards[int(index.shard[row])].name).open("r+b") as file:
        file.seek(int(index.offset[row]) + 100)
        file.write(b"\x55" * (int(index.nbytes[row]) - 100))
    return replace(corpus, shards=folder / "shards")


def test_an_unreadable_row_keeps_its_place_and_moves_nobody_elses_draws(corpus, tmp_path):
    specs = [spec for spec in corpus.specs() if len(spec.rows) > 2]
    whole = corpus.builder()
    partners = Counter()
    for spec in specs:
        mix = whole[spec].mix
        partners.update(int(spec.rows[p]) for p in mix.partner.tolist() if p < len(spec.rows))
    row = partners.most_common(1)[0][0]  # a row that is a partner of others
    damaged = without_row(corpus, row, tmp_path).builder()
    seen, lost_mixtures = 0, 0
    for spec in specs:
        before, after = whole[spec], damaged[spec]
        places = np.flatnonzero(spec.rows == row)
        others = torch.from_numpy(spec.rows != row)
        assert after.waveforms.shape == before.waveforms.shape and after.num_unreadable == len(places)
        for name in ("waveforms", "num_samples", "mask", "rows", "start_frame"):
            assert torch.equal(getattr(after, name)[others], getattr(before, name)[others])
        assert torch.equal(after.labels[:, others], before.labels[:, others])
        assert torch.equal(after.layer_keep, before.layer_keep) and torch.equal(after.rows, before.rows)
        assert (after.num_samples[~others] == 0).all() and not after.waveforms[~others].any()
        assert not after.mask[~others].any()
        frames = after.mask.shape[1]
        for place in places:
            for position in (after.masked_index, after.unmasked_index):
                assert not (position // frames == place).any()
        kept = [m for m in mixtures(before) if m[0] not in places and m[1] not in places]
        assert mixtures(after) == kept
        seen += len(places)
        lost_mixtures += len(before.mix) - len(kept)
    assert seen and lost_mixtures


def mixtures(batch: PretrainBatch) -> list[tuple]:
    mix = batch.mix
    columns = (mix.row, mix.partner, mix.start, mix.partner_start, mix.length, mix.energy_ratio_db)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_unreadable_noise_is_mixed_into_no_row_and_keeps_its_place(corpus, tmp_path):
    noisy = replace(DRAWS, mixing=Mixing(prob=1.0, noise_prob=1.0))
    whole = corpus.builder(noisy)
    spec = next(spec for spec in corpus.specs() if len({clip for clip, _, _ in whole.noise_excerpts(spec)}) > 1)
    row = whole.noise_excerpts(spec)[0][0]
    damaged = without_row(replace(corpus, shards=corpus.noise), row, tmp_path).shards
    before, after = whole[spec], replace(corpus, noise=damaged).builder(noisy)[spec]
    lost = [place for place, (clip, _, _) in enumerate(whole.noise_excerpts(spec)) if clip == row]
    assert [int(after.noise_num_samples[place]) for place in lost] == [0] * len(lost) and len(after.noise) == len(before.noise)
    assert mixtures(after) == [m for m in mixtures(before) if m[1] - len(spec.rows) not in lost]
    assert len(after.mix) < len(before.mix) and after.num_unreadable == 0


def test_one_flipped_bit_of_audio_is_noticed(corpus, tmp_path):
    spec = corpus.specs(1)[0]
    shutil.copytree(corpus.shards, tmp_path / "shards")
    index = Index.open(tmp_path / "shards")
    row, start, frames = int(spec.rows[0]), int(spec.start_frame[0]), int(spec.num_frames[0])
    middle = (start + frames / 2) * HOP_SAMPLES / int(index.num_samples[row])
    with (index.path / index.shards[int(index.shard[row])].name).open("r+b") as file:
        place = int(index.offset[row] + middle * index.nbytes[row])
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 16]))
    batch = replace(corpus, shards=tmp_path / "shards").builder()[spec]
    assert batch.num_unreadable == int((spec.rows == row).sum()) and batch.num_samples[0] == 0
    assert not batch.waveforms[0].any(), "what decoded before the damage is not left in the batch"


def test_a_row_without_labels_is_unreadable_too(corpus, monkeypatch):
    spec = corpus.specs(1)[0]
    builder, row = corpus.builder(), int(spec.rows[0])
    real = LabelStore.read

    def read(self: LabelStore, wanted: int, *arguments: int) -> np.ndarray:
        return real(self, wanted, *arguments)[: 0 if wanted == row else None]

    monkeypatch.setattr(LabelStore, "read", read)
    batch = builder[spec]
    lost = torch.from_numpy(spec.rows == row)
    assert batch.num_unreadable == lost.sum() and not batch.waveforms[lost].any() and (batch.labels[0, lost] == -1).all()


def test_a_row_without_labels_in_a_second_set_is_unreadable_too(corpus, monkeypatch, tmp_path):
    shutil.copytree(corpus.labels, tmp_path / "second")
    spec = corpus.specs(1)[0]
    labels = {"speech": [corpus.store(corpus.labels), corpus.store(tmp_path / "second")]}
    builder, row, real = (
        MicroBatchBuilder({"speech": corpus.shards}, labels, DRAWS, corpus.noise),
        int(spec.rows[0]),
        LabelStore.read,
    )
    whole = builder[spec]
    assert torch.equal(whole.labels[1], whole.labels[0])

    def read(self: LabelStore, wanted: int, *arguments: int) -> np.ndarray:
        found = real(self, wanted, *arguments)
        if self.path == corpus.labels:
            return found
        return found[:0] if wanted == row else (found + 1) % 10

    monkeypatch.setattr(LabelStore, "read", read)
    batch, lost = builder[spec], torch.from_numpy(spec.rows == row)
    assert batch.num_unreadable == lost.sum() and (batch.labels[:, lost] == -1).all()
    valid = batch.labels[0] >= 0
    assert valid.any() and torch.equal(batch.labels[1][valid], (batch.labels[0][valid] + 1) % 10)


def test_ten_skipped_rows_are_named_and_further_ones_only_counted(corpus, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(LabelStore, "read", lambda self, *_: np.zeros(0, dtype=np.uint16))
    builder, specs = corpus.builder(), corpus.specs(2)
    lost = sum(builder[spec].num_unreadable for spec in specs)
    lines = [record.message for record in caplog.records if record.message.startswith("skipped")]
    assert lost == sum(len(spec.rows) for spec in specs) > 10
    assert len(lines) == 10 and [line.endswith("(further ones are only counted)") for line in lines] == [False] * 9 + [True]


# --- exactly once -------------------------------------------------------------------------------------------------------


class Names:
    """A builder that only says which pieces it was asked for."""

    def __getitem__(self, spec: MicroBatchSpec) -> list[Piece]:
        if spec.weight == 0:
            return []
        sizes = num_samples_of(spec.num_frames)
        columns = (spec.rows.tolist(), spec.start_frame.tolist(), sizes.tolist(), [spec.id.epoch] * len(sizes))
        return list(zip(*columns, strict=True))


def pieces(batch: PretrainBatch | list[Piece]) -> list[Piece]:
    if isinstance(batch, list):
        return [tuple(piece) for piece in batch]  # torch makes lists of tuples
    columns = (batch.rows.tolist(), batch.start_frame.tolist(), batch.num_samples.tolist())
    return [(*piece, batch.id.epoch) for piece in zip(*columns, strict=True)] if batch.weight else []


def steps(corpus: Corpus, builder: object, world_size: int, workers: int, start: int, end: int) -> Iterator[list[list[Piece]]]:
    """For each step the pieces of each slot, in slot order, as the loaders of all ranks give them."""
    loaders = [
        StepLoader(
            corpus.schedule(),
            builder,
            Loading(workers=workers),
            rank=rank,
            world_size=world_size,
            start_step=start,
            num_steps=end,
        )
        for rank in range(world_size)
    ]
    for batches in zip(*loaders, strict=True):
        assert len({batch.step for batch in batches}) == len({batch.digest for batch in batches}) == 1
        in_order = zip(*(batch.micro_batches for batch in batches), strict=True)
        yield [pieces(batch) for round_of_ranks in in_order for batch in round_of_ranks if pieces(batch)]


@pytest.fixture(scope="module")
def expected(corpus) -> list[list[list[Piece]]]:
    """The schedule's own account of so many steps that two epochs are over."""
    schedule, names, found = corpus.schedule(), Names(), []
    while not found or max(piece[3] for slot in found[-1] for piece in slot) < 2:
        found.append([names[spec] for spec in schedule.step(len(found)).specs])
    return found


def test_two_epochs_hold_every_frame_of_every_training_row_once(corpus, expected):
    index = Index.open(corpus.shards)
    got: dict[tuple[int, int], list[range]] = {}
    for row, start, size, epoch in (piece for step in expected for slot in step for piece in slot):
        got.setdefault((epoch, row), []).append(range(start, start + (size - 400) // HOP_SAMPLES + 1))
    for epoch in (0, 1):
        rows = {row for e, row in got if e == epoch}
        assert rows == {row for e, row in got if e == 0} and 12 < len(rows) < len(index)
        for row in rows:
            covered = sorted(frame for piece in got[epoch, row] for frame in piece)
            assert covered == list(range((int(index.num_samples[row]) - 400) // HOP_SAMPLES + 1))


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_every_piece_arrives_once_and_in_its_slot_at_every_number_of_ranks_and_workers(corpus, expected, world_size, workers):
    assert list(steps(corpus, Names(), world_size, workers, 0, len(expected))) == expected


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (3, 1), (2, 4)])
def test_the_real_builder_delivers_the_plan(corpus, expected, world_size, workers):
    assert list(steps(corpus, corpus.builder(), world_size, workers, 0, len(expected))) == expected


def test_a_change_of_ranks_and_workers_in_mid_epoch_repeats_and_drops_nothing(corpus, expected):
    found = []
    for end, world_size, workers in ((1, 2, 1), (3, 3, 0), (4, 8, 1), (len(expected), 1, 4)):
        found += list(steps(corpus, Names(), world_size, workers, len(found), end))
    assert found == expected and len(expected) > 4
    everything = [Counter(p for step in account for slot in step for p in slot) for account in (found, expected)]
    assert everything[0] == everything[1] and set(everything[0].values()) == {1}


def test_the_time_spent_on_waiting_for_batches_adds_up(corpus):
    clock = iter([0.0, 1.5, 10.0, 10.25, 20.0, 24.0])
    loader = StepLoader(corpus.schedule(), Names(), Loading(workers=0), num_steps=5, start_step=2, now=clock.__next__)
    schedule = corpus.schedule()
    digests = [(step, schedule.step(step).digest) for step in range(2, 5)]
    assert len(loader) == 5 and [(batch.step, batch.digest) for batch in loader] == digests
    assert loader.waited_s == 1.5 + 0.25 + 4.0


@pytest.mark.parametrize(
    ("asked", "gpu", "expected"), [(None, True, True), (None, False, False), (False, True, False), (True, False, True)]
)
def test_batches_are_page_locked_where_there_is_a_gpu_unless_the_settings_say_otherwise(
    corpus, monkeypatch, asked, gpu, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    loader = loader_module.micro_batch_loader(corpus.builder(), [], Loading(workers=2, prefetch=3, pin_memory=asked))
    assert (loader.pin_memory, loader.num_workers, loader.prefetch_factor, loader.batch_size) == (expected, 2, 3, None)
    assert loader_module.micro_batch_loader(corpus.builder(), [], Loading(workers=0)).prefetch_factor is None
    for settings in ({"workers": -1}, {"prefetch": 0}):
        with pytest.raises(ValueError, match=r"loader\.workers must be ≥ 0 and loader\.prefetch ≥ 1"):
            Loading(**settings)
