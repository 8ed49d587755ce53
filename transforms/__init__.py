"""Beam transforms that join manifests to the model: read, separate, score, write."""
