"""dill and its multiprocess: they fork workers and carry closures.

dill asks for a temporary directory when it is imported.  We put nothing there, so a host that has
none (a read-only container, a file size limit of 0) must not keep us from starting.
"""

from __future__ import annotations

import tempfile
from typing import Any

try:
    tempfile.gettempdir()
except FileNotFoundError:
    tempfile.tempdir = "/"
    import dill  # type: ignore[import-untyped]

    tempfile.tempdir = None
else:
    import dill

import multiprocess

dumps: Any = dill.dumps
loads: Any = dill.loads
fork_context: Any = multiprocess.get_context("fork")
