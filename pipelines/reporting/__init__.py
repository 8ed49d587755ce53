"""Metrics of runs as tables, plots and a page to look at and listen to."""
