"""`python studies/downstream.py`: started again after an end between its fine-tunings, it trains nothing twice and writes its page."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import downstream as study
import downstream_runs
from openwavlm.runs.compose import conf_dir
from programs import run_program
from runs import TINY_MODEL
from synthetic import write_speech_like
from tasks import make_encoder

WORDS = ("ONE", "TWO", "SIX")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inputs")
    rows, spoken = ["path\tspeaker\ttext"], ["path\tphone\tset"]

    def add(path: str, speaker: str, text: str, seconds: float) -> None:
        write_speech_like(folder / path, seconds, len(rows), speaker)
        rows.append(f"{path}\t{speaker}\t{text}")

    for speaker in "abc":
        for number, word in enumerate(WORDS * 2):
            add(f"fsdd/{speaker}/{number}.flac", "-", word, 0.5)
    for group in "12":
        for number in range(6):
            add(f"phones/autovot/{group}/{number}.flac", "-", "-", 1.0)
            spoken += [f"{rows[-1].split()[0]}\t{phone}\tautovot" for phone in ("sil", "AA1", "T", "AA0")]
    for number in range(10):
        add(f"LibriSpeech/train-clean-100/{number}.flac", f"l{number:02}", "ONE TWO SIX", 2.0)
    for number in range(2):
        add(f"LibriSpeech/test-other/{number}.flac", f"o{number}", "SIX ONE", 2.0)
    (folder / "manifest.tsv").write_text("\n".join(rows) + "\n")
    (folder / "phones.tsv").write_text("\n".join(spoken) + "\n")
    made = yaml.safe_load((conf_dir() / "iterate.yaml").read_text())
    made |= yaml.safe_load(Path(study.__file__).with_suffix(".yaml").read_text())
    made |= {"name": "test", "workers": 1, "input": str(folder), "demo": str(make_encoder(folder / "demo")), "page": None}
    made |= {"seeds": [0], "folds": 1, "rates": [0.01, 0.02], "updates": 4, "parallel": 1}
    made["iterations"] = [{"features": "mfcc", "clusters": 8, "engine": "minibatch", "min_frames_per_cluster": 20, "updates": 2}]
    small = ["optim.warmup_updates=1", "batch.seconds=8", "batch.micro_seconds=4", "loader.workers=0"]
    made["overrides"] = ["experiment=wavlm_nano", *TINY_MODEL, *small]
    made["finetune"] = [*made["finetune"], "optim.warmup_updates=1", "batch.seconds=8", "batch.micro_seconds=8"]
    made["tasks"]["speech"]["words"] = ["task=ctc"]
    made["finetune"].append("batch.max_seconds=8")
    return made


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.long
def test_a_killed_study_is_resumed_and_nothing_is_trained_twice(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Path] = []
    most, finetune = [3], downstream_runs.finetune

    def counting(values: dict[str, Any], run: Path) -> dict[str, Any]:
        if len(trained) == most[0]:
            raise Killed
        summary = finetune(values, run)
        trained.append(run)
        return summary

    monkeypatch.setattr(downstream_runs, "finetune", counting)
    with pytest.raises(Killed):
        study.downstream(config, tmp_path)
    assert len(trained) == 3 and not (tmp_path / "summary.json").exists()
    most[0] = 100
    summary = study.downstream(config, tmp_path)
    assert len(trained) == len(set(trained)) == 2 * 4 * 5, "both rates of the only fold and seed, each once"
    assert not any((run / "checkpoints").exists() for run in trained)
    again = study.downstream(config, tmp_path)
    assert again["this_call"]["made"] == [] and {**again, "this_call": None} == {**summary, "this_call": None}
    assert summary["sums"]["digits"]["demo"][0]["length"] == [6] and summary["sums"]["digits"]["mfcc"][0]["speakers"] == ["a"]
    assert summary["sums"]["digits_ctc"]["demo"][0]["length"] == [18] and summary["sums"]["phones"]["demo"][0]["length"] == [18]
    assert set(summary["layers"]["digits"]) == {"libri", "demo", "untrained"}
    assert (tmp_path / "evidence.md").read_text().startswith("# What pre-training brings")


@pytest.mark.long
def test_the_program_prints_its_config_and_refuses_in_a_sentence(tmp_path: Path) -> None:
    outcome = run_program(tmp_path, "studies/downstream.py", "--help")
    assert outcome.status == 0 and "make study NAME=downstream" in outcome.stdout
    message = run_program(tmp_path, "studies/downstream.py", f"input={tmp_path}", "page=null").error()
    assert "manifest.tsv" in message
