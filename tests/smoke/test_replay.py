"""A replayed update is the one that was trained on, to the last bit; where that cannot be, a sentence says so."""

import hashlib
import json
import shutil
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from openwavlm.runs.replay import _shown, rebuild_update, record_of, replay
from openwavlm.runtime.sealed import sealed
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader
from patience import HANG_S, wait_until
from programs import run_program
from runs import TINY_MODEL, launch
from synthetic import make_shard_set

SETTINGS = [
    "experiment=wavlm_nano",
    "name=test",
    *TINY_MODEL,
    "model.layer_drop=0.2",
    "model.normalise_waveform=true",
    "mixing.prob=0.6",
    "mixing.noise_prob=0.3",
    "batch.seconds=12",
    "batch.micro_seconds=4",
    "batch.max_seconds=2",
    "optim.updates=10",
    "optim.warmup_updates=0",
    "callbacks.checkpoint_every=3",
    "callbacks.validate_every=0",
    "data.validation_share=0.3",
    "loader.workers=0",
]
CHANGED = ["batch.micro_seconds=6", "batch.seconds=18", "mixing.prob=0.9", "masking.length=6"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Two labelled sources and a noise bank: speech, calls, noise, NAME-labels."""
    from openwavlm.labels.assign import assign_labels
    from openwavlm.labels.fit import fit_codebook

    folder = tmp_path_factory.mktemp("data")
    for name, speakers, seed in (("speech", 8, 0), ("calls", 6, 5), ("noise", 2, 9)):
        made = make_shard_set(folder / "work" / name, speakers=speakers, utterances=3, seconds=(1.0, 4.0), seed=seed, source=name)
        made.rename(folder / name)
    fit_codebook(
        [folder / "speech", folder / "calls"],
        folder / "codebook",
        clusters=10,
        engine="minibatch",
        min_frames_per_cluster=20,
        validation_share=0.3,
    )
    for name in ("speech", "calls"):
        assign_labels(folder / name, folder / "codebook", folder / f"{name}-labels")
    fit_codebook(
        [folder / "speech"],
        folder / "codebook-2",
        clusters=10,
        engine="minibatch",
        min_frames_per_cluster=20,
        validation_share=0.3,
        seed=2,
    )
    for name in ("speech", "calls"):
        assign_labels(folder / name, folder / "codebook-2", folder / f"{name}-labels-2")
    return folder


def places(folder: Path) -> list[str]:
    return [
        *(f"data.sources.speech.{key}={folder / name}" for key, name in (("shards", "speech"), ("labels", "speech-labels"))),
        *(f"+data.sources.calls.{key}={folder / name}" for key, name in (("shards", "calls"), ("labels", "calls-labels"))),
        f"data.noise={folder / 'noise'}",
    ]


def _record(path: Path) -> None:
    """Writes hashes of what each update trains on: the micro-batches, and the waveforms as the model gets them."""
    from openwavlm.training import masked_prediction as modules
    from openwavlm.training.module import TrainingModule

    real_forward, real_step, now = modules.forward_micro_batch, TrainingModule.training_step, [0]

    def training_step(self, batch, batch_idx):
        now[0] = batch.step + 1
        real_step(self, batch, batch_idx)

    def forward_micro_batch(model, batch, waveforms, **options):
        prepared = hashlib.sha256(waveforms.numpy().tobytes()).hexdigest()
        with path.open("a") as file:
            file.write(json.dumps([now[0], batch.fingerprint(), prepared]) + "\n")
        return real_forward(model, batch, waveforms, **options)

    TrainingModule.training_step, modules.forward_micro_batch = training_step, forward_micro_batch


def trained(path: Path) -> dict[int, list[list[str]]]:
    """Update → the hashes of its micro-batches, of the launch that trained it last."""
    found: dict[int, list[list[str]]] = {}
    before = 0
    for step, *hashes in map(json.loads, path.read_text().splitlines()):
        if step != before:
            found[step] = []
        found[step].append(hashes)
        before = step
    return found


def replayed(run: Path, step: int) -> list[list[str]]:
    return [
        [micro["fingerprint"], micro["prepared_sha256"]] for micro in record_of(rebuild_update(run, step), run)["micro_batches"]
    ]


@pytest.fixture(scope="module")
def original(corpus, tmp_path_factory) -> Path:
    """`run`: ten updates of two sources with noise; after update 6 the plan, the mixing and the masks change. `trained`: hashes."""
    folder = tmp_path_factory.mktemp("runs")
    record = partial(_record, folder / "trained")
    assert launch([*SETTINGS, *places(corpus), "stop_after=6"], folder / "run", patch=record) == [0]
    changed = [*SETTINGS, *places(corpus), *CHANGED, "allow_change=[batch,mixing,masking]"]
    assert launch([*changed, "stop_after=8"], folder / "run", patch=record) == [0]
    assert launch(changed, folder / "run", patch=record) == [0]
    return folder


@pytest.fixture
def run(original, tmp_path) -> Path:
    """A copy of the run, to damage."""
    shutil.copytree(original / "run", tmp_path / "run", ignore=shutil.ignore_patterns("replay"))
    return tmp_path / "run"


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(sealed(content)))


# --- bit for bit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoints", [True, False])
def test_every_update_is_rebuilt_bit_for_bit_with_and_without_checkpoints(original, run, checkpoints):
    hashes = trained(original / "trained")
    assert sorted(hashes) == list(range(1, 11)) and len({h for hs in hashes.values() for h, _ in hs}) == 30
    if not checkpoints:
        shutil.rmtree(run / "checkpoints")
    assert {step: replayed(run, step) for step in hashes} == hashes


def test_a_wrong_beginning_of_the_plan_is_noticed(original, run):
    hashes = trained(original / "trained")
    edit(run / "run.json", lambda content: content["segments"][-1]["plan"].update(first_epochs={"speech": [0], "calls": [0]}))
    with pytest.raises(ValueError, match=r"are not those of update 9: metrics.csv has other figures \(.*masked_frames"):
        replayed(run, 9)
    assert replayed(run, 6) == hashes[6]


def test_a_configuration_that_was_edited_is_noticed(run):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("seed: 1337", "seed: 1338"))
    with pytest.raises(ValueError, match=r"config\.yaml is damaged or was edited \(no launch in run\.json wrote it\)"):
        replayed(run, 3)
    edit(run / "run.json", lambda content: content.pop("configs"))  # as a run of an older version
    with pytest.raises(ValueError, match=r"the plan that update 3 followed cannot be made again from config\.yaml"):
        replayed(run, 3)


def test_a_launch_that_was_killed_before_its_config_took_its_name_does_no_harm(original, run):
    hashes = trained(original / "trained")
    last = json.loads((run / "run.json").read_text())["segments"][-1]
    changes = {"seed": [1337, 5], "data.sources.calls.weight": [None, 3.0]}
    edit(run / "run.json", lambda content: content["segments"].append(last | {"from_step": 9, "changes": changes}))
    edit(run / "run.json", lambda content: content["segments"].append(last | {"from_step": 9, "changes": {}}))
    assert [replayed(run, step) for step in (3, 8, 9, 10)] == [hashes[step] for step in (3, 8, 9, 10)]


def test_a_run_that_went_on_with_other_labels_keeps_both(corpus, original, run, tmp_path):
    labels = [f"data.sources.{name}.labels={corpus / name}-labels-2" for name in ("speech", "calls")]
    overrides = [*SETTINGS, *places(corpus)[:1], *places(corpus)[2:3], *places(corpus)[4:], *CHANGED, "optim.updates=12"]
    overrides += [labels[0], f"+{labels[1]}", "allow_change=[data,optim.updates]"]
    assert launch(overrides, run, patch=partial(_record, tmp_path / "trained")) == [0]
    later, earlier = trained(tmp_path / "trained"), trained(original / "trained")
    assert sorted(later) == [11, 12]
    assert [replayed(run, step) for step in (10, 11, 12)] == [earlier[10], later[11], later[12]]


def test_a_run_is_replayed_while_it_goes_on(corpus, tmp_path):
    run, codes = tmp_path / "run", []
    overrides = [*SETTINGS, *places(corpus), "optim.updates=100000", "callbacks.keep_last=1"]
    training = threading.Thread(target=lambda: codes.extend(launch(overrides, run, patch=partial(_record, tmp_path / "trained"))))
    training.start()
    wait_until((run / "checkpoints").exists, while_true=training.is_alive)
    try:
        held = (run / "lock").read_bytes()
        built = {step: replayed(run, step) for step in (1, 2)}
        assert held and (run / "lock").exists() and training.is_alive()
    finally:
        (run / "stop").touch()
        training.join(HANG_S)
    hashes = trained(tmp_path / "trained")
    assert codes == [0] and built == {step: hashes[step] for step in built}


def test_what_any_number_of_threads_computes_is_the_same(original):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert replayed(original / "run", 4) == trained(original / "trained")[4]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


# --- what is written ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(original) -> Path:
    """What the command wrote of update 9."""
    outcome = run_program(original, "openwavlm", "replay", "run=run", "step=9")
    assert outcome.status == 0 and outcome.stderr.endswith(
        "wrote run/replay/step-00000009: open page.html in a browser; batch.json has every row\n"
    )
    return original / "run" / "replay" / "step-00000009"


def test_batch_json_names_every_row_with_its_mask_labels_and_mixture(original, written):
    update = rebuild_update(original / "run", 9)
    record = json.loads((written / "batch.json").read_text())
    assert [[m["fingerprint"], m["prepared_sha256"]] for m in record["micro_batches"]] == trained(original / "trained")[9]
    assert record["launch"]["from_step"] == 8 and record["recorded"]["step"] == 9
    for micro, kept in zip(record["micro_batches"], update.micro_batches, strict=True):
        assert [micro[key] for key in ("source", "epoch", "stream", "index")] == list(vars(kept.batch.id).values())
        for row in micro["rows"]:
            place = row["place"]
            assert row["key"].startswith("utt") and row["speaker"].startswith(f"{micro['source']}/spk")
            mask = np.zeros(row["frames"], dtype=bool)
            for begin, frames in row["mask_spans"]:
                mask[begin : begin + frames] = True
            assert (mask == kept.batch.mask[place, : row["frames"]].numpy()).all() and mask.sum() == row["masked_frames"]
            labels = np.repeat(*np.array(row["label_runs"]).T)
            assert (labels == kept.batch.labels[0, place, : row["frames"]].numpy()).all()
            assert row["duration_s"] == kept.batch.num_samples[place] / 16_000
    mixtures = [row["mixture"] for micro in record["micro_batches"] for row in micro["rows"] if row["mixture"]]
    assert {mixture["with"] for mixture in mixtures} == {"speech", "noise"}
    assert all(mixture["partner_key"].startswith("utt") for mixture in mixtures)


def test_a_mixtures_audio_lies_in_its_recording_where_batch_json_says(corpus, original, written):
    update = rebuild_update(original / "run", 9)
    record = json.loads((written / "batch.json").read_text())
    readers = {name: ShardReader(Index.open(corpus / name)) for name in ("speech", "calls", "noise")}
    found = {"speech": 0, "noise": 0}
    for micro, kept in zip(record["micro_batches"], update.micro_batches, strict=True):
        batch = kept.batch
        for number, place in enumerate(batch.mix.row.tolist()):
            mixture = micro["rows"][place]["mixture"]
            bank = "noise" if mixture["with"] == "noise" else micro["source"]
            index = Index.open(corpus / bank)
            whole = readers[bank].read(index.keys.index(mixture["partner_key"]))
            begin, length = round(mixture["partner_start_s"] * 16_000), mixture["length_samples"]
            partner, start = int(batch.mix.partner[number]), int(batch.mix.partner_start[number])
            taken = batch.noise[partner - len(batch.rows)] if bank == "noise" else batch.waveforms[partner]
            assert np.array_equal(whole[begin : begin + length], taken[start : start + length].numpy())
            found[mixture["with"]] += 1
    assert all(found.values())


def test_the_audio_is_that_of_the_shards_and_of_the_mixture(original, written):
    update = rebuild_update(original / "run", 9)
    files = sorted(path.name for path in (written / "audio").iterdir())
    rows = [(slot, row) for slot, micro in enumerate(update.micro_batches) for row in micro.rows]
    assert len(files) == sum(2 if row.facts["mixture"] else 1 for _, row in rows)
    for slot, row in rows:
        name, batch = f"{slot:02d}-{row.facts['place']:03d}", update.micro_batches[slot].batch
        size = int(batch.num_samples[row.facts["place"]])
        before, rate = soundfile.read(written / "audio" / f"{name}-before.flac", dtype="int16")
        assert rate == 16_000 and (before == batch.waveforms[row.facts["place"], :size].numpy()).all()
        if row.facts["mixture"]:
            after, _ = soundfile.read(written / "audio" / f"{name}-after.wav", dtype="float32")
            begin, length = (row.facts["mixture"][key] for key in ("start_sample", "length_samples"))
            changed = np.flatnonzero(after != before.astype(np.float32) / 32768)
            assert len(after) == size and (not len(changed) or begin <= changed[0] <= changed[-1] < begin + length)


def test_the_page_shows_each_row_and_fetches_nothing(written):
    page = (written / "page.html").read_text()
    record = json.loads((written / "batch.json").read_text())
    rows = [row for micro in record["micro_batches"] for row in micro["rows"]]
    mixed = sum(row["mixture"] is not None for row in rows)
    assert page.count("data:image/png;base64,") == len(rows) and page.count("data:audio/flac;base64,") == len(rows) + mixed
    assert all(row["key"] in page and (row["speaker"] in page) for row in rows)
    assert all(micro["fingerprint"] in page for micro in record["micro_batches"])
    assert "http" not in page and 'src="data:' in page and "bit for bit" in page


def test_fewer_rows_are_shown_evenly_over_the_micro_batches(original, tmp_path):
    assert _shown([3, 1, 5], 5) == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    assert len(_shown([3, 1, 5], 32)) == 9
    output = replay(original / "run", 2, rows=4, output=tmp_path / "few")
    assert len(list((output / "audio").glob("*-before.flac"))) == 4
    assert (output / "page.html").read_text().count("<img") == 4 and "in batch.json, or here with a larger rows=" in (
        output / "page.html"
    ).read_text()
    replay(original / "run", 2, rows=0, output=tmp_path / "few")
    assert not (output / "audio").exists() and "<img" not in (output / "page.html").read_text()


@pytest.mark.long
def test_a_row_that_cannot_be_read_is_replayed_as_silence_and_so_is_the_other_way_of_mixing(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "data")
    index = Index.open(tmp_path / "data" / "speech")
    row = 5
    with (index.path / index.shards[int(index.shard[row])].name).open("r+b") as file:
        file.seek(int(index.offset[row]) + 100)
        file.write(b"\x55" * (int(index.nbytes[row]) - 100))
    settings = [*SETTINGS, *places(tmp_path / "data"), "data.max_skip_rate=0.5", "mixing.mode=unispeech", "stop_after=8"]
    assert launch(settings, tmp_path / "run", patch=partial(_record, tmp_path / "trained")) == [0]
    hashes = trained(tmp_path / "trained")
    lost = [step for step in hashes if any(m.batch.num_unreadable for m in rebuild_update(tmp_path / "run", step).micro_batches)]
    assert lost and all(replayed(tmp_path / "run", step) == hashes[step] for step in hashes)
    page = (replay(tmp_path / "run", lost[0], rows=99) / "page.html").read_text()
    assert "could not be read: silence, no loss, no partner" in page
    shutil.copytree(corpus / "speech", tmp_path / "data" / "speech", dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"metrics.csv has other figures \(unreadable_rows 0, not 1.*if rows became readable"):
        replayed(tmp_path / "run", lost[0])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run=run"], "the config needs a value for step, as in step=..."),
        (["run=nowhere", "step=1"], "nowhere is no run directory (it has no config.yaml): give the folder of a run"),
        (["run=run", "step=last"], "step must be a whole number, but is 'last'"),
        (["run=run", "step=1", "rows=-1"], "rows must be 0 or more, but is -1"),
        (["run=run", "step=12"], "step must be an update that run has made, 1 to 10 so far, but is 12"),
    ],
)
def test_a_wrong_command_line_is_answered_in_a_sentence(original, arguments, sentence):
    assert run_program(original, "openwavlm", "replay", *arguments).error().startswith(sentence)


# --- refusals -----------------------------------------------------------------------------------------------------------


def refused(run: Path, step: int) -> str:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError) as refusal:
        replay(run, step)
    assert "\n" not in str(refusal.value)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}, "a refusal leaves nothing behind"
    return str(refusal.value)


def test_a_folder_that_is_no_run_and_a_run_without_updates_are_refused(run, tmp_path):
    assert refused(tmp_path, 1).startswith(f"{tmp_path} is no run directory (it has no config.yaml): give the folder of a run")
    (run / "metrics.csv").unlink()
    assert refused(run, 1).startswith(f"{run / 'metrics.csv'} is missing or has no rows, but the run has checkpoints: restore it")
    shutil.rmtree(run / "checkpoints")
    assert refused(run, 1) == f"{run} has made no update yet, so there is nothing to replay: train it first"


@pytest.mark.parametrize("step", [0, -1, 11])
def test_an_update_that_was_not_made_is_refused(run, step):
    assert refused(run, step) == f"step must be an update that {run} has made, 1 to 10 so far, but is {step}: choose one of these"


def test_another_plan_version_is_refused(run):
    edit(run / "run.json", lambda content: content["segments"][0].update(plan_version=9))
    assert refused(run, 2).startswith("update 2 was planned by plan version 9, this version plans by 1: install openwavlm ")


@pytest.mark.parametrize("file", ["run.json", "config.yaml"])
def test_damaged_records_are_refused(run, file):
    (run / file).write_text("{")
    assert f"{run / file} is damaged" in refused(run, 2)


@pytest.fixture
def moved(corpus, run, tmp_path) -> Path:
    """A copy of the corpus, to damage, which the run's records name in place of the original."""
    shutil.copytree(corpus, tmp_path / "data")
    for file in ("config.yaml", "run.json"):
        (run / file).write_text((run / file).read_text().replace(str(corpus), str(tmp_path / "data")))
    edit(run / "run.json", lambda content: None)  # its checksum
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("folder", "key"), [("calls", "sources.calls.shards"), ("speech-labels", "sources.speech.labels"), ("noise", "noise")]
)
def test_data_that_was_moved_is_named_and_a_link_helps(original, run, moved, folder, key):
    (moved / folder).rename(moved / "elsewhere")
    sentence = f"update 2 was trained on data.{key}={moved / folder}, but there is no such folder: run the command where"
    message = refused(run, 2)
    assert message.startswith(sentence) and "ln -s" in message
    (moved / folder).symlink_to(moved / "elsewhere")
    assert replayed(run, 2) == trained(original / "trained")[2]


def test_labels_that_changed_in_their_place_are_refused(run, moved):
    for name in ("speech", "calls"):
        shutil.rmtree(moved / f"{name}-labels")
        (moved / f"{name}-labels-2").rename(moved / f"{name}-labels")
    message = refused(run, 2)
    assert message.startswith(
        "update 2 was trained on other data than there is now (codebook, labels.calls, labels.speech differ)"
    )
    assert str(moved / "calls-labels") in message


def test_a_noise_bank_that_changed_in_its_place_is_refused(run, moved):
    shutil.rmtree(moved / "noise")
    shutil.copytree(moved / "calls", moved / "noise")
    message = refused(run, 2)
    assert message.startswith("update 2 was trained on other data than there is now (noise differ")
    assert str(moved / "noise") in message
