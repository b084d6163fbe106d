"""Audio files: decoding them to samples, and encoding samples as them."""
