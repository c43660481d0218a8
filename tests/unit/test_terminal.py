"""Colours and the config tree are for terminals; elsewhere there is plain text and no tree."""

import io
import logging

from rich.console import Console

from openwavlm.cli import terminal


def test_the_tree_has_every_value_as_it_is_and_a_branch_for_each_group():
    values = {"name": "x", "data": {"sources": {"a": {"shards": "[b]/c"}}}, "optim": {"betas": [0.9, 0.98]}, "debug": False}
    console = Console(file=io.StringIO(), width=100)
    console.print(terminal.config_tree(values, "runs/x"))
    lines = [line.strip("│├└─ ") for line in console.file.getvalue().splitlines()]
    assert lines == ["runs/x", "name: x", "data", "sources", "a", "shards: [b]/c", "optim", "betas: [0.9, 0.98]"]


def test_where_nobody_looks_log_lines_are_the_messages_and_no_tree_is_printed(monkeypatch, capsys):
    handler = terminal.log_handler()
    handler.handle(logging.makeLogRecord({"msg": "step [1] of 2"}))
    terminal.show_config({"name": "x"}, "runs/x")
    assert capsys.readouterr().err == "step [1] of 2\n"


def test_on_a_terminal_log_lines_have_colours_and_the_same_words(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    handler = terminal.log_handler()
    handler.handle(logging.makeLogRecord({"msg": "loss 3.25 in runs/x", "levelno": logging.INFO, "levelname": "INFO"}))
    text = screen.getvalue()
    assert "\x1b[" in text and "loss" in text and "3.25" in text
