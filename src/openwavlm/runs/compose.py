"""Composed configs: the folder `conf/`, quoting of overrides, and one sentence for each error of Hydra."""

import re
import sys
import threading
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from openwavlm.runs.names import as_text, run_folder
from openwavlm.runtime.resources import explained
from openwavlm.training.config import default_values
from openwavlm.training.key_names import nearest_key


def conf_dir() -> Path:
    """Folder of the configuration: `conf/` of a checkout, or the copy inside an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parents[1] / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise ValueError(f"no configuration found beside {package}: reinstall the package or run from a checkout")


def swept(overrides: list[str]) -> str:
    """Name of a sweep's trial: its values of the keys that the sweep varies."""
    given = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(given)
    last = {override.get_key_element(): override for override in parsed}  # the last one of a key that is given twice
    fixed = {key for key, override in last.items() if not override.is_sweep_override()}
    varied = "__".join(o.replace("'", "") for o in overrides if o.split("=", 1)[0] not in fixed)
    # No "=" or ",": the folder's name must be usable as a value on the next command line.
    return re.sub(r"[^\w.+-]", "-", varied) or "trial"


OmegaConf.register_new_resolver("swept", swept, replace=True)
# Below the groups of conf/train.yaml: a file there states only what differs from the defaults of the classes.
ConfigStore.instance().store(name="defaults_of_classes", node=default_values())
# Hydra in every command: no log files, no folder of its own, no change of the working directory.
ConfigStore.instance().store(
    name="quiet",
    package="_global_",
    node={
        "defaults": ["_self_", {"override /hydra/job_logging": "none"}, {"override /hydra/hydra_logging": "none"}],
        "hydra": {"output_subdir": None, "job": {"chdir": False}, "run": {"dir": "."}},
    },
)
OmegaConf.register_new_resolver("run_folder", lambda name: "." if name in (".", None) else str(run_folder(name)), replace=True)


def quoted(value: Path | str) -> str:
    """A value quoted for an override: to Hydra spaces, brackets, `=`, `,`, `#` and many letters are grammar."""
    return QuotedString(str(value), Quote.single).with_quotes()


def paths(value: Any) -> list[Path]:
    """The folders of a key, one (`key=A`) or several (`key=[A,B]`)."""
    return [Path(str(one)) for one in (value if isinstance(value, list | ListConfig) else [value])]


def check_complete(config: DictConfig) -> None:
    """Raises a `ValueError` if a mandatory value is missing."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"the config needs a value for {', '.join(missing)}, as in {missing[0]}=...")


def check_removes_nothing(overrides: Iterable[str]) -> None:
    """Refuses to remove a group or a key that stands alone: a removed group would have the defaults of its class.

    Raises:
        ValueError: With the first such key.
    """
    removed = [word[1:].partition("=")[0] for word in overrides if re.match(r"~\w+(=|$)", word)]
    if removed:
        raise ValueError(f"the config lacks {removed[0]}: leave out the override that deletes it")


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed config as plain values, interpolations resolved; a `ValueError` if a mandatory value is missing."""
    check_complete(config)
    return typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def _names(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key, value in node.items_ex(resolve=False):
        name = f"{prefix}{key!s}"
        yield name
        if isinstance(value, DictConfig):
            yield from _names(value, f"{name}.")


# Messages of Hydra's parser on a word outside of its grammar.
_GRAMMAR = re.compile(r"no viable alternative|mismatched input|extraneous input|token recognition|LexerNoViable")
_QUOTES = (
    """a value with =, commas, brackets, spaces or other letters needs quotes of its own, as in 'key="a=b"' or 'key=["a=b"]'"""
)


def sentence_of_value(error: OmegaConfBaseException) -> str:
    """The error of a value in one sentence; for our resolvers, their own message."""
    text = str(error).split("full_key:")[0].removeprefix("ValueError raised while resolving interpolation: ")
    return " ".join(text.split())


def sentence_of(error: Exception, config_name: str) -> str:
    """The error of a command line in one sentence, with the nearest key for a misspelt one."""
    if isinstance(error, OSError) and not isinstance(error, HydraException):  # Hydra's error of a missing option is both
        return explained(error)
    if isinstance(error, OmegaConfBaseException):
        return sentence_of_value(error)
    if not isinstance(error, HydraException | ValueError):  # OmegaConf asserts that a key is in a group
        found = " ".join(str(error).split("full_key:")[0].split()) or type(error).__name__
        return (
            f"the overrides cannot be composed ({found}): one of them names a key below another one that is null or has a value; give "
            "that one in a config file"
        )
    text = str(error).split("Config search path:")[0].split("See https://hydra.cc")[0]
    absent = re.search(r"Could not find '(.+)/(.*)'\s+Available options in '.+':\s+(.*)", text, re.DOTALL)
    if absent:
        return f"{absent.group(1)} has no option {absent.group(2)!r}: choose one of {', '.join(absent.group(3).split())}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if not unknown:
        sentence = " ".join(text.split())
        return f"{sentence}: {_QUOTES}" if _GRAMMAR.match(sentence) else sentence
    key = unknown.group(1)
    near = nearest_key(key, _names(_compose(config_name, [])))
    return f"{key} is not a known key; " + (f"did you mean {near}?" if near else "--help lists all keys")


_composing = threading.Lock()  # Hydra's state is one for the whole process


def _compose(config_name: str, overrides: list[str]) -> DictConfig:
    with _composing:
        state = GlobalHydra.instance()
        outer, state.hydra = state.hydra, None  # state of the command that may call this
        try:
            with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
                return hydra.compose(config_name, [as_text(word) for word in overrides])
        finally:
            GlobalHydra.instance().hydra = outer  # another object by now: Hydra restores a copy of the state


def composed(config_name: str, overrides: list[str]) -> DictConfig:
    """Composes a config, from within a command too; a `ValueError` if an override is refused."""
    check_removes_nothing(overrides)
    try:
        return _compose(config_name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(sentence_of(error, config_name)) from error
