"""One thread and no GPU, unless the caller says otherwise: set before torch is imported, which reads them then."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MECA_THREADS", "1")
os.environ.setdefault("MECA_DEVICE", "cpu")
