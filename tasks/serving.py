"""What `tasks.mlflow.serving` was called: versions of the registry that were registered then are loaded under this name."""

from tasks.mlflow.serving import _load_pyfunc  # noqa: F401 - MLflow asks for it
