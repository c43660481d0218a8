"""Makes a codebook of a published one: `python data_prep/import_codebook.py --help`."""

from openwavlm.cli.main import run

if __name__ == "__main__":
    run("import-codebook")
