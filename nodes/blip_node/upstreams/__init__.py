"""Engines that run already beside the node and speak OpenAI's API: found, watched, spoken to.

:mod:`~blip_node.upstreams.listing` and :mod:`~blip_node.upstreams.watch` decide what the node
offers of an engine, :mod:`~blip_node.upstreams.poller` asks it. The other modules are what
:mod:`blip_node.runtimes.openai` speaks to it in. Only the poller and the runtime do I/O.
"""
