"""The trials of a sweep (`-m`), composed and checked before the first one begins."""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from openwavlm.runs.compose import check_complete
from openwavlm.runtime.resources import explained

Check = Callable[[DictConfig, Path], None]


def is_first_trial() -> bool:
    """Whether this job is the first of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN and HydraConfig.get().job.num == 0


def check_has_trials(words: Sequence[str]) -> None:
    """Checks a command line after which Hydra has run no trial: its own sweeper and launcher ignore an empty sweep silently.

    Raises:
        ValueError: If it is such a sweep.
    """
    asked = any(re.match(r"-(-help|-cfg|-info|-version|-resolve|-hydra-help|[hci])", word) for word in words)
    others = any(
        word.lstrip("+~").startswith(("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper")) for word in words
    )
    if {"-m", "--multirun"} & set(words) and not asked and not others:
        raise ValueError("the sweep has no trial, since a range(…) or glob(…) in it is empty: widen it, or leave -m out")


def check_trials(check: Check) -> None:
    """Composes and checks every trial of this process's sweep; of other sweepers than Hydra's, every named value and ends of ranges.

    Raises:
        ValueError: Of the first trial that lacks a value, shares its folder or is refused by `check`; it names the trial.
    """
    loader, words = GlobalHydra.instance().config_loader(), get_args().overrides
    master = loader.load_configuration(HydraConfig.get().job.config_name, overrides=words, run_mode=RunMode.MULTIRUN)
    sweeper = master.hydra.sweeper
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides([*params, *words])
    basic = sweeper._target_.endswith(BasicSweeper.__name__)
    trials = BasicSweeper.split_arguments(overrides, None)[0] if basic else list(_values(overrides))
    folders: dict[Path, str] = {}
    for number, trial in enumerate(trials):
        config = loader.load_sweep_config(master, list(trial))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        folder = Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)
        with open_dict(config):
            del config["hydra"]
        varied = " ".join(o for o, override in zip(trial, _last(overrides), strict=False) if override.is_sweep_override())
        if folder in folders:
            raise ValueError(
                f"every trial of a sweep needs a folder of its own, but {folders[folder]} and {varied} would both be in {folder}: give "
                "each value once"
            )
        folders[folder] = varied
        try:
            check_complete(config)
            check(config, folder)
        except (ValueError, OSError) as error:
            raise ValueError(f"{explained(error)} (in the trial {varied}; none was begun)") from error


def _last(overrides: list[Override]) -> list[Override]:
    """The overrides of a trial: by key in order of their first occurrence, each with its last value."""
    return list({override.get_key_element(): override for override in overrides}.values())


def _values(overrides: list[Override]) -> Iterator[list[str]]:
    """Trials that contain every value of every choice, and both ends of every range."""
    choices = [[f"{o.get_key_element()}={value}" for value in _named(o)] for o in _last(overrides)]
    longest = max(map(len, choices), default=0)
    if longest <= 1:
        yield from (list(trial) for trial in product(*choices))
        return
    for number in range(longest):
        yield [of_key[min(number, len(of_key) - 1)] for of_key in choices]


def _named(override: Override) -> list[str]:
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    if isinstance(value, RangeSweep) or (override.is_sweep_override() and override.is_discrete_sweep()):
        found = list(override.sweep_string_iterator())
        return [found[0], found[-1]] if isinstance(value, RangeSweep) else found
    return [override.get_value_element_as_str()]
