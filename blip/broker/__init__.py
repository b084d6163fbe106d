"""The broker: it knows every node and decides where each attempt runs.

Everything here but the server is pure: no sockets, no clock, no randomness, no logging. Time
comes in as ``now`` (seconds, monotonic), commands go out as messages to send. A test enforces it.
"""
