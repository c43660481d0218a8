"""Makes the modules beside this file (`synthetic`) importable from every test folder; one thread, as `make test` has."""

import os
import sys
from pathlib import Path

# Sums of another number of threads round differently, and threads that wait for one another are slower. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))
