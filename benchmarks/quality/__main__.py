"""`python -m benchmarks.quality` measures the experiments; see experiments.py."""

import sys

from benchmarks.quality.experiments import main
from meca.errors import MecaError

if __name__ == "__main__":
    try:
        main()
    except MecaError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
