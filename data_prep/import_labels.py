"""Makes a labelling of fairseq's label files: `python data_prep/import_labels.py --help`."""

from openwavlm.cli.main import run

if __name__ == "__main__":
    run("import-labels")
