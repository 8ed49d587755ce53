"""Command-line jobs: flags become a frozen configuration, the configuration becomes a pipeline."""
