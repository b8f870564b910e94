"""FastAPI as its documentation says: a pydantic model of the body, an asynchronous function."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from model import Model
from pydantic import BaseModel

app = FastAPI()
model = Model()


class Rows(BaseModel):
    """What clients send."""

    instances: list[list[float]]


@app.post("/predict")
async def predict(rows: Rows) -> dict[str, Any]:
    """Answer rows with one prediction each."""
    return {"predictions": model.predict(model.rows(rows.instances)).tolist()}


@app.post("/raw")
async def raw(request: Request) -> Response:
    """Answer float32 values with float32 values."""
    return Response(model.predict(model.raw(await request.body())).tobytes(), media_type="application/octet-stream")
