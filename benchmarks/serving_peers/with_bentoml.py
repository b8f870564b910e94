"""BentoML as its documentation says: a service with one worker, an API over arrays."""

from __future__ import annotations

from typing import Annotated

import bentoml
import numpy as np  # noqa: TC002 - BentoML reads the annotations
from bentoml.validators import DType
from model import Model


@bentoml.service(workers=1)
class Rows:
    """Rows in, one prediction for each out."""

    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api
    def predict(self, instances: Annotated[np.ndarray, DType("float32")]) -> np.ndarray:
        """Answer rows with one prediction each."""
        return self.model.predict(instances)
