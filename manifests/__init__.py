"""What to separate, as rows: schemas, codecs, benchmarks and examples; no torch, no Beam."""
