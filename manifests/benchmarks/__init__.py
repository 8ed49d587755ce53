"""Builders of manifests from the lists of published benchmarks, and importers of other lists."""
