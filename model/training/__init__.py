"""The training recipe: a small CLAP where none is given, then the separator."""
