"""`python -m benchmarks.reliability` tries the hostile corpus and the fuzz targets; see corpus.py."""

import sys

from benchmarks.reliability.corpus import main

if __name__ == "__main__":
    sys.exit(main())
