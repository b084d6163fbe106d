"""How speech is written down: loading, Whisper's windows, CTC models, the times of words.

:mod:`blip_node.runtimes.hearing.engine` puts them together; ``segments`` and ``warp`` are pure.
"""
