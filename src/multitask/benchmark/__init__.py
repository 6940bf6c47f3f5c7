"""The cost of exact Jacobian descent, compared with other ways to compute the same."""

import os

# Before torch is imported: its profiler, which measures memory, would tell of every start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
