"""The one lock under which other packages' classes, hooks and modules are changed, for a moment or for good."""

from __future__ import annotations

import threading

#: Reentrant: building a model inside of another patch is one thread's own business. Nothing may be imported while it
#: is held that a repair of :mod:`qsam2_ao.compat` waits for.
PATCHING = threading.RLock()
