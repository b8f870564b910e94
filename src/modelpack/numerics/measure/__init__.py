"""Measuring: how good a model still is, how fast it runs, and how sure the figures are."""
