"""`python studies/learn.py`: arms that differ in one thing, paired by seed, compared voice by voice, made once."""

import json
from pathlib import Path

import pytest
import yaml

from learn import learn
from openwavlm.runs.compose import conf_dir
from programs import run_program
from runs import TINY_MODEL
from synthetic import make_corpus

STUDIES = Path(__file__).parents[2] / "studies"


def phone_times(path: Path, speakers: int, utterances: int) -> Path:
    """A table for `make_corpus`: phones of a quarter of a second, whatever is said."""
    lines = ["path\tstart\tend\tphone"]
    for recording in (f"spk{s:02d}/utt{u:03d}.flac" for s in range(speakers) for u in range(utterances)):
        lines += [f"{recording}\t{part / 4}\t{(part + 1) / 4}\t{'aeiou'[part % 5]}" for part in range(12)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("corpora")
    made = yaml.safe_load((conf_dir() / "iterate.yaml").read_text()) | yaml.safe_load((STUDIES / "learn.yaml").read_text())
    made |= {"name": "test", "workers": 1, "synthesis": None, "seeds": [3, 4], "corpora": {}}
    for seed, name in enumerate(("train", "dev", "test")):
        corpus = make_corpus(folder / name, speakers=3, utterances=4, seconds=(1.5, 3.0), seed=seed)
        made["corpora"][name] = {"input": str(corpus), "speaker_folder": 1, "source": name, "min_seconds": 0.5}
    made["alignments"] = str(phone_times(folder / "phones.tsv", 3, 4))
    made["iterations"] = [
        {"features": "mfcc", "clusters": 8, "engine": "minibatch", "min_frames_per_cluster": 20, "updates": 4},
        {"features": "layer", "layer": 1, "clusters": 6, "min_frames_per_cluster": 20, "updates": 4},
    ]
    small = ["optim.warmup_updates=1", "batch.seconds=8", "batch.micro_seconds=4", "loader.workers=0"]
    made["overrides"] = ["experiment=wavlm_nano", "loss=warm", *TINY_MODEL, *small]
    made["probe"] |= {"clusters": 4}
    del made["variants"]["warm_off"], made["comparisons"]["warm_up"]
    return made


@pytest.fixture(scope="module")
def done(config, tmp_path_factory) -> tuple[Path, dict]:
    directory = tmp_path_factory.mktemp("learn")
    return directory, learn(config, directory)


@pytest.mark.long
def test_every_comparison_has_both_seeds_an_interval_and_a_verdict(done):
    directory, summary = done
    assert set(summary["arms"]) == {"iteration_1", "iteration_2", "mixing_off", "nano_mel"}
    for comparison in summary["comparisons"].values():
        for found in comparison["figures"].values():
            assert len(found["of"]) == len(found["against"]) == len(found["differences"]) == 2 and found["speakers"] == 3
            assert found["interval"][0] <= found["difference"] <= found["interval"][1]
            assert found["verdict"] in ("higher", "lower", "equal")
    assert json.loads((directory / "summary.json").read_text()) == json.loads(json.dumps(summary))
    page = (directory / "evidence.md").read_text()
    assert "Primary outcome" in page and "### iteration 1 against mixing off" in page and "| log-mel ± 5 |" in page


@pytest.mark.long
def test_the_arms_of_a_seed_share_all_but_the_thing_that_differs(done):
    directory, summary = done
    configs = {
        name: [yaml.safe_load((directory / arm["run"] / "config.yaml").read_text()) for arm in arms]
        for name, arms in summary["arms"].items()
    }
    assert [[config["seed"] for config in of] for of in configs.values()] == [[3, 4]] * 4
    first = configs["iteration_1"]
    assert first[0]["mixing"]["prob"] == 0.2 and first[0]["data"] == first[1]["data"]
    for name, changed in (("mixing_off", {"mixing"}), ("nano_mel", {"model", "loss"})):
        for one, other in zip(first, configs[name], strict=True):
            assert {key for key in one if one[key] != other[key]} == changed
    assert all(config["mixing"]["prob"] == 0 for config in configs["mixing_off"])
    assert all(c["model"]["front_end"] == "logmel" and c["loss"]["logmel"] == 0 for c in configs["nano_mel"])
    assert configs["iteration_2"][0]["data"] != configs["iteration_2"][1]["data"]


@pytest.mark.long
def test_masked_figures_by_speaker_are_those_of_the_whole_set(done):
    directory, summary = done
    for mark in (directory / "stages").glob("*/masked-speakers-*/stage.json"):
        result = json.loads(mark.read_text())["result"]
        if result["figures"]:
            nats, frames = sum(result["by_speaker"]["nats"]), sum(result["by_speaker"]["frames"])
            assert frames == result["figures"]["frames"]
            assert nats / frames == pytest.approx(result["figures"]["cross_entropy"], rel=1e-5)
    assert all(arm["count_table"] > 0 for arm in summary["arms"]["iteration_1"])


@pytest.mark.long
def test_a_second_call_makes_nothing_and_says_the_same(done, config):
    directory, before = done
    page = (directory / "evidence.md").read_text()
    again = learn(config, directory)
    assert again["this_call"]["made"] == []
    assert {**again, "this_call": None} == {**json.loads(json.dumps(before)), "this_call": None}
    assert (directory / "evidence.md").read_text() == page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"comparisons": {"x": {"of": "iteration_3", "against": "nano_mel", "figures": ["phones"]}}}, "the arm iteration_3"),
        ({"comparisons": {"x": {"of": "nano_mel", "against": "mixing_off", "figures": ["words"]}}}, "figures has words"),
        ({"comparisons": {"x": {"of": "iteration_2", "against": "nano_mel", "figures": ["masked"]}}}, "has other labels"),
        ({"primary": {"comparison": "front_end", "figure": "overlapped_phones"}}, "which no comparison has"),
        ({"alignments": None}, "needs phone times"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(config, tmp_path, change, words):
    with pytest.raises(ValueError, match=words) as refusal:
        learn({**config, **change}, tmp_path)
    assert "\n" not in str(refusal.value) and not list(tmp_path.glob("stages/1"))


def test_the_program_shows_its_keys_and_reads_its_config_from_any_folder(tmp_path):
    outcome = run_program(tmp_path, "studies/learn.py", "--help")
    assert outcome.status == 0 and "python studies/learn.py" in outcome.stdout and "mixing_off: [mixing=off]" in outcome.stdout
    message = run_program(tmp_path, "studies/learn.py", "primary.figure=words").error()
    assert message.startswith("primary names words of mixing, which no comparison has")
