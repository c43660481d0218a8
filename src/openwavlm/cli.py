"""The shape that every command shares: a Hydra app that answers bad input with one sentence and a non-zero exit."""

import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf


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
    """Name of a sweep's trial: the overrides that the command line does not hold as they are, because they were expanded."""
    return ",".join(o for o in overrides if o not in sys.argv).replace("/", "_") or "trial"


OmegaConf.register_new_resolver("swept", swept, replace=True)


def command(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Turns `function(config)` into a command-line program configured by `conf/<config_name>.yaml`.

    `ValueError` and `OSError` (what a user can cause) become one sentence on standard error and exit status 2; `debug=true` keeps
    the traceback.
    """

    def wrap(function: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(function)
        def guarded(config: DictConfig) -> None:
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
            try:
                function(config)
            except (ValueError, OSError) as error:
                if config.get("debug"):
                    raise
                print(f"error: {error}", file=sys.stderr, flush=True)
                raise SystemExit(2) from error
            except KeyboardInterrupt:
                print("interrupted: run the same command again to go on", file=sys.stderr, flush=True)
                raise SystemExit(130) from None

        return hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(guarded)

    return wrap
