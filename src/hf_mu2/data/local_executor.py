"""datatrove's local executor without its running commentary. Importing this needs datatrove."""

from typing import Any

from datatrove.executor import LocalPipelineExecutor
from loguru import logger


class QuietLocalExecutor(LocalPipelineExecutor):
    """What goes wrong is raised; the rest of the log is for clusters. A module of its own, so that workers find it."""

    def run(self) -> Any:
        logger.disable("datatrove")
        return super().run()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        logger.disable("datatrove")  # in the worker, which is a process of its own
        return super()._run_for_rank(rank, local_rank, node_rank)
