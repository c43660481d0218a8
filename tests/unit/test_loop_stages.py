"""Stages of the loop: what makes one anew, what each is given, what a dry run says of them, and what is published."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openwavlm.evaluation import measure
from openwavlm.pipeline import corpora, iteration, masked
from openwavlm.pipeline import iterate as loop
from openwavlm.pipeline.iterate import publish
from openwavlm.pipeline.settings import IterationSettings
from openwavlm.pipeline.stages import Chain, fingerprint, graph, graph_lines
from openwavlm.runtime.sealed import write_sealed

# The chain


def test_a_stage_is_made_anew_for_another_name_setting_input_order_or_content_and_for_nothing_else(tmp_path: Path) -> None:
    chain, made = Chain(tmp_path), []

    def run(name: str = "x", settings: dict | None = None, inputs: list | None = None, content: str | None = None) -> Any:
        def make(folder: Path) -> dict[str, Any]:
            made.append(folder)
            return {"number": len(made)}

        return chain.run(name, settings or {"k": 1, "l": 2}, inputs or [], make, content=content)

    first = run()
    one, other = run("a"), run("b")
    assert [stage.made for stage in (first, one, other)] == [True] * 3 and first.result == {"number": 1}
    again = run(settings={"l": 2, "k": 1})
    assert not again.made and again.result == {"number": 1} and again.folder == first.folder and again.seconds == first.seconds
    keys = [first.key, one.key, other.key]
    for changed in (
        {"settings": {"k": 1, "l": 3}},
        {"inputs": [one]},
        {"inputs": [other]},
        {"inputs": [one, other]},
        {"inputs": [other, one]},
    ):
        stage = run(**changed)
        keys.append(stage.key)
        assert stage.made and stage.folder.name == f"x-{stage.key}" and not run(**changed).made
    assert len(set(keys)) == len(keys) == 8 and all(len(key) == 12 for key in keys)
    # What can grow keeps its folder, and what builds on it is made anew.
    small = run("grown", content="one file")
    large = run("grown", content="two files")
    assert small.folder == large.folder and small.key != large.key and large.made
    assert run("after", inputs=[small]).key != run("after", inputs=[large]).key
    assert run("grown", content="one file").made, "what was there before is not there any more"
    assert chain.stages[0] is first and len(chain.stages) == 19


@pytest.mark.parametrize(
    "name", ["openwavlm.json", "labels/meta.json", "codebook/meta.json", "index/shards.json", "run/run.json"]
)
def test_a_stage_whose_results_were_exchanged_or_lost_is_refused(tmp_path: Path, name: str) -> None:
    def make(folder: Path, run: str = "a") -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_sealed(folder / name, {"format_version": 2, "segments": [], "run": run})

    stage = Chain(tmp_path).run("x", {}, [], make)
    assert not Chain(tmp_path).run("x", {}, [], make).made
    make(stage.folder, "b")
    with pytest.raises(ValueError, match=rf"{stage.folder / name} is not the one that this stage wrote: restore"):
        Chain(tmp_path).run("x", {}, [], make)
    (stage.folder / name).unlink()
    with pytest.raises(ValueError, match=rf"{stage.folder / name} is missing: restore {stage.folder} from a copy, or delete it"):
        Chain(tmp_path).run("x", {}, [], make)


def test_a_stage_that_was_ended_goes_on_in_its_folder_and_has_no_mark(tmp_path: Path) -> None:
    chain = Chain(tmp_path)

    def killed(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chain.run("x", {}, [], killed)
    (row,) = graph(_dry(tmp_path))
    assert (row["stage"], row["state"], row["seconds"], row["bytes"]) == ("x", "begun", None, 1)
    stage = chain.run("x", {}, [], lambda folder: {"found": (folder / "half").read_text()})
    assert stage.result == {"found": "x"} and stage.made


def _dry(folder: Path) -> Chain:
    dry = Chain(folder, dry_run=True)
    dry.run("x", {}, [], lambda folder: pytest.fail("a dry run makes nothing"))
    return dry


def test_the_graph_says_what_is_done_begun_to_do_and_stale(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    done = chain.run("shards/train", {}, [], lambda folder: (folder / "a").write_text("x" * 3_000_000) and {})
    stale = chain.run("1/train", {"updates": 4}, [done], lambda folder: {})
    (stale.folder / "inner-0123456789ab").mkdir()
    (tmp_path / "baselines").mkdir()
    dry = Chain(tmp_path, dry_run=True)
    dry.run("shards/train", {}, [], lambda folder: {})
    todo = dry.run("1/train", {"updates": 5}, [done], lambda folder: {})
    rows = graph(dry)
    assert [(row["stage"], row["state"]) for row in rows] == [
        ("shards/train", "done"),
        ("1/train", "to do"),
        ("1/train", "stale"),
    ]
    assert [row["folder"] for row in rows] == [
        f"shards/train-{done.key}",
        f"1/train-{todo.key}",
        f"1/train-{stale.key}",
    ]
    assert rows[0]["bytes"] == 3_000_000 + (done.folder / "stage.json").stat().st_size and rows[1]["bytes"] == 0
    assert rows[0]["seconds"] == done.seconds and rows[1]["seconds"] is rows[2]["seconds"] is None
    lines = graph_lines([rows[0] | {"seconds": 12.3}, *rows[1:]])
    assert lines[0].split() == ["done", "shards/train", "12.3", "s", "3.0", "MB", f"shards/train-{done.key}"]
    assert lines[1].split() == ["to", "do", "1/train", f"1/train-{todo.key}"]
    assert lines[3] == "1 done, 1 to do, 1 stale; nothing was made" and "stale stages" in lines[4]
    assert len(graph_lines(rows[:2])) == 3


# What a user gave


def test_a_folders_fingerprint_is_of_every_files_place_size_and_time_and_a_files_of_its_content(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    for name in ("a/1.flac", "a/2.flac", "b/3.flac"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
        os.utime(folder / name, ns=(0, 10**18))
    known = [fingerprint(folder)]
    assert fingerprint(folder) == known[0] and len(known[0]) == 16

    def changed() -> str:
        known.append(fingerprint(folder))
        return known[-1]

    (folder / "a/2.flac").rename(folder / "b/2.flac")  # the same files in the same order, one in another folder
    changed()
    os.utime(folder / "b/2.flac", ns=(0, 10**18 + 1))
    changed()
    (folder / "b/2.flac").write_text("longer than it was")
    os.utime(folder / "b/2.flac", ns=(0, 10**18 + 1))
    changed()
    (folder / "b/2.flac").rename(folder / "b/2b.flac")
    changed()
    (folder / "a/1.flac").unlink()
    changed()
    assert len(set(known)) == len(known) == 6
    (folder / "empty").mkdir()
    assert fingerprint(folder) == known[-1], "folders alone are nothing"
    table = tmp_path / "table.tsv"
    table.write_text("a")
    of_a = fingerprint(table)
    os.utime(table, ns=(0, 10**17))
    assert fingerprint(table) == of_a, "a file is its content"
    table.write_text("b")
    assert fingerprint(table) != of_a


def test_shard_sets_are_of_the_given_corpora_and_clean_ones_are_the_same_unless_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}
    for name in ("train", "dev", "test", "test_clean"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "audio").write_text(name)
        given[name] = {"input": str(tmp_path / name), "source": name}
    (tmp_path / "phones.tsv").write_text("")
    prepared: list[dict[str, Any]] = []
    monkeypatch.setattr(corpora, "make_shards", lambda **asked: prepared.append(asked) or {"of": asked["input"]})
    monkeypatch.setattr(corpora, "sentences", lambda stats: [])
    config = {"synthesis": None, "corpora": given | {"dev_clean": None}, "alignments": str(tmp_path / "phones.tsv"), "workers": 3}
    chain = Chain(tmp_path / "stages")
    shards, times = corpora.shard_sets(chain, config)
    assert times == tmp_path / "phones.tsv"
    assert {name: Path(stage.result["of"]).name for name, stage in shards.items()} == {
        "train": "train",
        "dev": "dev",
        "test": "test",
        "train_clean": "train",
        "dev_clean": "dev",
        "test_clean": "test_clean",
    }
    assert [asked["workers"] for asked in prepared] == [3] * 4
    assert all(asked["output"] == shards[asked["source"]].folder for asked in prepared)
    # A new recording grows the folder of its own set.
    (tmp_path / "dev" / "more").write_text("x")
    grown, _ = corpora.shard_sets(chain, config)
    assert len(prepared) == 5 and grown["dev"].key != shards["dev"].key and grown["dev"].folder == shards["dev"].folder
    assert grown["train"].key == shards["train"].key and grown["dev_clean"] is grown["dev"]
    assert corpora.shard_sets(chain, config | {"alignments": None})[1] is None
    for changed, key in (
        ({"alignments": "/nowhere"}, "alignments"),
        ({"corpora": given | {"test": {"input": "/nowhere"}}}, r"corpora\.test\.input"),
    ):
        with pytest.raises(ValueError, match=rf"{key} must be a folder or a file, but /nowhere does not exist"):
            corpora.shard_sets(chain, config | changed)


def test_synthetic_sets_are_each_of_their_own_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "make_shards", lambda **asked: {"of": asked | {"output": str(asked["output"])}})
    monkeypatch.setattr(corpora, "sentences", lambda stats: [])
    monkeypatch.setattr(corpora, "synthesize", lambda **asked: {"of": asked | {"output": str(asked["output"])}})
    settings = {"minutes": 2.0, "seed": 4}
    shards, times = corpora.shard_sets(Chain(tmp_path, dry_run=False), {"synthesis": settings, "workers": 2} | {"corpora": {}})
    (corpus,) = tmp_path.glob("corpus-*")
    assert times == corpus / "audio" / "phones.tsv" and len(shards) == 6
    for name, stage in shards.items():
        of = stage.result["of"]
        assert (of["input"], of["layout"], of["workers"]) == (str(corpus / "audio" / f"{name}.tsv"), "manifest", 2)
        assert of["output"] == str(stage.folder) and stage.folder.parent == tmp_path / "shards"
    # A corpus of another version of the synthesis is another corpus.
    monkeypatch.setattr(corpora, "FORMAT_VERSION", -1)
    corpora.shard_sets(Chain(tmp_path), {"synthesis": settings, "workers": 2} | {"corpora": {}})
    assert len(list(tmp_path.glob("corpus-*"))) == 2


# The loop


def stage(
    key: str, result: dict[str, Any] | None = None, *, done: bool = True, seconds: float = 0.0, folder: Path | None = None
) -> Any:
    return SimpleNamespace(
        key=key, folder=folder or Path("/stages") / key, result=result or {}, done=done, seconds=seconds, made=True
    )


NAMES = ("train", "dev", "test", "train_clean", "dev_clean", "test_clean")


def test_every_stage_of_an_iteration_builds_on_what_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = {name: stage(f"shards-{name}") for name in NAMES}
    (tmp_path / "phones.tsv").write_text("p")
    config = {"probe": {"clusters": 3}, "alignments": "given", "seed": 1}
    asked: list[tuple[str, dict, list[str]]] = []

    class Noting(Chain):
        def run(self, name, settings, inputs, make, *, content=None):  # type: ignore[no-untyped-def]
            asked.append((name, settings, [one.key for one in inputs]))
            return stage(name, make(Path("folder")))

    one = iteration.Iteration(Noting(tmp_path), config, shards, tmp_path / "phones.tsv")
    monkeypatch.setattr(one, "_codebook", lambda number, settings, previous: stage(f"book {number} {previous}"))
    monkeypatch.setattr(one, "_labels", lambda number, name, book, settings, previous: stage(f"{name} by {book.key}"))
    monkeypatch.setattr(one, "_train", lambda number, settings, labels, previous: stage(f"trained on {labels['train'].key}"))
    monkeypatch.setattr(one, "_export", lambda trained, folder: {"exported": trained.key})
    monkeypatch.setattr(one, "_masked", lambda trained, labels: ({"masked": trained.key, "on": labels.key}, None))
    monkeypatch.setattr(one, "_probe", lambda trained: {"probed": trained.key})
    found = one.run(2, IterationSettings("layer", 5), "before")  # type: ignore[arg-type]
    book, trained = "book 2 before", "trained on train by book 2 before"
    labelled = [f"{name} by {book}" for name in ("train", "dev", "test")]
    assert asked == [
        ("2/export", {}, [trained]),
        ("2/masked", {"version": masked.VERSION}, [trained, *labelled]),
        (
            "2/probe",
            {"clusters": 3, "version": measure.VERSION, "alignments": fingerprint(tmp_path / "phones.tsv")},
            ["2/export", "shards-train_clean", "shards-dev_clean", "shards-test_clean"],
        ),
    ]
    assert found["masked"].result == {"masked": trained, "on": f"test by {book}"}
    assert found["probe"].result == {"probed": trained} and found["export"].result == {"exported": trained}
    assert {name: found[f"labels-{name}"].key for name in ("train", "dev", "test")} == dict(
        zip(("train", "dev", "test"), labelled, strict=True)
    )
    config["alignments"] = None
    one.run(1, IterationSettings("mfcc", 5), None)
    assert asked[-1][1] == {"clusters": 3, "version": measure.VERSION}, "phones of a synthesis are part of its corpus"
    one.times = None
    assert "probe" not in one.run(1, IterationSettings("mfcc", 5), None) and asked[-1][0] == "1/masked"


def test_a_training_is_given_its_own_labels_and_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = {name: stage(f"shards-{name}") for name in NAMES}
    labels = {name: stage(f"labels-{name}") for name in ("train", "dev", "test")}
    config = {"seed": 9, "overrides": ["a=1"], "workers": 1}
    one = iteration.Iteration(Chain(tmp_path), config, shards, None)
    given: list[list[str]] = []

    def run_until_saved(program: list[str], environment: dict[str, str]) -> int:
        given.append(program)
        folder = Path(next(part for part in program if part.startswith("hydra.run.dir=")).split("=", 1)[1].strip("'\""))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(json.dumps({"complete": True, "updates": 3, "this_launch": {"wall": 2}}))
        (folder / "config.yaml").write_text("x: 1")
        return 0

    monkeypatch.setattr(iteration, "run_until_saved", run_until_saved)
    monkeypatch.setattr(iteration, "forget_teacher", lambda: None)
    monkeypatch.setattr(iteration, "composed", lambda name, overrides: overrides)
    monkeypatch.setattr(iteration, "plain", lambda overrides: overrides)
    monkeypatch.setattr(iteration, "trajectory", lambda overrides: {"decides": overrides})
    monkeypatch.setattr(
        iteration, "RunConfig", SimpleNamespace(of=lambda values: SimpleNamespace(model=SimpleNamespace(layers=12)))
    )
    trained = one._train(2, IterationSettings("layer", 5, updates=70, overrides=("b=2",)), labels)
    expected = ["name=iteration-2", "a=1", "b=2", "seed=9", "optim.updates=70"]
    program = given[0]
    assert [part for part in program if part in expected] == expected and trained.result == {"layers": 12, "wall": 2}
    settled = {part.split("=", 1)[0]: part.split("=", 1)[1] for part in program if "=" in part}
    assert settled["data.validation_share"] == "0"
    assert (
        "shards-train" in settled["data.sources.speech.shards"] and "labels-train/labels" in settled["data.sources.speech.labels"]
    )
    dev = settled["+data.validation.dev"]
    assert "shards-dev" in dev and "labels-dev/labels" in dev and not any("shards-test" in part for part in program)
    mark = json.loads((trained.folder / "stage.json").read_text())
    assert mark["settings"][1:] == [{"decides": expected}, ["labels-train", "labels-dev", "labels-test"]]
    # A warm start is of the model before, and is another training.
    before = {"export": stage("exported")}
    warm = one._train(2, IterationSettings("layer", 5, updates=70, overrides=("b=2",), start="warm"), labels, before)
    assert any(part.startswith("init_from=") and "exported" in part for part in given[1]) and warm.key != trained.key
    assert "init_head=new" in given[1] and not any(part.startswith("init_") for part in program)
    older, newer = (tmp_path / name for name in ("older", "newer"))
    for run, text in ((older, "init_from: x"), (newer, "init_from: x\ninit_head: new")):
        run.mkdir()
        (run / "config.yaml").write_text(text)
    begun = [iteration._new_head(run, IterationSettings("layer", 5, start="warm")) for run in (older, newer, tmp_path)]
    assert begun == [[], ["init_head=new"], ["init_head=new"]], "a run of before the key goes on without it"
    mark = json.loads((warm.folder / "stage.json").read_text())
    assert mark["settings"][1:] == [
        {"decides": expected, "start": "warm"},
        ["labels-train", "labels-dev", "labels-test", "exported"],
    ]


@pytest.mark.parametrize(
    ("status", "complete", "message"), [(3, True, "ended with status 3"), (0, False, "was stopped at update 3")]
)
def test_a_training_that_did_not_end_is_no_stage(
    status: int, complete: bool, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = iteration.Iteration(Chain(tmp_path), {"seed": 9, "overrides": []}, {name: stage(name) for name in NAMES}, None)

    def run_until_saved(program: list[str], environment: dict[str, str]) -> int:
        (folder,) = tmp_path.glob("1/train-*")
        (folder / "run").mkdir()
        (folder / "run" / "summary.json").write_text(json.dumps({"complete": complete, "updates": 3, "this_launch": {}}))
        return status

    monkeypatch.setattr(iteration, "run_until_saved", run_until_saved)
    monkeypatch.setattr(iteration, "forget_teacher", lambda: None)
    monkeypatch.setattr(iteration, "composed", lambda name, overrides: {})
    monkeypatch.setattr(iteration, "plain", lambda values: values)
    monkeypatch.setattr(iteration, "trajectory", lambda values: {})
    with pytest.raises(ValueError, match=message):
        one._train(1, IterationSettings("mfcc", 5), {name: stage(name) for name in ("train", "dev", "test")})
    assert not list(tmp_path.rglob("stage.json"))


@pytest.mark.parametrize(("layer", "teacher", "allowed"), [(0, None, 1), (6, None, 1), (7, None, 0), (3, "t", 1), (4, "t", 0)])
def test_a_layer_is_one_of_the_model_that_is_clustered(
    layer: int, teacher: str | None, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    depths = {1: 6, 2: 12}  # of the first and the second iteration's model
    monkeypatch.setattr(loop, "composed", lambda name, overrides: int(overrides[0].removeprefix("name=iteration-")))
    monkeypatch.setattr(loop, "plain", lambda values: values)
    monkeypatch.setattr(loop, "with_placeholders", lambda values: values)
    monkeypatch.setattr(
        loop, "RunConfig", SimpleNamespace(of=lambda number: SimpleNamespace(model=SimpleNamespace(layers=depths[number])))
    )
    monkeypatch.setattr(
        loop, "open_teacher", lambda path: SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(layers=3)))
    )
    compared: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        loop, "check_same_architecture", lambda run, before, name: compared.append((run.layers, before.layers, name))
    )
    config = {"overrides": [], "seed": 0}
    settings = [IterationSettings("mfcc", 5), IterationSettings("layer", 5, layer=layer, teacher=teacher, start="warm")]
    if allowed:
        loop._check_models(config, settings)
        assert compared == [(12, 6, "the model of iteration 1")]
    else:
        name = "the teacher t" if teacher else "the model before"
        with pytest.raises(ValueError, match=rf"iterations\[1\]\.layer must be one of 0…{3 if teacher else 6} of {name}, but is"):
            loop._check_models(config, settings)


def test_the_last_model_is_published_with_the_figures_of_all_iterations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built: list[tuple[Any, ...]] = []

    class Noting:
        def __init__(self, *given: Any) -> None:
            pass

        def run(self, number: int, settings: Any, previous: Any) -> dict[str, Any]:
            built.append((number, settings, previous and previous["export"].key))
            return {name: stage(f"{number}-{name}") for name in ("codebook", "train", "export", "masked", "probe", "labels-dev")}

    monkeypatch.setattr(loop, "Iteration", Noting)
    monkeypatch.setattr(loop, "shard_sets", lambda chain, config: ({"train": stage("t", done=False)}, None))
    monkeypatch.setattr(loop, "check_with_transformers", lambda folder: {"checked": str(folder)})
    monkeypatch.setattr(loop, "_report", lambda of, folder, export, name: {"of": len(of), "export": str(export), "name": name})
    chain = Chain(tmp_path / "stages")
    exported, result, reported = loop._all_stages(chain, {"name": "n"}, ["one", "two"], tmp_path)
    assert built == [(1, "one", None), (2, "two", "1-export")]
    assert exported.key == "2-export" and result.result == {"checked": "/stages/2-export"}
    assert reported.result == {"of": 2, "export": str(tmp_path / "export"), "name": "n"}
    mark = json.loads((reported.folder / "stage.json").read_text())
    assert mark["settings"][2] == [f"{number}-{name}" for number in (1, 2) for name in ("train", "masked", "probe")]


def test_each_part_of_the_page_is_of_its_own_iteration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []
    monkeypatch.setattr(
        loop,
        "gather",
        lambda run, title, *, probes, masked: SimpleNamespace(
            run=run, title=title, probes=probes, masked=masked, wall_seconds=None
        ),
    )
    monkeypatch.setattr(loop, "write_report", lambda folder, title, parts, commands: written.append((folder, title, parts)))
    iterations = [
        {
            "codebook": stage("b1", {"layer": None}),
            "train": stage("t1", seconds=11.0),
            "masked": stage("m1", {"m": 1}),
            "probe": stage("p1", {"p": 1}),
        },
        {"codebook": stage("b2", {"layer": 0}), "train": stage("t2", seconds=22.0), "masked": stage("m2", {"m": 2})},
    ]
    loop._report(iterations, tmp_path, Path("/export"), "name")
    ((folder, title, parts),) = written
    assert (folder, title) == (tmp_path, "OpenWavLM: name")
    found = [(part.run, part.title, part.probes, part.masked, part.wall_seconds) for part in parts]
    assert found == [
        (Path("/stages/t1/run"), "iteration 1: labels from MFCC", {"p": 1}, {"m": 1}, 11.0),
        (Path("/stages/t2/run"), "iteration 2: labels from layer 0", None, {"m": 2}, 22.0),
    ]


def test_what_is_published_is_of_the_last_stages_and_mended_where_it_is_missing(tmp_path: Path) -> None:
    def stages(number: int) -> tuple[Any, Any]:
        made = []
        for name, files in (("export", ("model.safetensors", "config.json")), ("report", ("report.html", "summary.json"))):
            folder = tmp_path / f"{name}-{number}"
            folder.mkdir()
            for file in (*files, "stage.json"):
                (folder / file).write_text(json.dumps({"of": f"{name} {number} {file}"}))
            made.append(stage(f"{name}-{number}", folder=folder))
        return made[0], made[1]

    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "summary.json").write_text(json.dumps({"kept": 1, "of": "older"}))
    first, second = stages(1), stages(2)

    def published() -> dict[str, str]:
        return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}

    publish(directory, *first)
    assert {name: json.loads(text).get("of") for name, text in published().items()} == {
        "export/model.safetensors": "export 1 model.safetensors",
        "export/config.json": "export 1 config.json",
        "report.html": "report 1 report.html",
        "summary.json": "report 1 summary.json",
        "published.json": None,
    }
    assert json.loads((directory / "summary.json").read_text())["kept"] == 1
    before = published()
    (directory / "report.html").write_text("edited")
    publish(directory, *first)
    assert published() == before | {"report.html": "edited"}, "of the same stages nothing is copied again"
    for missing in ("report.html", "export/config.json"):
        (directory / missing).unlink()
        publish(directory, *first)
        assert published() == before
    publish(directory, second[0], first[1])
    assert json.loads(published()["export/config.json"])["of"] == "export 2 config.json"
    assert json.loads(published()["report.html"])["of"] == "report 1 report.html"
    publish(directory, *second)
    assert json.loads(published()["summary.json"])["of"] == "report 2 summary.json"
