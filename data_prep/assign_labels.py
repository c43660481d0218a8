"""Labels a shard set with a codebook, or with several in one pass: `python data_prep/assign_labels.py --help`."""

from openwavlm.cli.main import run

if __name__ == "__main__":
    run("assign-labels")
