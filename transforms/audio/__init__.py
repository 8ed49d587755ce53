"""Audio files → arrays, without Beam: what a file holds, which reader takes it, where a part is."""
