"""Evaluators, under the name that programs know them by: what answers rows in this process.

Torch is imported only when a network is loaded.
"""

from shmzero.mcts.evaluators import HashEvaluator, UniformEvaluator
from shmzero.nets.evaluator import LoadedNetwork, NetEvaluator
from shmzero.runs.network import load_network

__all__ = ["HashEvaluator", "LoadedNetwork", "NetEvaluator", "UniformEvaluator", "load_network"]
