"""Probes while training: fitted on one set, judged on dev speakers that the run never trains on, beside what needs no training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from openwavlm.audio.frames import num_frames, num_samples_of
from openwavlm.audio.mfcc import mfcc_features
from openwavlm.audio.spectra import log_mel, normalised_log_mel
from openwavlm.evaluation import live
from openwavlm.evaluation.features import with_context
from openwavlm.evaluation.live import LiveProbe
from openwavlm.evaluation.ridge import PENALTIES
from openwavlm.evaluation.settings import LiveProbes
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader
from runs import phone_times
from synthetic import make_shard_set

CONFIG = WavLMConfig(
    conv_dims=(8,) * 7, dim=16, ffn_dim=16, heads=2, layers=2, positional_kernel=8, positional_groups=2, layer_drop=0
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Speech to fit on, speech to judge on, speech of one of the fitted speakers, and the table of their phones."""
    folder = tmp_path_factory.mktemp("live")
    made = {
        "train": make_shard_set(folder / "train", speakers=3, utterances=3, seconds=(1.0, 2.0), seed=21, source="fit"),
        "dev": make_shard_set(folder / "dev", speakers=2, utterances=3, seconds=(1.0, 2.0), seed=22, source="judge"),
        "same": make_shard_set(folder / "same", speakers=1, utterances=2, seconds=(1.0, 1.2), seed=23, source="fit"),
    }
    for shards in made.values():
        phone_times(shards, folder / f"{shards.parent.name}.tsv")
    tables = [(folder / f"{name}.tsv").read_text().splitlines() for name in made]
    (folder / "phones.tsv").write_text("\n".join([tables[0][0], *(line for table in tables for line in table[1:])]) + "\n")
    return made | {"phones": folder / "phones.tsv"}


def settings(sets: dict[str, Path], **changed: object) -> LiveProbes:
    given = {name: str(sets[name]) for name in ("train", "dev")}
    return LiveProbes(**{"every": 4, "alignments": str(sets["phones"]), **given, **changed})


def utterances(shards: Path, seconds: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Waveform and phones of the rows that `seconds` allow, in turn from each speaker; a phone takes turns every 0.2 s."""
    index = Index.open(shards)
    rows = sorted(range(len(index)), key=lambda row: (sum(index.speaker[:row] == index.speaker[row]), row))
    chosen, frames = [], 0
    for row in rows:
        frames += num_frames(int(index.num_samples[row]))
        if chosen and frames > seconds * 50:
            break
        chosen.append(row)
    reader, found = ShardReader(index), []
    for row in sorted(chosen):
        waveform = reader.read(row)
        centres = 320 * np.arange(num_frames(len(waveform))) + 200
        phones = centres // 3200 % 2
        last = round(len(waveform) / 16_000, 2) * 16_000  # the table has two places
        # The samples after the last frame are not part of it.
        waveform = waveform[: num_samples_of(len(centres))]
        found.append((waveform, np.where(centres < max(last, 3200 * (len(waveform) // 3200)), phones, -1)))
    return found


def best_on_dev(train: list[tuple[np.ndarray, np.ndarray]], dev: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Share of right dev frames at the penalty that is best there, by scikit-learn, of (features, phones) pairs."""
    x, y = (np.concatenate(parts) for parts in zip(*train, strict=True))
    x, y = x[y >= 0].astype(np.float64), y[y >= 0]
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    judged, truth = (np.concatenate(parts) for parts in zip(*dev, strict=True))
    found = []
    for penalty in PENALTIES:
        model = Ridge(alpha=penalty * len(y)).fit((x - mean) / deviation, np.eye(2)[y])
        right = model.predict((judged - mean) / deviation).argmax(axis=1) == truth
        found.append(right[truth >= 0].mean())
    return max(found)


def test_a_probe_is_fitted_on_train_and_judged_on_dev(sets: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = WavLM(CONFIG).eval()
    probe = LiveProbe(settings(sets, train_seconds=6.0, dev_seconds=5.0), [], tmp_path)
    parts = {name: utterances(sets[name], seconds) for name, seconds in (("train", 6.0), ("dev", 5.0))}
    frames = {name: sum(len(phones) for _, phones in of) for name, of in parts.items()}
    assert probe.audio_seconds == pytest.approx((frames["train"] + frames["dev"]) / 50)
    # A probe of 3 processes every 4 updates of 10 s: a third of a step's work on each second of its audio.
    assert probe.share_of_training(10.0, 3) == pytest.approx(probe.audio_seconds * 3 / 3 / (4 * 10))
    assert probe.share_of_training(10.0, 1) == pytest.approx(probe.share_of_training(10.0, 3) / 3)

    def states(waveform: np.ndarray, layer: int) -> np.ndarray:
        with torch.no_grad():
            return model.extract(torch.from_numpy(waveform)[None].float() / 32768, layers=[layer])[0][0].numpy()

    wanted = [
        best_on_dev(*([(states(waveform, layer), phones) for waveform, phones in parts[name]] for name in ("train", "dev")))
        for layer in range(3)
    ]
    found = probe.run(model)
    np.testing.assert_allclose(found, wanted, atol=3 / frames["dev"])


def test_baselines_are_of_the_same_frames_and_kept_for_these_sets_only(
    sets: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = WavLM(CONFIG).eval()
    probe = LiveProbe(settings(sets, train_seconds=6.0, dev_seconds=5.0), [], tmp_path)
    parts = {name: utterances(sets[name], seconds) for name, seconds in (("train", 6.0), ("dev", 5.0))}
    found = probe.baselines(model)

    def normalised(frames: torch.Tensor) -> torch.Tensor:
        return (frames - frames.mean(dim=0)) / frames.std(dim=0, unbiased=False)

    frames = {
        "mfcc": lambda waveform: mfcc_features(waveform)[None],
        "mfcc_norm": lambda waveform: normalised(mfcc_features(waveform))[None],
        "logmel_raw": lambda waveform: log_mel(torch.from_numpy(waveform).float()[None] / 32768),
        "logmel": lambda waveform: normalised_log_mel(torch.from_numpy(waveform).float()[None] / 32768),
    }
    judged = sum(len(phones) for _, phones in parts["dev"])
    for name, features in frames.items():
        for suffix, change in (("", lambda x: x), ("_context", with_context)):
            wanted = best_on_dev(
                *([(change(features(w))[0].numpy(), phones) for w, phones in parts[part]] for part in ("train", "dev"))
            )
            assert found[name + suffix] == pytest.approx(wanted, abs=1.5 / judged), name + suffix
    torch.manual_seed(0)
    assert found["untrained"] == pytest.approx(max(probe.run(WavLM(CONFIG).eval())), abs=3 / judged)
    kept = tmp_path / "probe_baselines.json"
    changed = json.loads(kept.read_text())
    changed["baselines"]["mfcc"] = 0.25
    kept.write_text(json.dumps(changed))
    assert probe.baselines(model)["mfcc"] == 0.25, "what is kept is not computed again"
    older = {name: value for name, value in changed["baselines"].items() if "norm" not in name and "raw" not in name}
    (tmp_path / "probes.csv").write_text("step,layer_0\n4,0.5\n")
    kept.write_text(json.dumps(changed | {"baselines": older}))
    assert probe.baselines(model) == found, "an older version measured fewer"
    assert "changed" not in json.loads(kept.read_text()) and "have changed" not in caplog.text, "the speech is the same"
    (tmp_path / "probes.csv").unlink()
    kept.write_text(json.dumps(changed))
    other = LiveProbe(settings(sets, train_seconds=6.0, dev_seconds=2.0), [], tmp_path)
    assert other.baselines(model)["mfcc"] != 0.25, "figures of other sets are"
    assert "changed" not in json.loads(kept.read_text()), "no probe was made before"
    kept.write_text(json.dumps(changed))
    (tmp_path / "probes.csv").write_text("step,layer_0\n4,0.5\n")
    other.baselines(model)
    assert "have changed: the earlier rows of" in caplog.text and json.loads(kept.read_text())["changed"] is True
    kept.write_text(json.dumps(changed))
    fitted_on_less = LiveProbe(settings(sets, train_seconds=3.0, dev_seconds=5.0), [], tmp_path)
    assert fitted_on_less.baselines(model)["mfcc"] != 0.25, "and so are those of probes that were fitted on other speech"


def test_the_untrained_baseline_is_its_best_layer(sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {"mfcc": [0.3, 0.4], "mfcc_norm": [0.31, 0.41], "logmel_raw": [0.5, 0.6], "logmel": [0.51, 0.61]}
    shares["untrained"] = [0.1, 0.9, 0.2]
    monkeypatch.setattr(live, "development_accuracy", lambda features, *_: np.array(shares[features.settings["name"]]))
    found = LiveProbe(settings(sets), [], tmp_path).baselines(WavLM(CONFIG))
    spectral = ("mfcc", "mfcc_norm", "logmel_raw", "logmel")
    expected = {name + context: shares[name][layer] for name in spectral for layer, context in enumerate(("", "_context"))}
    assert found == expected | {"untrained": 0.9}


@pytest.mark.parametrize(("fold_stress", "inventory"), [(False, ("AA1", "b")), (True, ("aa", "b"))])
def test_stress_is_dropped_where_that_was_asked_for(
    sets: dict[str, Path], tmp_path: Path, fold_stress: bool, inventory: tuple[str, ...]
) -> None:
    (tmp_path / "stressed.tsv").write_text(sets["phones"].read_text().replace("\ta\n", "\tAA1\n"))
    asked = settings(sets, alignments=str(tmp_path / "stressed.tsv"), fold_stress=fold_stress)
    probe = LiveProbe(asked, [], tmp_path)
    assert probe._train.inventory == probe._dev.inventory == inventory


def test_train_and_dev_that_share_a_speaker_are_refused(sets: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be different people, but 'fit/spk00' is in train and dev: split by speaker"):
        LiveProbe(settings(sets, dev=str(sets["same"])), [], tmp_path)


def test_dev_audio_of_the_runs_training_rows_is_refused_and_training_speech_is_what_probes_are_fitted_on(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    (train, all_train), (dev, all_dev) = (
        (index, np.ones(len(index), dtype=bool)) for index in (Index.open(sets[name]) for name in ("train", "dev"))
    )
    LiveProbe(settings(sets), [(train, all_train), (dev, ~all_dev)], tmp_path)
    for trained_on in ([(train, all_train), (dev, all_dev)], [(dev, all_dev), (train, all_train)]):
        with pytest.raises(ValueError, match=r"6 of 6 test utterances are in the training data"):
            LiveProbe(settings(sets), trained_on, tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"every": -1}, "must not be negative"),
        ({"train_seconds": 0.0}, "must be positive"),
        ({"dev_seconds": 0.0}, "must be positive"),
        ({"train": None}, r"probes\.train is null"),
        ({"dev": None}, r"probes\.dev is null"),
        ({"alignments": None}, r"probes\.alignments is null"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LiveProbes(**{"every": 4, "train": "a", "dev": "b", "alignments": "c", **changed})
    LiveProbes(every=0)
