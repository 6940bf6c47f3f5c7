"""The cost of exact Jacobian descent, compared with other ways to compute the same gradient."""

import os

# Before torch is imported: its profiler, which measures memory, would print a line at every start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
