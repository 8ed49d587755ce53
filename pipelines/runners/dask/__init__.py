"""Runs jobs on a Dask cluster (``--runner=dask``): bundles of Beam's runner are Dask tasks."""
