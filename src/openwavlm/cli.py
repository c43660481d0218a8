"""The shape that every command shares: a Hydra app that answers bad input with one sentence and a non-zero exit."""

import difflib
import functools
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from openwavlm.interrupt import INTERRUPTED, ending_at_interrupt, say_interrupted
from openwavlm.processes import killed_worker
from openwavlm.resources import explained, raise_descriptor_limit
from openwavlm.sweeps import check_has_trials, check_trials, is_first_trial
from openwavlm.text_keys import as_text, run_folder


def conf_dir() -> Path:
    """Folder of the configuration: `conf/` of a checkout, or the copy inside an installed wheel.

    Raises:
        ValueError: If neither exists.
    """
    here = Path(__file__).resolve().parent
    for candidate in (here / "conf", here.parents[1] / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise ValueError(f"no configuration found beside {here}: reinstall the package or run from a checkout")


def swept(overrides: list[str]) -> str:
    """Name of a sweep's trial: what the sweep varies, by the command line or by a sweeper's own settings."""
    given = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(given)
    last = {override.get_key_element(): override for override in parsed}  # of a key that is given twice the last holds
    fixed = {key for key, override in last.items() if not override.is_sweep_override()}
    varied = "__".join(o.replace("'", "") for o in overrides if o.split("=", 1)[0] not in fixed)
    # No "=" or ",": the folder's name must be usable as a value on the next command line.
    return re.sub(r"[^\w.+-]", "-", varied) or "trial"


OmegaConf.register_new_resolver("swept", swept, replace=True)
OmegaConf.register_new_resolver("run_folder", lambda name: "." if name in (".", None) else str(run_folder(name)), replace=True)


def quoted(value: Path | str) -> str:
    """A value as an override has it whatever its characters: Hydra's grammar knows spaces, brackets, `=`, `,`, `#` and few letters."""
    return QuotedString(str(value), Quote.single).with_quotes()


def paths(value: Any) -> list[Path]:
    """The folders that a key names, one (`key=A`) or several (`key=[A,B]`)."""
    return [Path(str(one)) for one in (value if isinstance(value, list | ListConfig) else [value])]


def check_complete(config: DictConfig) -> None:
    """Checks that every mandatory value is given.

    Raises:
        ValueError: If one is missing.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"the config needs a value for {', '.join(missing)}, as in {missing[0]}=...")


def _names(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key, value in node.items_ex(resolve=False):
        name = f"{prefix}{key!s}"
        yield name
        if isinstance(value, DictConfig):
            yield from _names(value, f"{name}.")


# What Hydra's parser says of a word that it does not understand.
_GRAMMAR = re.compile(r"no viable alternative|mismatched input|extraneous input|token recognition|LexerNoViable")
_QUOTES = (
    """a value with =, commas, brackets, spaces or other letters needs quotes of its own, as in 'key="a=b"' or 'key=["a=b"]'"""
)


def _of_value(error: OmegaConfBaseException) -> str:
    """What is wrong with a value; of a resolver of ours its own sentence."""
    text = str(error).split("full_key:")[0].removeprefix("ValueError raised while resolving interpolation: ")
    return " ".join(text.split())


def _sentence(error: Exception, config_name: str) -> str:
    """What is wrong with the command line, in one sentence; for a misspelt key with the key that comes nearest."""
    if isinstance(error, OSError) and not isinstance(error, HydraException):  # a missing option is both to Hydra
        return explained(error)
    if isinstance(error, OmegaConfBaseException):
        return _of_value(error)
    if not isinstance(error, HydraException | ValueError):  # OmegaConf asserts that what lies above a key is a group
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
    near = difflib.get_close_matches(key, list(_names(_compose(config_name, []))), 1)
    return f"{key} is not a known key; " + (f"did you mean {near[0]}?" if near else "--help lists all keys")


_FLAG = re.compile(r"-m|--multirun|--[a-z-]+=.*", re.DOTALL)  # a flag that is one word
_composing = threading.Lock()  # Hydra's state is one for the whole process


def _compose(config_name: str, overrides: list[str]) -> DictConfig:
    with _composing:
        state = GlobalHydra.instance()
        outer, state.hydra = state.hydra, None  # that of the command from within which this may be called
        try:
            with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
                return hydra.compose(config_name, [as_text(word) for word in overrides])
        finally:
            GlobalHydra.instance().hydra = outer  # another object by now: Hydra restores a copy of the state


def composed(config_name: str, overrides: list[str]) -> DictConfig:
    """The config that a command line of these overrides composes; from within a command too.

    Raises:
        ValueError: If an override is refused, in the words of that command.
    """
    try:
        return _compose(config_name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_sentence(error, config_name)) from error


_LOST_RANK = re.compile(r"Connection (closed|reset) by peer|gloo.*(Read|Write) error|NCCL.*remote process exited", re.DOTALL)


def refusal_of(error: BaseException) -> str | None:
    """The sentence for an error that a user or the machine can cause; None for a bug."""
    if isinstance(error, OmegaConfBaseException):
        return _of_value(error)
    if isinstance(error, ValueError | OSError | MemoryError):
        return explained(error)
    if isinstance(error, RuntimeError) and _LOST_RANK.search(str(error)):
        return (
            "the connection to another training process is lost: its own message says why it ended (logs/rank-….log in the run); the "
            "same command goes on"
        )
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported for it
        return "the GPU's memory is full: lower batch.micro_seconds, or let openwavlm tune find what fits"
    return killed_worker(error)


def command(
    config_name: str, check: Callable[[DictConfig, Path], None] = lambda config, folder: None
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Turns `function(config)` into a command-line program configured by `conf/<config_name>.yaml`.

    What a user or the machine can cause becomes one sentence on standard error and exit status 2, as does a command line that Hydra
    refuses; `debug=true` keeps the traceback. Ctrl-C becomes one line and status 130.

    Args:
        config_name: Which config.
        check: Refuses a trial of a sweep by a `ValueError`, given its config and folder; called for all trials before the first.
    """

    def check_trial(config: DictConfig, folder: Path) -> None:
        check_complete(config)
        check(config, folder)

    began: list[bool] = []

    def wrap(function: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(function)
        def guarded(config: DictConfig) -> None:
            began.append(True)
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
            try:
                check_complete(config)
                if is_first_trial():
                    check_trials(check_trial)
                function(config)
            except Exception as error:
                sentence = refusal_of(error)
                if sentence is None or config.get("debug"):
                    raise
                sys.stderr.write(f"error: {sentence}\n")
                raise SystemExit(2) from error

        program = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(guarded)

        @functools.wraps(function)
        def main() -> None:
            raise_descriptor_limit()
            # Otherwise Hydra prints its own message, of several lines and with its search path, and ends with status 1.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            # argparse takes no overrides after a flag that follows others: `train.py name=x -m seed=1,2` would be refused.
            sys.argv[1:] = map(as_text, sorted(sys.argv[1:], key=lambda word: not _FLAG.fullmatch(word)))
            began.clear()
            with ending_at_interrupt():
                try:
                    program()
                    if not began:
                        check_has_trials(sys.argv[1:])
                except KeyboardInterrupt:
                    say_interrupted()
                    raise SystemExit(INTERRUPTED) from None
                except Exception as error:
                    refused = isinstance(error, HydraException | OmegaConfBaseException | ValueError | OSError)
                    if "debug=true" in sys.argv or (began and not refused):
                        raise
                    print(f"error: {_sentence(error, config_name)}", file=sys.stderr, flush=True)
                    raise SystemExit(2) from error

        return main

    return wrap
