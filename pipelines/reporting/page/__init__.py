"""The files of the page: its template, style and script."""
