"""`--help` of every command: usage, keys with defaults and comments. Imports no torch, so it answers in half a second."""

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import yaml

from openwavlm.downstream.config import FinetuneConfig
from openwavlm.runs.compose import conf_dir
from openwavlm.training.config import LaunchConfig, RunConfig, default_values, settings_of

TRAINS = ("train", "plan", "tune")  # take every key of train.py
OF_FINETUNING = ("task", "preset")  # groups of conf/finetune.yaml
_CONFIG_OF = {"import-labels", "import-codebook", "make-shards", "fit-kmeans", "assign-labels", "verify", "synthesize"}


def help_text(command: str, purpose: str) -> str:
    """Purpose, usage and keys of a command; the purpose is one line."""
    path = config_file(command)
    assert path is not None
    lines = path.read_text().splitlines()
    usage = [line.removeprefix("# ") for line in lines[: _first_key(lines)] if line.startswith("# ") and "@package" not in line]
    text = [f"openwavlm {command}: {purpose}", "", *(f"  {line}" for line in usage), ""]
    own = [line for line in _body(lines) if line]
    if command not in (*TRAINS, "finetune"):
        return "\n".join([*text, "Keys and defaults (??? must be given):", "", *own, ""])
    text += ["Keys that stand alone, and their defaults (??? must be given):", "", *own]
    if command == "finetune":
        return "\n".join([*text, "", *_choices(OF_FINETUNING), *_keys(FinetuneConfig), ""])
    if command != "train":
        text += ["", "Any key of training too:", "", *_body((conf_dir() / "train.yaml").read_text().splitlines())]
    folders = [folder.name for folder in sorted(conf_dir().iterdir()) if folder.is_dir()]
    choices = _choices([name for name in folders if name not in ("prep", "experiment", *OF_FINETUNING)])
    return "\n".join([*text, "", "Presets:", "", *presets(), "", *choices, *_keys(RunConfig), ""])


def config_file(command: str) -> Path | None:
    """The config of a command; None for one that takes no keys."""
    path = conf_dir() / ("prep" if command in _CONFIG_OF else ".") / f"{command.replace('-', '_')}.yaml"
    return path if path.is_file() else None


def _first_key(lines: list[str]) -> int:
    return next((number for number, line in enumerate(lines) if line and not line.startswith("#")), len(lines))


def _body(lines: list[str]) -> list[str]:
    """The lines of a config with keys and comments, without those for Hydra."""
    kept, skipping = [], False
    for line in lines[_first_key(lines) :]:
        if not line.startswith(" "):
            skipping = line.startswith(("defaults:", "hydra:"))
        if not skipping:
            kept.append(line)
    return kept


def presets() -> list[str]:
    """Every `experiment=` with the comment that opens its file."""
    files = sorted((conf_dir() / "experiment").glob("*.yaml"))
    return [line for path in files for line in _entry(f"experiment={path.stem}", _comment(path))]


def _choices(groups: Iterable[str]) -> list[str]:
    """The files of each group."""
    text = ["Choices (described in the first lines of conf/GROUP/NAME.yaml):", ""]
    files = {group: sorted(file.stem for file in (conf_dir() / group).glob("*.yaml")) for group in groups}
    return [*text, *(f"  {group}={' | '.join(names)}" for group, names in files.items())]


def _keys(kind: type[LaunchConfig]) -> list[str]:
    """The keys of each group, with defaults and comments."""
    text = ["", "Keys by group; defaults are those of the classes, which a preset or a choice may change:"]
    defaults, comments = default_values(kind), _attributes(kind)
    for place, settings in settings_of(kind).items():
        values: Any = defaults
        for part in place.split("."):
            values = values[part]
        text += ["", f"{place}: {comments[place.rpartition('.')[2]]}"]
        of_keys = _attributes(settings)
        for key, value in values.items():
            if f"{place}.{key}" not in settings_of(kind):
                text += _entry(f"{place}.{key}={_shown(value)}", of_keys[key])
    return text


def _shown(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def _entry(key: str, comment: str) -> list[str]:
    width = max(60, min(120, shutil.get_terminal_size((100, 24)).columns))
    filled = textwrap.wrap(comment, width - 6, break_long_words=False, break_on_hyphens=False)
    return [f"  {key}", *(f"      {line}" for line in filled)]


def _comment(path: Path) -> str:
    """The comment that opens a config file, without its command."""
    lines = path.read_text().splitlines()
    found = [line.removeprefix("# ") for line in lines[: _first_key(lines)] if line.startswith("# ")]
    return " ".join(line for line in found if "@package" not in line and not line.startswith("python "))


def _attributes(settings: type) -> dict[str, str]:
    """Comment of each field, from the class's docstring."""
    assert is_dataclass(settings)
    section = re.search(r"^(?:Attributes|Args):\n(.*?)(?=^\S|\Z)", inspect.getdoc(settings) or "", re.DOTALL | re.MULTILINE)
    assert section is not None
    entries = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", section.group(1), re.DOTALL | re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
