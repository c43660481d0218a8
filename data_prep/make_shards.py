"""Prepares a corpus as shards with an index: `python data_prep/make_shards.py --help`."""

from openwavlm.cli.main import run

if __name__ == "__main__":
    run("make-shards")
