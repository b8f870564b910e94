"""What a report is drawn with: scales that hold their figures, markup that cannot be broken into."""

from __future__ import annotations

import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelpack.report.markup import element, join
from modelpack.report.scales import scale
from pages import Reader


@settings(max_examples=400)
@given(st.lists(st.floats(-1e29, 1e29), min_size=1, max_size=6), st.booleans(), st.booleans())
@example([1.0, 5e-324], False, True)
def test_scales_hold_their_figures_and_order_them(values, exact, log):
    axis = scale(values, 0, 100, exact=exact, log=log)
    assert all(math.isfinite(tick) for tick in axis.ticks)
    assert list(axis.ticks) == sorted(set(axis.ticks))
    unseen = 1e-9 * max(map(abs, values))
    assert axis.low <= min(values) + unseen
    assert axis.high >= max(values) - unseen
    places = [axis(value) for value in sorted(values)]
    assert places == sorted(places)
    assert 0 <= places[0] <= places[-1] <= 100


@given(st.text())
def test_markup_gives_back_the_text_that_went_in(text):
    written = element("p", text, class_=text)
    reader = Reader(written)
    assert reader.tags == {"p"}
    plain = join(text)
    assert join(plain) == plain, "what is markup already is not escaped again"
    assert "<" not in plain
