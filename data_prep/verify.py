"""Compares shards (and labels) with checksums, counts and a recomputed sample: `python data_prep/verify.py --help`."""

from openwavlm.cli.main import run

if __name__ == "__main__":
    run("verify")
