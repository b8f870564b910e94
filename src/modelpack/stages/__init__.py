"""The built-in stages: plugins found by name, using nothing that a third-party stage could not."""
