"""`python -m benchmarks.quality` measures the experiments; see experiments.py."""

from benchmarks.quality.experiments import main

if __name__ == "__main__":
    main()
