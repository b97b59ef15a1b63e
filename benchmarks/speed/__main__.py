"""`python -m benchmarks.speed` measures how fast the work is; see run.py."""

from benchmarks.speed.run import main

if __name__ == "__main__":
    main()
