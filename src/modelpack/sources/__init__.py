"""Built-in data sources, found by name through entry points."""
