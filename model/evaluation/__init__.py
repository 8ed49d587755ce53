"""The bundled model's results: what is asked of it, how it answers, and tables of both."""
