"""Tab completion: `eval "$(openwavlm --completion bash)"` in a shell, or in its start-up file."""

import typing
from pathlib import Path

import yaml

from openwavlm.cli.help import OF_FINETUNING, TRAINS, config_file
from openwavlm.downstream.config import FinetuneConfig
from openwavlm.runs.compose import conf_dir
from openwavlm.training.config import LaunchConfig, RunConfig, all_keys, settings_of

# Bash breaks words at "=": a completion of `key=val` is the value alone. Without one bash completes file names.
BASH = """_openwavlm() {
    local line="${COMP_LINE:0:COMP_POINT}"
    mapfile -t COMPREPLY < <(openwavlm --complete "$line" 2>/dev/null)
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] || compopt +o nospace
}
complete -o nospace -o default -F _openwavlm openwavlm
"""


def candidates(line: str, commands: list[str]) -> list[str]:
    """Words for the place of the last one of a command line, which includes the program and ends at the cursor."""
    words = line.split(" ")[1:]
    if len(words) < 2:
        return [name for name in commands if name.startswith(words[0] if words else "")]
    command, word = words[0], words[-1]
    file = config_file(command) if command in commands else None
    if file is None:
        return []
    key, equals, begun = word.partition("=")
    if equals:
        return [value for value in _values(command, key) if value.startswith(begun)]
    return [f"{name}=" for name in _keys(command, file) if name.startswith(word)]


def _keys(command: str, file: Path) -> list[str]:
    own = [name for name in yaml.safe_load(file.read_text()) if name not in ("defaults", "hydra")]
    if command == "finetune":
        return sorted({*own, *OF_FINETUNING, *all_keys(FinetuneConfig)})
    if command not in TRAINS:
        return own
    groups = [folder.name for folder in conf_dir().iterdir() if folder.is_dir() and folder.name not in ("prep", *OF_FINETUNING)]
    return sorted({*own, *groups, *all_keys()})


def _values(command: str, key: str) -> list[str]:
    """Options of a group, or the words that a key may have."""
    folder, tuned = conf_dir() / key, command == "finetune"
    if "." not in key and folder.is_dir() and (key in OF_FINETUNING) == tuned:
        return sorted(path.stem for path in folder.glob("*.yaml"))
    group, _, name = key.rpartition(".")
    kind: type[LaunchConfig] = FinetuneConfig if tuned else RunConfig
    settings = settings_of(kind).get(group, kind)
    hint = typing.get_type_hints(settings).get(name)
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return ["true", "false"] if hint is bool else []
