"""A workflow that ends when it is told to, as ours are declared: without a word of versions."""

from __future__ import annotations

from temporalio import workflow

QUEUE = "version-trial"


@workflow.defn
class UntilTold:
    def __init__(self) -> None:
        self._is_told = False

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_condition(lambda: self._is_told)
        return "done"

    @workflow.signal
    def finish(self) -> None:
        self._is_told = True

    @workflow.query
    def has_begun(self) -> bool:
        return True
