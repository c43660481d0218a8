"""The loop: two iterations from recordings to a model, made once, and remade only where something changed."""

import json
import shutil
import weakref
from pathlib import Path

import pytest
import transformers
import yaml

from openwavlm.batches.sources import OpenData
from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.evaluation import counts
from openwavlm.evaluation.counts import CountTable
from openwavlm.labels.teacher import forget_teacher, open_teacher
from openwavlm.model.wavlm import WavLM
from openwavlm.pipeline import masked
from openwavlm.pipeline.iterate import iterate
from openwavlm.runs.compose import composed, conf_dir, plain
from openwavlm.runs.export import load_run
from openwavlm.runtime.atomic import writer_lock
from openwavlm.shards.index import Index
from openwavlm.training.config import RunConfig, with_placeholders
from runs import TINY_MODEL
from synthetic import make_corpus


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("corpora")
    made = yaml.safe_load((conf_dir() / "iterate.yaml").read_text())
    made["name"] = "test"
    made["workers"] = 1
    for seed, name in enumerate(("train", "dev", "test")):
        corpus = make_corpus(folder / name, speakers=3, utterances=4, seconds=(1.5, 3.0), seed=seed)
        made["corpora"][name] = {"input": str(corpus), "speaker_folder": 1, "source": name, "min_seconds": 0.5}
    made["iterations"] = [
        {"features": "mfcc", "clusters": 8, "min_frames_per_cluster": 20, "updates": 4},
        {"features": "layer", "layer": "auto", "clusters": 10, "min_frames_per_cluster": 20, "updates": 4},
    ]
    small = ["optim.warmup_updates=1", "batch.seconds=8", "batch.micro_seconds=4", "loader.workers=0"]
    made["overrides"] = ["experiment=wavlm_nano", "loss=warm", *TINY_MODEL, *small]
    return made


@pytest.fixture(scope="module")
def done(config, tmp_path_factory) -> tuple[Path, dict]:
    directory = tmp_path_factory.mktemp("iterate") / "jürgen's = a,b [x] #1"  # paths become overrides of the training
    return directory, iterate(config, directory)


def test_two_iterations_end_in_a_model_a_page_and_figures(done):
    directory, summary = done
    assert len(summary["iterations"]) == 2
    for iteration in summary["iterations"]:
        assert iteration["masked"]["cross_entropy"] > 0 and iteration["masked"]["count_table"]["cross_entropy"] > 0
    assert transformers.WavLMModel.from_pretrained(directory / "export").config.num_hidden_layers == 2
    page = (directory / "report.html").read_text()
    assert "iteration 2: labels from layer 1" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_second_call_makes_nothing_and_keeps_every_byte(done, config):
    directory, _ = done
    before = {path: path.read_bytes() for path in directory.rglob("*.safetensors")}
    summary = iterate(config, directory)
    assert summary["this_call"]["made"] == []
    assert len(summary["iterations"]) == 2
    assert before == {path: path.read_bytes() for path in directory.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("number", "values", "message"),
    [
        (1, {"features": "layer", "clusters": 8}, "no model before it with a layer"),
        (1, {"features": "mfcc", "clusters": 8, "start": "warm"}, "no model before it to start from"),
        (1, {"features": "mfc", "clusters": 8}, "must be one of mfcc, layer"),
        (1, {"clusters": 8, "layer": 3}, "no model before it"),
        (2, {"features": "mfcc", "layer": 3, "clusters": 8}, "clusters mfcc but names the layer 3"),
        (2, {"layer": "top", "clusters": 8}, "a layer's number or auto"),
        (2, {"layer": 1}, "must name clusters"),
        (2, {"layer": 1, "clusters": 8, "start": "cold"}, "one of scratch, warm"),
        (2, {"layer": 1, "cluster": 8}, "did you mean clusters"),
        (2, {"layer": 1, "clusters": 8, "sample_hour": 1}, "did you mean sample_hours"),
        (2, {"layer": 99, "clusters": 8}, r"layer must be one of 0…2 of the model before, but is 99"),
        (2, {"layer": 1, "clusters": 8, "engine": "llloyd"}, "engine must be one of lloyd, minibatch"),
        (2, {"layer": 1, "clusters": 8, "sample_hours": -1}, "sample_hours must be positive"),
        (2, {"layer": 1, "clusters": 8, "start": "warm", "overrides": ["model.dim=32"]}, r"differs from this run's model in dim"),
        (2, {"clusters": 8, "teacher": "elsewhere"}, "must name one of its layers by number"),
    ],
)
def test_an_iteration_that_cannot_be_is_refused_before_any_work(config, tmp_path, number, values, message):
    wrong = json.loads(json.dumps(config))
    wrong["iterations"][number - 1] = values
    with pytest.raises(ValueError, match=message):
        iterate(wrong, tmp_path / "run")
    assert not list(tmp_path.rglob("*"))


def teacher_of_layers(config: dict, layers: int, folder: Path) -> Path:
    values = plain(composed("train", ["name=x", *config["overrides"], f"model.layers={layers}"]))
    save_huggingface(WavLM(RunConfig.of(with_placeholders(values)).model), folder)
    return folder


@pytest.mark.parametrize(("overrides", "message"), [([], None), (["model.layers=3"], "differs from this run's model in layers")])
def test_a_warm_start_is_that_of_the_iteration_before_whatever_the_teacher_is(config, tmp_path, overrides, message):
    warm = json.loads(json.dumps(config))
    teacher = teacher_of_layers(config, 3, tmp_path / "teacher")
    warm["iterations"][1] = {"teacher": str(teacher), "layer": 3, "clusters": 8, "start": "warm", "overrides": overrides}
    if message is None:
        assert "to do" in states(warm, tmp_path / "run").values()
    else:
        with pytest.raises(ValueError, match=message):
            iterate({**warm, "dry_run": True}, tmp_path / "run")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"iterations": []}, "iterations must name at least one pass"),
        (
            {"corpora": {"train": {"input": "/nowhere"}}},
            r"corpora\.train\.input must be a folder or a file, but /nowhere does not exist",
        ),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_what_cannot_be_is_refused_before_any_work(config, tmp_path, changed, message, dry_run):
    with pytest.raises(ValueError, match=message):
        iterate(config | {"synthesis": None, "dry_run": dry_run} | changed, tmp_path / "run")
    assert not list(tmp_path.rglob("shards"))


def test_one_folder_of_recordings_is_enough(config, tmp_path):
    one = json.loads(json.dumps(config))
    corpus = make_corpus(tmp_path / "mine", speakers=5, utterances=4, seconds=(1.5, 3.0), seed=7)
    one["corpora"] = {"input": str(corpus), "speaker_folder": 1, "min_seconds": 0.5, "train": {"input": None}}
    one["iterations"] = one["iterations"][:1]
    summary = iterate(one, tmp_path / "run")
    assert summary["iterations"][0]["masked"]["frames"] > 0
    speakers = [set(Index.open(folder).speakers[1:]) for folder in sorted((tmp_path / "run").glob("stages/shards/*"))]
    assert sorted(map(len, speakers)) == [1, 1, 3] and len(set().union(*speakers)) == 5
    assert iterate(one, tmp_path / "run")["this_call"]["made"] == []


def states(config: dict, directory: Path) -> dict[str, str]:
    return {row["folder"]: row["state"] for row in iterate({**config, "dry_run": True}, directory)["stages"]}


def test_a_dry_run_tells_what_is_done_and_makes_nothing(done, config, tmp_path):
    directory, _ = done
    files = sorted(directory.rglob("*"))
    found = states(config, directory)
    assert set(found.values()) == {"done"} and len(found) == 19
    assert sorted(directory.rglob("*")) == files
    assert set(states(config, tmp_path / "new").values()) == {"to do"}
    assert not list(tmp_path.rglob("*"))


def test_a_dry_run_tells_what_a_changed_value_makes_stale(done, config):
    directory, _ = done
    changed = json.loads(json.dumps(config))
    changed["iterations"][1]["clusters"] = 11
    found = states(changed, directory)
    kept = {name for name, state in found.items() if state == "done"}
    assert kept and all(name.startswith(("shards/", "1/")) for name in kept)
    todo = {name[:-13] for name, state in found.items() if state == "to do"}
    assert {"2/codebook", "2/labels-train", "2/train", "2/export", "2/masked", "result", "report"} <= todo
    assert todo <= {name[:-13] for name, state in found.items() if state == "stale"}


def test_a_changed_value_remakes_only_what_depends_on_it(done, config):
    directory, _ = done
    changed = json.loads(json.dumps(config))
    changed["iterations"][1]["clusters"] = 9
    made = iterate(changed, directory)["this_call"]["made"]
    assert made and all(name.startswith(("stages/2/", "stages/result", "stages/report")) for name in made)


def test_a_warm_iteration_begins_with_the_encoder_before_and_a_new_head(done, config, caplog):
    directory, _ = done
    warm = json.loads(json.dumps(config))
    warm["iterations"][1] |= {"start": "warm", "updates": 2}
    caplog.set_level("INFO")
    made = iterate(warm, directory)["this_call"]["made"]
    assert made[0].startswith("stages/2/train-") and all(
        name.startswith(("stages/2/", "stages/result", "stages/report")) for name in made
    )
    assert "iteration 2 begins with the encoder of iteration 1; its head is new, as its labels are" in caplog.text
    begun = json.loads((directory / made[0] / "run" / "run.json").read_text())["init_from"]
    (before,) = directory.glob("stages/1/export-*")
    assert Path(begun["path"]) == before and begun["model"] == open_teacher(before).hash


def test_going_back_to_earlier_settings_publishes_the_earlier_model(done, config):
    directory, _ = done

    def published() -> tuple[str, bytes, str]:
        names = [part["name"] for part in json.loads((directory / "summary.json").read_text())["iterations"]]
        return open_teacher(directory / "export").hash, (directory / "report.html").read_bytes(), names[-1]

    iterate(config, directory)
    first = published()
    other = json.loads(json.dumps(config))
    other["iterations"] = other["iterations"][:1]
    assert all(name.startswith("stages/re") for name in iterate(other, directory)["this_call"]["made"])
    assert [mine != theirs for mine, theirs in zip(published(), first, strict=True)] == [True, True, True]
    assert iterate(config, directory)["this_call"]["made"] == [] and published() == first
    shutil.rmtree(directory / "export")
    assert iterate(config, directory)["this_call"]["made"] == [] and published() == first


def test_new_recordings_grow_the_shards_and_make_everything_behind_them_anew(done, config, tmp_path):
    directory, _ = done
    grown = json.loads(json.dumps(config))
    corpus = Path(grown["corpora"]["train"]["input"])
    added = make_corpus(tmp_path / "more", speakers=1, utterances=2, seconds=(1.5, 3.0), seed=9) / "spk00"
    shutil.copytree(added, corpus / "new-speaker")
    try:
        found = states(grown, directory)
    finally:
        shutil.rmtree(corpus / "new-speaker")
    shards = {name: state for name, state in found.items() if name.startswith("shards/") and state != "stale"}
    assert sorted(shards.values()) == ["begun", "done", "done"], "the shards are there and grow"
    assert {state for name, state in found.items() if name.startswith(("1/", "2/"))} == {"to do", "stale"}


def test_another_table_of_phones_is_probed_anew(done, config, tmp_path):
    directory, _ = done
    tables = [tmp_path / name for name in "ab"]
    for number, table in enumerate(tables):
        table.write_text(f"path\tstart\tend\tphone\nx\t0\t{number + 1}\ta\n")
    keys = []
    for table in (*tables, tables[0]):
        found = states({**config, "alignments": str(table)}, directory)
        keys.append(next(name for name in found if name.startswith("1/probe-")))
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.long
def test_a_public_model_may_be_the_teacher_of_the_first_iteration(done, config, tmp_path):
    directory, _ = done
    public = json.loads(json.dumps(config))
    (teacher,) = directory.glob("stages/1/export-*")
    public["iterations"] = [{"teacher": str(teacher), "layer": 1, "clusters": 6, "min_frames_per_cluster": 20, "updates": 2}]
    shutil.copytree(directory / "stages" / "shards", tmp_path / "stages" / "shards")
    iterate(public, tmp_path)
    (labels,) = tmp_path.glob("stages/1/labels-train-*")
    meta = json.loads((labels / "labels" / "meta.json").read_text())
    assert (meta["features"]["teacher"], meta["features"]["layer"]) == (open_teacher(teacher).hash, 1)


def test_a_second_call_in_the_same_directory_is_refused(config, tmp_path):
    with writer_lock(tmp_path), pytest.raises(ValueError, match="another process is writing"):
        iterate(config, tmp_path)


def test_a_misspelt_override_of_the_training_is_refused_before_any_work(config, tmp_path):
    wrong = json.loads(json.dumps(config))
    wrong["iterations"][1]["overrides"] = ["optim.warmup_update=2"]
    with pytest.raises(ValueError, match=r"did you mean optim\.warmup_updates"):
        iterate(wrong, tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_only_what_changes_the_trajectory_trains_again(done, config):
    directory, _ = done
    elsewhere = json.loads(json.dumps(config))
    elsewhere["overrides"] += ["loader.workers=1", "callbacks.checkpoint_every=3"]
    assert iterate(elsewhere, directory)["this_call"]["made"] == []
    elsewhere["iterations"][1]["overrides"] = ["optim.clip_norm=5"]
    made = iterate(elsewhere, directory)["this_call"]["made"]
    assert made and all(name.startswith(("stages/2/", "stages/result", "stages/report")) for name in made)
    assert not any(name.startswith("stages/2/codebook") for name in made)


def test_audio_of_the_training_set_in_dev_or_test_is_refused_before_anything_is_trained(done, config, tmp_path):
    directory, _ = done
    shutil.copytree(directory / "stages" / "shards", tmp_path / "run" / "stages" / "shards")
    mixed = json.loads(json.dumps(config))
    corpus = tmp_path / "test"
    shutil.copytree(config["corpora"]["test"]["input"], corpus)
    shutil.copytree(Path(config["corpora"]["train"]["input"]) / "spk00", corpus / "somebody")
    mixed["corpora"]["test"]["input"] = str(corpus)
    with pytest.raises(ValueError, match=r"but 4 of 16 rows of test are in the training corpus \(.*\): remove them"):
        iterate(mixed, tmp_path / "run")
    assert not (tmp_path / "run" / "stages" / "1").exists()


def test_the_count_tables_labels_are_collected_only_as_far_as_it_counts(done, monkeypatch):
    directory, _ = done
    (run,) = directory.glob("stages/1/train-*/run")
    values = yaml.safe_load((run / "config.yaml").read_text())
    parts = RunConfig.of(values)
    opened = OpenData(parts.data, parts.batch, values["seed"])
    collected = []

    class Counting(CountTable):
        def fit(self, *sequences):
            collected.append(sum(map(len, sequences[0])))
            return super().fit(*sequences)

    def figures(collected_frames: float) -> dict:
        monkeypatch.setattr(masked, "COUNTED_FRAMES", collected_frames)
        return masked.masked_figures(load_run(run)[0], parts, opened, train="speech", dev="dev", test="dev")[0]

    try:
        monkeypatch.setattr(masked, "CountTable", Counting)
        monkeypatch.setattr(counts, "COUNTED_FRAMES", 300)
        assert figures(300) == figures(1e9)
    finally:
        opened.close()
    assert 300 <= collected[0] < collected[1]


def test_the_teacher_is_forgotten_while_a_training_runs(done, config):
    directory, _ = done
    (teacher,) = directory.glob("stages/1/export-*")
    before = weakref.ref(open_teacher(teacher).model)
    forget_teacher()
    assert before() is None
    asked = []
    again = json.loads(json.dumps(config))
    again["iterations"][1]["overrides"] = ["optim.clip_norm=7"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openwavlm.pipeline.iteration.forget_teacher", lambda: asked.append("forgotten"))
        patch.setattr("openwavlm.pipeline.iteration.run_until_saved", lambda *_: asked.append("training") or 1)
        with pytest.raises(ValueError, match="training of iteration 2 ended with status 1"):
            iterate(again, directory)
    assert asked == ["forgotten", "training"]
