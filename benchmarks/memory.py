"""`python -m benchmarks.memory` measures sets that stay in their files; see speed/streaming.py."""

from benchmarks.speed.streaming import main

if __name__ == "__main__":
    main()
