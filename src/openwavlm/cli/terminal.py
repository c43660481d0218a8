"""Coloured log lines and the config of a run as a tree, on a terminal; elsewhere plain text."""

import logging
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.tree import Tree

_FOLDED = ("hydra", "debug")


def log_handler() -> logging.Handler:
    """Handler of standard error: colours on a terminal, the bare message elsewhere."""
    if not sys.stderr.isatty():
        return logging.StreamHandler(sys.stderr)
    console = Console(stderr=True, soft_wrap=True)
    return RichHandler(console=console, show_time=False, show_level=False, show_path=False)


def config_tree(values: Mapping[str, Any], title: str) -> Tree:
    """A config of plain values as a tree with this title, a branch for each group."""
    tree = Tree(f"[bold]{title}[/bold]")
    _grow(tree, values)
    return tree


def _grow(tree: Tree, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if key in _FOLDED:
            continue
        if isinstance(value, Mapping) and value:
            _grow(tree.add(f"[cyan]{key}[/cyan]"), value)
        else:
            tree.add(f"{key}: [green]{escape(str(value))}[/green]")


def show_config(values: Mapping[str, Any], title: str) -> None:
    """Prints the tree, if standard error is a terminal."""
    console = Console(stderr=True)
    if console.is_terminal:
        console.print(config_tree(values, title))
