"""An agent as a process."""

from kvtier.daemon.agent import Agent
from kvtier.daemon.process import run, tune_interpreter

__all__ = ["Agent", "run", "tune_interpreter"]
