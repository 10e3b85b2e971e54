"""Keeps NumPy's BLAS to one thread while tests run, and in the processes that they start.

The products of the references are small. After each of them an idle worker of OpenBLAS spins for 2^28 cycles, on a
processor that cattn's threads and other tests could use.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy is imported, which no plugin does
