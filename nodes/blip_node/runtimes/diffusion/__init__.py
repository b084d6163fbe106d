"""How images are painted: loading, schedulers, steps, pictures, prompts.

:mod:`blip_node.runtimes.diffusion.engine` puts them together; all but that and ``loading`` can be
imported without diffusers.
"""
