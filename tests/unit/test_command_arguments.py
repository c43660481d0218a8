"""Keys of the command line against the parameters of the functions that they are for."""

import ast
import importlib
import typing
from pathlib import Path

import pytest
import yaml

import openwavlm.cli
from openwavlm.runs.compose import conf_dir

COMMANDS = [
    path
    for path in sorted(Path(openwavlm.cli.__path__[0]).glob("*.py"))
    if "arguments_of(" in path.read_text() and path.stem != "app"
]
FOR_ALL = {"debug"}  # read by the wrapper of every command


def test_nine_commands_pass_their_keys_on_by_name():
    assert len(COMMANDS) == 9


@pytest.mark.parametrize("path", COMMANDS, ids=[path.stem for path in COMMANDS])
def test_every_key_of_a_command_reaches_a_parameter_or_is_read_by_the_command(path: Path):
    tree = ast.parse(path.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = next(node.args[0].id for node in calls if getattr(node.func, "id", "") == "arguments_of")
    name = next(node.args[0].value for node in calls if getattr(node.func, "id", "") == "command")
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "config"}
    function = getattr(importlib.import_module(f"openwavlm.cli.{path.stem}"), called)
    keys = yaml.safe_load((conf_dir() / f"{name}.yaml").read_text()).keys() - {"defaults", "hydra"}
    parameters = typing.get_type_hints(function).keys() - {"return"}
    assert not keys - parameters - read - FOR_ALL
