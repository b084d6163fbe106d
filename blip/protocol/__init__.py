"""The protocol, sans-IO: bytes and time come in as arguments, messages and commands come out.

Nothing here imports zmq, asyncio, time or random; a test enforces it.
"""
