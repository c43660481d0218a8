"""The list of small wrong changes fits the source that it changes (`make test-mutants` tries them)."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from mutants.run import REPOSITORY, Mutant, mutants


def test_at_least_sixty_changes_are_listed_and_none_twice():
    listed = mutants()
    assert len(listed) >= 60
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in listed}) == len(listed)


@pytest.mark.parametrize("group", sorted({mutant.group for mutant in mutants()}))
def test_every_change_fits_its_file_and_names_tests_that_exist(group):
    for mutant in (mutant for mutant in mutants() if mutant.group == group):
        changed = mutant.apply((REPOSITORY / mutant.file).read_text())
        if mutant.file.endswith(".py"):
            compile(changed, mutant.file, "exec")
        for test in mutant.tests:
            assert (REPOSITORY / test.split("::")[0]).is_file(), mutant


def test_a_change_whose_text_is_not_there_once_is_refused():
    mutant = Mutant("none", "step", "a.py", "x", "y", ())
    assert mutant.apply("a x b") == "a y b"
    for text in ("a b", "x x"):
        with pytest.raises(ValueError, match="must occur once"):
            mutant.apply(text)
