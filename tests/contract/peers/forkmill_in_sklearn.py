"""What scikit-learn runs by joblib runs on the backend "forkmill"."""

from __future__ import annotations

import joblib.parallel

from forkmill.integrations import register_joblib

register_joblib()
joblib.parallel.DEFAULT_BACKEND = joblib.parallel.DEFAULT_PROCESS_BACKEND = "forkmill"
