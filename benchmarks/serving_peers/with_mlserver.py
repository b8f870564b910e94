"""MLServer as its documentation says: a runtime of one's own, run in the server's process."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from model import Model


class Rows(MLModel):
    """Rows in, one prediction for each out."""

    async def load(self) -> bool:
        """Open the model."""
        self.model = Model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run the model on the first input."""
        rows = NumpyCodec.decode_input(payload.inputs[0])
        output = NumpyCodec.encode_output("output", self.model.predict(rows))
        return InferenceResponse(model_name=self.name, outputs=[output])
