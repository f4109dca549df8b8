"""joblib's default backend is "forkmill"."""

from __future__ import annotations

import joblib.parallel

from forkmill.integrations import register_joblib

register_joblib()
joblib.parallel.DEFAULT_BACKEND = joblib.parallel.DEFAULT_PROCESS_BACKEND = "forkmill"
