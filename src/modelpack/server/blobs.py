"""One tensor as bytes, for models with one input or one output: raw little-endian values, and npy files."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import numpy as np

from .exchange import BYTES, Refused
from .faults import Invalid
from .signature import quote
from .tensors import from_array, from_bytes
from .texts import MEDIA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .signature import Signature, Tensor

RAW, NPY = BYTES, "application/x-npy"


def from_raw(body: bytes, shape: str, signature: Signature) -> dict[str, np.ndarray]:
    """Read little-endian values whose shape is a text such as `1,784`.

    Raises:
        Invalid: When shape and size do not fit, or the model has several inputs.
    """
    tensor = _single(signature, RAW)
    if not re.fullmatch(r"\s*\d{1,12}(\s*,\s*\d{1,12}){0,31}\s*", shape):
        raise Invalid(f"expected the header X-Shape with the sizes of {tensor.wanted}, such as 1,784; got {shape!r}")
    sizes = tuple(int(part) for part in shape.split(","))
    return {tensor.name: from_bytes(memoryview(body), np.dtype(tensor.dtype), sizes, tensor.name)}


def from_npy(body: bytes, signature: Signature) -> dict[str, np.ndarray]:
    """Read an npy file; its header is checked against the body's size, and nothing is ever unpickled.

    Raises:
        Invalid: When it is none, or the model has several inputs.
    """
    tensor = _single(signature, NPY)
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        parse = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = parse(stream, max_header_size=4096)
    except Exception as error:  # noqa: BLE001 - numpy evaluates the header with Python's parser, which raises anything
        reason = (str(error).splitlines() or [""])[0][:200]
        raise Invalid(f"the body is not an npy file of version 1.0 or 2.0: {reason}") from None
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise Invalid(f"input {tensor.name!r}: expected {tensor.dtype}, got an npy file of {dtype.name}")
    values = memoryview(body)[stream.tell() :]
    array = from_bytes(values, dtype, shape[::-1] if fortran else shape, tensor.name)
    return {tensor.name: from_array(array.T if fortran else array, tensor)}


def _single(signature: Signature, media: str) -> Tensor:
    if signature.only is None:
        raise Invalid(f"{media} carries one tensor, and this model has the inputs {quote(signature.inputs)}")
    if signature.only.textual:
        raise Invalid(f"{media} carries numbers: this model takes {' or '.join(MEDIA[signature.only.dtype])}")
    return signature.only


def to_raw(outputs: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    """Write the only output as little-endian bytes, its shape and element type in headers."""
    array = _lone(outputs)
    headers = {"x-shape": ",".join(map(str, array.shape)), "x-dtype": array.dtype.name}
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(), headers


def to_npy(outputs: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    """Write the only output as an npy file."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, _lone(outputs), version=(1, 0), allow_pickle=False)
    return stream.getvalue(), {}


def _lone(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    if len(outputs) != 1:
        raise Refused(406, f"this model has the outputs {quote(outputs)}; only JSON carries several")
    return next(iter(outputs.values()))
