"""Wrapper of every command: a Hydra app that answers bad input with one sentence and a non-zero exit status."""

import functools
import logging
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from openwavlm.cli.multirun import Check, check_has_trials, check_trials, is_first_trial
from openwavlm.cli.terminal import log_handler
from openwavlm.runs.compose import check_complete, check_removes_nothing, conf_dir, paths, plain, sentence_of, sentence_of_value
from openwavlm.runs.names import as_text
from openwavlm.runtime.interrupt import INTERRUPTED, ending_at_interrupt, ending_with_reader, say_interrupted
from openwavlm.runtime.processes import killed_worker
from openwavlm.runtime.resources import explained, raise_descriptor_limit

_FLAG = re.compile(r"-m|--multirun|--[a-z-]+=.*", re.DOTALL)  # a flag that is one word
_LOST_RANK = re.compile(r"Connection (closed|reset) by peer|gloo.*(Read|Write) error|NCCL.*remote process exited", re.DOTALL)


def refusal_of(error: BaseException) -> str | None:
    """The sentence for an error that a user or the machine can cause; None for a bug."""
    if isinstance(error, OmegaConfBaseException):
        return sentence_of_value(error)
    if isinstance(error, ValueError | OSError | MemoryError):
        return explained(error)
    if isinstance(error, RuntimeError) and _LOST_RANK.search(str(error)):
        return (
            "the connection to another training process is lost: read its last message (logs/rank-….log in the run), then give the same "
            "command again"
        )
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported for it
        return "the GPU's memory is full: lower batch.micro_seconds, or find a size that fits with openwavlm tune"
    return killed_worker(error)


def arguments_of(function: Callable[..., object], config: DictConfig) -> dict[str, Any]:
    """The values of a config for the parameters of a function, with those that are annotated as texts or paths as such."""
    values, hints = plain(config), typing.get_type_hints(function)
    return {name: _converted(values[name], hint) for name, hint in hints.items() if name in values}


def _converted(value: Any, hint: Any) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value in (None, "") and types.NoneType in kinds:
        return None
    if Sequence[Path] in kinds:
        return paths(value)
    return Path(str(value)) if Path in kinds else str(value) if hint is str else value


def command(
    config_name: str, check: Check = lambda config, folder: None
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Turns `function(config)` into a command-line program configured by `conf/<config_name>.yaml`.

    An error that a user or the machine can cause becomes one sentence on standard error and exit status 2, as does a command line that
    Hydra refuses; `debug=true` keeps the traceback. Ctrl-C becomes one line and status 130.

    Args:
        config_name: Name of the config.
        check: Refuses a trial of a sweep by a `ValueError`, given its config and folder; called for all trials before the first.
    """

    def wrap(function: Callable[[DictConfig], None]) -> Callable[[], None]:
        began: list[bool] = []

        @functools.wraps(function)
        def guarded(config: DictConfig) -> None:
            began.append(True)
            _call(function, config, check)

        program = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(guarded)

        @functools.wraps(function)
        def main() -> None:
            began.clear()
            _run(program, began, config_name)

        return main

    return wrap


def _call(function: Callable[[DictConfig], None], config: DictConfig, check: Check) -> None:
    """Calls a command with its composed config; in a sweep all trials are checked before the first."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[log_handler()], force=True)
    try:
        check_complete(config)
        if is_first_trial():
            check_trials(check)
        with ending_with_reader():
            function(config)
    except Exception as error:
        sentence = refusal_of(error)
        if sentence is None or config.get("debug"):
            raise
        sys.stderr.write(f"error: {sentence}\n")
        raise SystemExit(2) from error


def _run(program: Callable[[], None], began: list[bool], config_name: str) -> None:
    """Runs a Hydra program, which fills `began` once a config is composed."""
    raise_descriptor_limit()
    # Otherwise Hydra prints its own message, of several lines and with its search path, and ends with status 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # argparse takes no overrides after a flag that follows others: `train.py name=x -m seed=1,2` would be refused.
    sys.argv[1:] = map(as_text, sorted(sys.argv[1:], key=lambda word: not _FLAG.fullmatch(word)))
    with ending_at_interrupt():
        try:
            check_removes_nothing(sys.argv[1:])
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
            print(f"error: {sentence_of(error, config_name)}", file=sys.stderr, flush=True)
            raise SystemExit(2) from error
