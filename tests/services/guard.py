"""Run beside a test session: when it is gone, however it went, no service and no file of it stays behind.

python -m tests.services.guard FOLDER        with standard input held by the session
"""

import shutil
import sys
from pathlib import Path

from infra.local import services

if __name__ == "__main__":
    sys.stdin.buffer.read()
    services.stop(Path(sys.argv[1]), tell=lambda line: None)
    shutil.rmtree(sys.argv[1], ignore_errors=True)
