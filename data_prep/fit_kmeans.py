"""Fits a k-means codebook: `python data_prep/fit_kmeans.py --help`."""

from openwavlm.cli.main import run

if __name__ == "__main__":
    run("fit-kmeans")
