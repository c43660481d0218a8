"""The pages tell the truth: README's commands run as written, other commands compose, every file and test that is named exists."""

import re
import shlex
from pathlib import Path

import pytest
import soundfile
import torch

from openwavlm.downstream.export import export_task
from openwavlm.downstream.load import load_task_run
from openwavlm.downstream.vocabulary import Vocabulary
from openwavlm.runs.compose import composed, plain
from openwavlm.training.config import RunConfig, with_placeholders
from programs import REPOSITORY, run_program
from runs import compose
from synthetic import make_corpus, write_speech_like
from tasks import FINETUNE, begin, make_encoder, make_task_shards

PAGES = sorted(
    path for pattern in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md") for path in REPOSITORY.glob(pattern)
)
RECORDINGS, NOISE, FILE = "/path/to/recordings", "/path/to/noise", "/path/to/recordings/SPEAKER/FILE.flac"
EXPORT, SPOKEN = "runs/asr/export", "speech.flac"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The lines of all shell blocks as arguments, `python` taken away; anything but the project's programs fails."""
    found = []
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                assert words[0] in ("python", "openwavlm"), f"{line!r} is no program of ours: give its block no language"
                found.append(words[1:] if words[0] == "python" else words)
    return found


def section(page: str, title: str) -> str:
    text = (REPOSITORY / page).read_text()
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def train_arguments(words: list[str]) -> list[str] | None:
    """The arguments of a training command, by either of its names; None for another command."""
    if words[0] == "train.py":
        return words[1:]
    return words[2:] if words[:2] == ["openwavlm", "train"] else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Recordings of ten speakers and a noise bank."""
    folder = tmp_path_factory.mktemp("readme")
    make_corpus(folder / "recordings", speakers=10, utterances=3, seconds=(2.0, 6.0))
    for number in range(4):
        write_speech_like(folder / "noise" / f"{number}.wav", 3.0, seed=number, speaker="noise")
    return folder


@pytest.mark.filterwarnings("ignore")  # transformers' own, on loading
def test_the_commands_for_own_recordings_run_as_written(folder, monkeypatch, capsys):
    text = section("README.md", "Your own recordings")
    ran = []
    for words in commands(text + section("docs/first-run.md", "Noise in the mixtures")):
        words = [word.replace(RECORDINGS, str(folder / "recordings")).replace(NOISE, str(folder / "noise")) for word in words]
        if words[1] == "train":
            words += ["optim.updates=3", "optim.warmup_updates=1"]
        outcome = run_program(folder, *words)
        assert outcome.status == 0, (words, outcome.stderr)
        ran.append(words[1])
    assert [ran.count(name) for name in ("make-shards", "train", "export")] == [2, 2, 2], ran
    assert {"fit-kmeans", "assign-labels"} <= set(ran)

    (snippet,) = blocks(text, "python")
    assert FILE in snippet
    monkeypatch.chdir(folder)
    audio = folder / "recordings" / "spk00" / "utt000.flac"
    exec(compile(snippet.replace(FILE, str(audio)), "README.md", "exec"), {})
    assert capsys.readouterr().out.count(", 192)") == 4, "nano has three layers of width 192, and the encoder's input"


@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_the_five_lines_from_python_give_the_transcript_of_a_fine_tuned_model(tmp_path, capsys):
    pytest.importorskip("transformers")
    (snippet,) = blocks(section("README.md", "From Python"), "python")
    assert len([line for line in snippet.splitlines() if line]) == 5 and EXPORT in snippet and SPOKEN in snippet
    shards, run = make_task_shards(tmp_path), tmp_path / "run"
    # A head that has hardly moved from its random weights, so that its transcripts are not empty.
    short = ["optim.updates=2", "optim.warmup_updates=1", "optim.lr=1e-6"]
    often = ["callbacks.checkpoint_every=2", "callbacks.validate_every=2"]
    begin([*FINETUNE, *short, *often, f"init={make_encoder(tmp_path / 'encoder')}", f"data.sources.speech.shards={shards}"], run)
    audio = tmp_path / "audio" / "s1-2.flac"
    snippet = snippet.replace(EXPORT, str(export_task(run))).replace(SPOKEN, str(audio))
    exec(compile(snippet, "README.md", "exec"), {})
    ours, (waveform, _) = load_task_run(run, "best"), soundfile.read(audio, dtype="float32")
    with torch.no_grad():
        logits = ours.model(torch.from_numpy(waveform)[None], torch.tensor([len(waveform)])).logits[0]
    text = Vocabulary(ours.symbols, phones=False).greedy(logits.argmax(-1).tolist())
    printed = re.sub(
        r"<s>|</s>|<unk>", "", capsys.readouterr().out
    )  # Transformers prints them, a trained head does not predict them
    assert text and printed.split() == text.split()


def test_every_train_command_of_the_pages_composes():
    found = 0
    for page in PAGES:
        for words in commands(page.read_text()):
            arguments = train_arguments(words)
            if arguments is None:
                continue
            sweeps = "-m" in arguments
            overrides = [word.split(",")[0] if sweeps else word for word in arguments if word != "-m"]
            RunConfig.of(plain(compose(overrides)))
            found += 1
    assert found >= 6


def test_every_iterate_command_of_the_pages_composes_and_so_do_its_trainings():
    found = 0
    for page in PAGES:
        for words in commands(page.read_text()):
            if words[:2] == ["openwavlm", "iterate"]:
                name, given = (words[3], words[4:]) if words[2] == "--config-name" else ("iterate", words[2:])
                config = plain(composed(name, given))
                updates = [f"optim.updates={config['iterations'][-1].get('updates', 500)}"]
                RunConfig.of(with_placeholders(plain(compose(["name=x", *config["overrides"], *updates]))))
                found += 1
    assert found >= 3


def test_every_file_that_a_page_names_exists():
    named = 0
    for page in PAGES:
        text = page.read_text()
        links = {page.parent / link.split("#")[0] for link in re.findall(r"\]\((?!https?:)([^)#]+)", text)}
        paths = {
            REPOSITORY / path
            for path in re.findall(r"`(?:python )?((?:tests|benchmarks|data_prep|studies|src|conf)/[\w./-]+)", text)
        }
        for path in links | paths:
            assert path.exists(), f"{page.relative_to(REPOSITORY)} names {path}, which does not exist"
        tests = set(re.findall(r"`(test_\w+)`", text))
        known = {
            name
            for file in (REPOSITORY / "tests").glob("*/test_*.py")
            for name in re.findall(r"def (test_\w+)", file.read_text())
        }
        assert tests <= known, f"{page.relative_to(REPOSITORY)} names tests that do not exist: {tests - known}"
        named += len(links | paths | tests)
    assert named >= 20


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().split()) <= 700
