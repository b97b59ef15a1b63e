"""One thread and no GPU, unless the caller says otherwise: set before torch is imported, which reads them then."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MECA_THREADS", "1")
os.environ.setdefault("MECA_DEVICE", "cpu")

# A job in the background of a shell inherits "ignore" for SIGINT, and hands it on to every program that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
