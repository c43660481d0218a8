"""A codebook of a corpus: stratified by source, bounded in memory, the same from several processes, whole or not there at all."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.labels.chunks import chunk_frames
from openwavlm.labels.fit import fit_codebook
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.sample import draw_sample, quotas
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from openwavlm.shards.index import Index
from synthetic import make_shard_set

ROOT = Path(__file__).parents[2]
SPLIT = {"validation_share": 0.0, "split_seed": 0}
FIT = SPLIT | {"clusters": 12, "min_frames_per_cluster": 20}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Books of some 95 s and calls of some 12 s: three chunks of frames."""
    return [
        make_shard_set(tmp_path_factory.mktemp(name), source=name, speakers=speakers, utterances=8, seconds=(0.8, 2.2), seed=seed)
        for seed, (name, speakers) in enumerate({"books": 8, "calls": 1}.items())
    ]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    save_huggingface(
        WavLM(WavLMConfig(conv_dims=(8,) * 7, dim=16, ffn_dim=32, heads=2, layers=2, positional_kernel=8, positional_groups=2)),
        folder,
    )
    return folder


@pytest.fixture(scope="module")
def codebook(sources: list[Path], teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codebook") / "km"
    fit_codebook(sources, folder, features="layer", teacher=teacher, layer=1, feature_norm="standardise", max_frames=5000, **FIT)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def arguments(sources: list[Path], teacher: Path, output: Path) -> list[str]:
    asked = {"features": "layer", "teacher": teacher, "layer": 1, "feature_norm": "standardise", "max_frames": 5000, **FIT}
    return [f"shards=[{','.join(map(str, sources))}]", f"output={output}", *(f"{key}={value}" for key, value in asked.items())]


def test_two_processes_of_torchrun_give_the_folder_of_one_byte_for_byte(
    sources: list[Path], teacher: Path, codebook: Path, tmp_path: Path
) -> None:
    assert Codebook.load(codebook).fitted["frames"] > 2 * chunk_frames(12, torch.device("cpu"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, str(ROOT / "data_prep" / "fit_kmeans.py"), *arguments(sources, teacher, tmp_path / "km")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("12 clusters from 5000 frames of 72 utterances") == 1
    assert files_of(tmp_path / "km") == files_of(codebook)


KILLED = """
import os, signal, sys
from openwavlm.labels import lloyd

step = lloyd._pass
passes = []
def deadly(*arguments):
    passes.append(1)
    if len(passes) == 15:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)
lloyd._pass = deadly
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_killed_in_a_pass_it_leaves_nothing_and_runs_again_to_the_same_bytes(
    sources: list[Path], teacher: Path, codebook: Path, tmp_path: Path
) -> None:
    program = [str(ROOT / "data_prep" / "fit_kmeans.py"), *arguments(sources, teacher, tmp_path / "km")]
    killed = subprocess.run([sys.executable, "-c", KILLED, *program], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "km").exists()
    done = subprocess.run([sys.executable, *program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "km") == files_of(codebook)


def test_what_was_done_is_written_down(codebook: Path) -> None:
    fitted = Codebook.load(codebook).fitted
    assert (fitted["engine"], fitted["device"], fitted["frames"], fitted["n_init"]) == ("lloyd", "cpu", 5000, 1)
    assert set(fitted["hours_by_source"]) == {"books", "calls"}
    assert len(fitted["mean_squared_distance_by_iteration"]) >= 2 and fitted["used_clusters"] == 12


def test_both_engines_are_equally_good_and_name_themselves(sources: list[Path], tmp_path: Path) -> None:
    books = {engine: fit_codebook(sources, tmp_path / engine, engine=engine, **FIT) for engine in ("lloyd", "minibatch")}
    assert {book.fitted["engine"] for book in books.values()} == {"lloyd", "minibatch"}
    distances = {engine: book.fitted["mean_squared_distance"] for engine, book in books.items()}
    assert distances["lloyd"] <= 1.02 * distances["minibatch"]
    with pytest.raises(ValueError, match=r"another request \(other .* engine"):
        fit_codebook(sources, tmp_path / "lloyd", engine="minibatch", **FIT)


def test_hours_are_sampled_in_proportion_to_those_of_the_sources_and_to_their_weights(sources: list[Path]) -> None:
    indexes = [Index.open(path) for path in sources]
    seconds = np.array([index.num_samples[:].sum() / 16_000 for index in indexes])

    def sampled(weights: dict[str, float] | None) -> np.ndarray:
        sample = draw_sample(indexes, sample_hours=20 / 3600, seed=0, source_weights=weights, **SPLIT)
        assert len(np.unique(sample.source * 1000 + sample.row)) == len(sample)
        found = np.array([sample.num_samples[sample.source == number].sum() / 16_000 for number in range(2)])
        np.testing.assert_allclose([3600 * sample.hours.get(name, 0) for name in ("books", "calls")], found, atol=0.2)
        return found

    # Whole utterances: a source overshoots by less than one.
    for weights, expected in (
        (None, 20 * seconds / seconds.sum()),
        ({"calls": 0.0}, [20, 0]),
        ({"calls": 1000.0}, [20 - seconds[1], seconds[1]]),
        ({"calls": seconds[0] / seconds[1]}, [10, 10]),
    ):
        over = sampled(weights) - expected
        assert (over >= -1e-6).all() and (over < 2.2).all(), (weights, over)
    assert len(draw_sample(indexes, sample_hours=100.0, seed=0, **SPLIT)) == 72
    with pytest.raises(ValueError, match=r"must name sources of the shard sets \('books', 'calls'\), but names 'call'"):
        sampled({"call": 2.0})
    with pytest.raises(ValueError, match="must not be negative nor all 0"):
        sampled({"calls": -1.0})


@given(
    st.dictionaries(st.text(max_size=3), st.floats(0.1, 1e6), min_size=1, max_size=6),
    st.floats(0.1, 1e7),
    st.lists(st.floats(0.01, 100), min_size=6, max_size=6),
)
def test_quotas_fill_what_is_wanted_or_take_all(held: dict[str, float], wanted: float, factors: list[float]) -> None:
    weights = dict(zip(held, factors, strict=False))
    found = quotas(held, wanted, weights)
    assert all(0 <= found[name] <= held[name] * (1 + 1e-9) for name in held)
    assert sum(found.values()) == pytest.approx(min(wanted, sum(held.values())))
    per_weight = {found[name] / (held[name] * weights[name]) for name in held if found[name] < held[name] * (1 - 1e-9)}
    assert not per_weight or max(per_weight) == pytest.approx(min(per_weight))


def test_a_small_sample_lowers_the_number_of_clusters_and_says_so(
    sources: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        book = fit_codebook(sources, tmp_path / "km", clusters=500, **SPLIT)
    assert len(book) == book.fitted["frames"] // 1000 < 7
    assert book.fitted["clusters_wanted"] == 500
    assert f"K is lowered from 500 to {len(book)}; to keep 500, give more audio" in caplog.text


def test_memory_is_bounded_before_anything_is_computed(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openwavlm.labels.fit.sampled_frames", None)
    # 39 numbers of 4 bytes.
    with pytest.raises(ValueError, match=r"max_memory_gib=0\.0001 .*set max_frames to at most 688, start more processes"):
        fit_codebook(sources, tmp_path / "km", max_memory_gib=1e-4, max_frames=2000, **FIT)
    with pytest.raises(TypeError):
        fit_codebook(sources, tmp_path / "km", max_memory_gib=1e-4, max_frames=688, **FIT)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"engine": "full"}, "engine must be one of lloyd, minibatch, but is 'full'"),
        ({"device": "gpu"}, "device must be one of cpu, cuda, auto, but is 'gpu'"),
        ({"max_frames": 0}, "max_frames and max_memory_gib must be positive"),
        ({"n_init": -1}, "n_init and iterations must be at least 1"),
        ({"iterations": 0}, "n_init and iterations must be at least 1"),
        ({"tolerance": float("nan")}, "tolerance at least 0"),
    ],
)
def test_wrong_values_are_refused_before_any_feature_is_computed(
    sources: list[Path], tmp_path: Path, asked: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openwavlm.labels.fit.sampled_frames", lambda *_, **__: pytest.fail("features are computed"))
    with pytest.raises(ValueError, match=message):
        fit_codebook(sources, tmp_path / "km", **(FIT | asked))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(sources: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="torch finds no GPU here"):
        fit_codebook(sources, tmp_path / "km", device="cuda", **FIT)


def test_frames_for_scikit_learn_stay_on_the_cpu_where_there_is_a_gpu(sources, tmp_path, monkeypatch):
    monkeypatch.setattr("openwavlm.labels.fit.choose_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr("openwavlm.labels.sampled_frames._placed", lambda features, device: features.to(_stand_in(device)))
    assert len(fit_codebook(sources, tmp_path / "km", engine="minibatch", **FIT)) == 12


def _stand_in(device: torch.device) -> torch.device:
    return torch.device("meta") if device.type == "cuda" else device
