"""blip: idle GPU machines as one endpoint."""

__version__ = "0.1.0"
