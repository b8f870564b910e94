"""Data frames, JSON lines and tables: what is written is read back, and anything else is refused."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelpack.server.faults import Invalid
from modelpack.server.frames import from_records, from_split
from modelpack.server.rows import from_lines, to_lines
from modelpack.server.signature import Signature, Tensor
from modelpack.server.table import from_csv, to_csv

dtypes = st.sampled_from(["float32", "float64", "int64", "uint8", "bool"])


@given(data=st.data(), dtype=dtypes, shape=arrays.array_shapes(min_dims=1, max_dims=3, max_side=4))
def test_frames_lines_and_tables_are_read_back_exactly(data, dtype, shape):
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.startswith("float") else None
    array = data.draw(arrays.arrays(dtype, shape, elements=elements))
    free = Tensor("x", ("n", *shape[1:]), dtype)
    signature = Signature({"x": free}, {"x": free})
    names = [f"c{at}" for at in range(array[0].size)]
    flat = array.reshape(shape[0], -1).tolist()
    records = [dict(zip(names, row, strict=True)) for row in flat]
    for feed in (
        from_split({"columns": names, "data": flat}, signature, "split"),
        from_split({"columns": ["x"], "data": [[row] for row in array.tolist()]}, signature, "split"),
        from_records(records, signature, "records"),
        from_records([{"x": row} for row in array.tolist()], signature, "records"),
        from_lines(to_lines({"x": array}, shape[0]), signature),
        from_csv(to_csv({"x": array}, shape[0]), signature),
    ):
        assert feed["x"].dtype == array.dtype
        np.testing.assert_array_equal(feed["x"], array)


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)
TWO = {"a": Tensor("a", ("n",), "float32"), "b": Tensor("b", ("n", 2), "int64")}
frames = st.fixed_dictionaries(
    {},
    optional={
        "columns": st.sampled_from([["a", "b"], ["x", "y"]]) | values,
        "data": st.lists(st.lists(values, max_size=3), max_size=3) | values,
        "index": values,
    },
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    split=frames | values,
    records=st.lists(st.dictionaries(st.sampled_from(["a", "b"]), values)) | values,
    count=st.integers(1, 2),
)
def test_any_frame_is_read_or_refused(split, records, count):
    signature = Signature(dict(list(TWO.items())[:count]), TWO)
    for read, content in ((from_split, split), (from_records, records)):
        try:
            feed = read(content, signature, "frame")
        except Invalid:
            event("refused")
        else:
            assert list(feed) == list(signature.inputs)
