"""`--help` of every command is the one that was agreed on: a changed key or comment shows in the golden file."""

import os
import shutil

import pytest

from golden.make_help import FILE, all_help


def test_the_help_of_every_command_is_that_of_the_golden_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "get_terminal_size", lambda fallback: os.terminal_size(fallback))
    assert all_help() == FILE.read_text(), "if the change is meant: python tests/golden/make_help.py"
