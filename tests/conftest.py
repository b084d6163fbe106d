"""What holds for every test: it leaves nothing behind, see :mod:`tests.leaks`."""

import os

from blip_node.runtimes.environment import WORKER_ENV

# before anything imports torch, or what diffusers imports
os.environ.update(WORKER_ENV)

pytest_plugins = ["tests.leaks"]
