"""What ``pipelines.evaluate`` makes of a run over the evaluation sets of a corpus."""
