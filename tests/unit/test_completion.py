"""Tab completion: commands, keys, options of groups and words of a key; in bash itself where there is one."""

import shutil
import subprocess
import sys

import pytest

from openwavlm.cli.completion import BASH, candidates
from openwavlm.cli.main import COMMANDS


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("openwavlm pl", ["plan"]),
        ("openwavlm make-shards spea", ["speaker_folder="]),
        ("openwavlm train optim.warm", ["optim.warmup_updates="]),
        ("openwavlm train model.head.final", ["model.head.final_dim="]),
        ("openwavlm plan name=x experi", ["experiment="]),
        ("openwavlm train experiment=wavlm_n", ["wavlm_nano"]),
        ("openwavlm train optim.schedule=", ["linear", "wsd", "tri_stage"]),
        ("openwavlm finetune trained.enc", ["trained.encoder="]),
        ("openwavlm finetune trained.encoder=f", ["frozen", "full"]),
        ("openwavlm finetune preset=h", ["hundred_hours"]),
        ("openwavlm finetune task.name=s", ["sid"]),
        ("openwavlm train precision=b", ["bf16-mixed"]),
        ("openwavlm train model.pre_norm=t", ["true"]),
        ("openwavlm upgrade sha", []),
        ("openwavlm nonsense x", []),
        ("openwavlm train data.noise=", []),
    ],
)
def test_what_is_offered(line, offered):
    assert candidates(line, list(COMMANDS)) == offered


def test_every_command_is_offered_first():
    assert candidates("openwavlm ", list(COMMANDS)) == list(COMMANDS)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_takes_the_offers():
    line = "openwavlm train optim.sched"
    script = (
        f'openwavlm() {{ "{sys.executable}" -m openwavlm "$@"; }}\n{BASH}\ncompopt() {{ :; }}\n'
        f'COMP_LINE="{line}" COMP_POINT={len(line)}\n_openwavlm\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "optim.schedule=\n"
