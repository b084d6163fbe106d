"""The only code that touches zmq."""
