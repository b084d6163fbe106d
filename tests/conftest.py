"""What holds for every test: it leaves nothing behind, see :mod:`tests.leaks`."""

pytest_plugins = ["tests.leaks"]
