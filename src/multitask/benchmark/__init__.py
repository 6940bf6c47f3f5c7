"""How long exact Jacobian descent takes here, beside other ways to do the same."""

import os

# Before torch is imported: its profiler, which measures memory, would tell of every start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
