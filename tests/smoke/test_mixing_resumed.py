"""`python studies/mixing.py`: killed between its trainings and started again, it trains nothing twice and ends as if nothing had been."""

import json
from pathlib import Path

import pytest
import yaml
from test_learn import STUDIES, phone_times

import arms
from mixing import mixing
from openwavlm.runs.compose import conf_dir
from programs import run_program
from runs import TINY_MODEL
from synthetic import make_corpus


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("corpora")
    made = yaml.safe_load((conf_dir() / "iterate.yaml").read_text()) | yaml.safe_load((STUDIES / "mixing.yaml").read_text())
    made |= {"name": "test", "workers": 1, "synthesis": None, "seeds": [3, 4], "corpora": {}, "page": None, "parallel": 1}
    for seed, name in enumerate(("train", "dev", "test")):
        corpus = make_corpus(folder / name, speakers=3, utterances=4, seconds=(1.5, 3.0), seed=seed)
        made["corpora"][name] = {"input": str(corpus), "speaker_folder": 1, "source": name, "min_seconds": 0.5}
    made["alignments"] = str(phone_times(folder / "phones.tsv", 3, 4))
    made["iterations"] = [{"features": "mfcc", "clusters": 8, "engine": "minibatch", "min_frames_per_cluster": 20, "updates": 4}]
    small = ["optim.warmup_updates=1", "batch.seconds=8", "batch.micro_seconds=4", "loader.workers=0"]
    made["overrides"] = ["experiment=wavlm_nano", "model=nano_mel", "loss=warm", "loss.logmel=0", *TINY_MODEL, *small]
    made["probe"] |= {"clusters": 4}
    return made


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.long
def test_a_killed_study_is_resumed_and_nothing_is_trained_twice(config, tmp_path, monkeypatch):
    trained, most = [], [2]
    train = arms.Seed._train

    def counting(self, number, settings, labels, previous=None):
        if len(trained) == most[0]:
            raise Killed  # in every thread, as at the end of a process
        stage = train(self, number, settings, labels, previous)
        trained.extend([stage.key] if stage.made else [])
        return stage

    monkeypatch.setattr(arms.Seed, "_train", counting)
    with pytest.raises(Killed):
        mixing(config, tmp_path)
    assert len(trained) == 2 and not (tmp_path / "summary.json").exists()
    most[0] = 7
    summary = mixing(config, tmp_path)
    assert len(trained) == len(set(trained)) == 6, "three arms of two seeds, each trained once"
    again = mixing(config, tmp_path)
    assert again["this_call"]["made"] == [] and {**again, "this_call": None} == {**summary, "this_call": None}
    runs = {
        name: [yaml.safe_load((tmp_path / arm["run"] / "config.yaml").read_text()) for arm in of]
        for name, of in summary["arms"].items()
    }
    assert [run["mixing"]["prob"] for of in runs.values() for run in of] == [0, 0, 0.2, 0.2, 0.8, 0.8]
    for name in ("p20", "p80"):
        for one, other in zip(runs["mixing_off"], runs[name], strict=True):
            assert {key for key in one if one[key] != other[key]} == {"mixing"}, "the arms of a seed differ in mixing alone"
    for comparison in summary["comparisons"].values():
        for found in comparison["figures"].values():
            assert len(found["differences"]) == 2 and found["speakers"] == 3 and found["verdict"] in ("higher", "lower", "equal")
            assert found["smallest_visible"] is not None
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(again))
    page = (tmp_path / "evidence.md").read_text()
    for words in ("**Primary outcome**", "is calibration, and is called so", "| untrained encoder |", "| energy of the frame |"):
        assert words in page


def test_the_program_shows_its_keys_and_refuses_an_unknown_arm(tmp_path):
    outcome = run_program(tmp_path, "studies/mixing.py", "--help")
    assert outcome.status == 0 and "make study NAME=mixing" in outcome.stdout
    message = run_program(tmp_path, "studies/mixing.py", "comparisons.dose.of=p90", "page=null").error()
    assert message.startswith("comparisons.dose names the arm p90")


def test_a_page_is_written_where_the_config_says(tmp_path):
    arms.write_page(tmp_path / "docs" / "page.md", "text\n")
    assert Path(tmp_path / "docs" / "page.md").read_text() == "text\n"
