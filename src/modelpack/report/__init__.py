"""The page of a report: plain data in, one HTML file out that needs no network and no script.

``report.json`` is the only input. Names and texts in it are untrusted: `markup` escapes whatever is not markup already.
"""
