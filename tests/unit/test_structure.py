"""The shape of the source, by `benchmarks/structure.py`: few rooms and arrows, short functions, a short way to the loss."""

from pathlib import Path

import pytest
from structure import measure

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def figures() -> dict:
    return measure(ROOT)


def test_the_rooms_can_be_drawn_from_memory(figures):
    assert figures["rooms"] <= 19 and figures["arrows"] <= 90 and figures["circles"] == []


def test_a_step_passes_few_lines_from_the_launch_to_the_loss(figures):
    chain = figures["train.py to the loss, files"]
    assert chain[0] == "train.py" and chain[-1] == "src/openwavlm/model/losses.py" and len(chain) >= 6
    assert figures["train.py to the loss, lines"] <= 1200


def test_configs_state_only_what_differs(figures):
    assert figures["lines of YAML"] <= 700


def test_the_rooms_are_those_of_the_picture_in_contributing():
    picture = (ROOT / "CONTRIBUTING.md").read_text().split("```")[1]
    drawn = {line.split()[1] for line in picture.splitlines() if line[:3].strip().isdigit()}
    assert drawn == {path.name for path in (ROOT / "src" / "openwavlm").iterdir() if path.is_dir() and path.name[0] != "_"}
