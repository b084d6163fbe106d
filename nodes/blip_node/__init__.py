"""The node agent: one a machine, it advertises capacity and runs models."""
