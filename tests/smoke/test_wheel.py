"""The wheel, installed far from the checkout, runs from any directory."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from patience import HANG_S
from runs import TINY_MODEL
from synthetic import make_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *build], check=True, timeout=HANG_S)
    (built,) = folder.glob("openwavlm-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs' folder of an environment that has the wheel, and this environment's other packages but not its links."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True, with_pip=False)
    pip = ["--disable-pip-version-check", "--python", str(folder / "bin" / "python")]
    install = ["install", "--quiet", "--no-index", "--no-deps", "--no-compile", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *pip, *install], check=True, timeout=HANG_S)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A folder that a .pth file names is searched, but its own .pth files, such as that of an editable install, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def run(directory: Path, *command: str | Path) -> str:
    """What a program prints, started in `directory` with nothing in its environment that leads to the checkout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_the_wheel_holds_every_config_file_and_every_script_of_preparation(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, pattern, at_least in (("conf", "*.yaml", 30), ("data_prep", "*.py", 5)):
        expected = {f"openwavlm/{folder}/{path.relative_to(ROOT / folder).as_posix()}" for path in (ROOT / folder).rglob(pattern)}
        assert len(expected) >= at_least and expected <= names, expected - names
    assert "openwavlm/py.typed" in names
    assert not [
        name for name in names if name.startswith(("tests/", "benchmarks/", "examples/")) or name.endswith((".pyc", ".tmp"))
    ]


def test_the_installed_copy_is_what_runs_and_it_finds_its_own_config(installed: Path, tmp_path: Path):
    code = "import openwavlm, openwavlm.runs.compose as compose; print(openwavlm.__file__); print(compose.conf_dir())"
    for place in run(tmp_path, installed / "python", "-c", code).splitlines():
        assert Path(place).is_relative_to(installed.parent) and not Path(place).is_relative_to(ROOT)
    assert "usage: openwavlm COMMAND" in run(tmp_path, installed / "openwavlm", "--help")
    assert "usage: openwavlm COMMAND" in run(tmp_path, installed / "python", "-m", "openwavlm", "--help")
    assert "utterances_per_shard" in run(tmp_path, installed / "openwavlm", "make-shards", "--help")


@pytest.mark.long
def test_the_installed_program_composes_a_run(installed: Path, tmp_path: Path):
    given = ["experiment=wavlm_nano", "loss=warm", "name=there", "data.sources.speech.shards=a", "data.sources.speech.labels=b"]
    config = yaml.safe_load(run(tmp_path, installed / "openwavlm", "train", *given, "--cfg", "job"))
    assert config["name"] == "there" and config["model"]["layers"] == 3 and config["loss"]["logmel"] == 1.0
    assert not list(tmp_path.iterdir()), "looking at a config writes nothing"


def test_the_installed_program_goes_from_recordings_to_a_model(installed: Path, tmp_path: Path):
    corpora = []
    for seed, name in enumerate(("train", "dev", "test")):
        corpus = make_corpus(tmp_path / name, speakers=2, utterances=3, seconds=(1.0, 2.0), seed=seed)
        corpora += [f"corpora.{name}.input={corpus}", f"+corpora.{name}.min_seconds=0.5"]
    small = ["optim.warmup_updates=1", "batch.seconds=4", "batch.micro_seconds=4", "loader.workers=0"]
    overrides = ",".join(f'"{word}"' for word in ("experiment=wavlm_nano", "loss=warm", *TINY_MODEL, *small))
    iterations = "iterations=[{features: mfcc, clusters: 6, min_frames_per_cluster: 20, updates: 2}]"
    run(tmp_path, installed / "openwavlm", "iterate", "name=tiny", "workers=1", *corpora, f"overrides=[{overrides}]", iterations)
    directory = tmp_path / "runs" / "tiny"
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["iterations"][0]["masked"]["cross_entropy"] > 0
    assert (directory / "export" / "model.safetensors").stat().st_size > 1000 and (directory / "report.html").is_file()
    (record,) = directory.glob("stages/1/train-*/run/run.json")
    assert json.loads(record.read_text())["segments"][0]["commit"] is None, "an installed copy has no checkout"
