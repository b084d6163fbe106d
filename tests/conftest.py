"""What holds for every test: it leaves nothing behind, see :mod:`tests.leaks`."""

import os
import signal

from blip_node.runtimes.environment import WORKER_ENV

# before anything imports torch, or what diffusers imports
os.environ.update(WORKER_ENV)

# A shell without job control starts what it puts in the background with Ctrl-C ignored, and so
# would all programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.leaks"]
