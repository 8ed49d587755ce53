"""The engine ``--runner=dask``: bundles of Beam's own runner on the workers of a Dask cluster."""
