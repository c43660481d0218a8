"""Fits a k-means codebook: `python data_prep/fit_kmeans.py --help`."""

from openwavlm.runtime.interrupt import end_at_interrupt

if __name__ == "__main__":
    end_at_interrupt()  # before the seconds that the imports take

from openwavlm.cli.fit_kmeans import main

if __name__ == "__main__":
    main()
