"""How MLflow loads a model of meca: by name of this module and from safetensors, so nothing is unpickled.

The program that loads it needs meca installed; `mlflow.pyfunc.load_model` finds `_load_pyfunc` here.
"""

from pathlib import Path
from typing import Any

__all__ = ["Classifier"]


class Classifier:
    """A classifier as MLflow wants it: arrays in, arrays out."""

    def __init__(self, folder: Path) -> None:
        """Load the model of a stage (`model.safetensors`, `model.json`)."""
        from meca.models import load_model

        self.model = load_model(folder).eval()

    def predict(self, images: Any, params: dict[str, Any] | None = None) -> Any:
        """Return the logits, float32 [b classes], of float32 images [b c h w] in [0, 1]."""
        import numpy as np
        import torch

        with torch.inference_mode():
            return self.model(torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))).numpy()


def _load_pyfunc(path: str) -> Classifier:
    """Return what `mlflow.pyfunc.load_model` wraps."""
    return Classifier(Path(path))
