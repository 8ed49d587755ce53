"""Weight files: reading them safely, their layouts, converting them, and fetching them."""
