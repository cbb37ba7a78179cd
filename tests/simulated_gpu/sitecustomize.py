"""Python imports this at its start where it finds this folder: ``PYTHONPATH=tests/simulated_gpu pytest -m gpu``."""

import simulated_cuda

simulated_cuda.install()
