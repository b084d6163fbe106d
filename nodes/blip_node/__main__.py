"""``python -m blip_node --config-json FILE``: the agent's process.

Nothing is imported at module level: the forkserver imports this module again in every worker.
"""

if __name__ == "__main__":
    import sys

    from blip_node.main import main

    sys.exit(main(sys.argv[1:]))
