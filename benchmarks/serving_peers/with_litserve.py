"""LitServe as its documentation says: one API, one worker on the processor."""

from __future__ import annotations

import sys
from typing import Any

import litserve
from model import Model


class Rows(litserve.LitAPI):
    """Rows in, one prediction for each out."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Open the model in the worker."""
        self.model = Model()

    def decode_request(self, request):
        """Read the rows; LitServe takes an annotation for the type of the body."""
        return self.model.rows(request["instances"])

    def predict(self, x: Any) -> Any:
        """Run the model."""
        return self.model.predict(x)

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Write the predictions."""
        return {"predictions": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Rows(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error", access_log=False)
