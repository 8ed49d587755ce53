"""Manifests: the rows that ask for extractions and the tables that come back."""
