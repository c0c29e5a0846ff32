"""The tools that programs call: each call goes to the node's seam, and its outcome back to the worker that asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from meshnode.errors import Closed, MeshError, MeshTimeout, to_fault
from meshnode.values import pack, unpack
from meshnode.workers.hosts import Worker
from meshnode.workers.jobs import Job
from meshnode.workers.protocol import MAX_TOOL_DEPTH, Run, Task, ToolAnswer, ToolCall

#: (name, arguments, the task whose program calls) -> the tool's value; the node routes it to the session's owner
OnToolCall: TypeAlias = Callable[[str, dict[str, Any], Task], Awaitable[Any]]


class ToolCalls:
    """Calls under way. Each ends with its run at the latest; `depth` bounds how far tools lead to tools."""

    def __init__(self, on_tool_call: OnToolCall) -> None:
        self._on_tool_call = on_tool_call
        self._under_way: dict[int, set[asyncio.Task[None]]] = {}  # by the job whose program calls

    def start(self, worker: Worker, job: Job | None, message: ToolCall) -> None:
        """A program calls a tool."""
        if job is None or not isinstance(job.message, Run) or job.future.done():
            worker.send(ToolAnswer(message.call, b"", Closed.code, "the run that called this tool is over"))
            return
        task = job.message.task
        call = asyncio.get_running_loop().create_task(self._answer(worker, task, message))
        self._under_way.setdefault(job.number, set()).add(call)
        call.add_done_callback(lambda _: self._over(job.number, call))

    def cancel(self, job: int) -> None:
        """The program that called is over."""
        for call in self._under_way.pop(job, ()):
            call.cancel()

    def close(self) -> None:
        """Cancel all."""
        for job in list(self._under_way):
            self.cancel(job)

    def _over(self, job: int, call: asyncio.Task[None]) -> None:
        calls = self._under_way.get(job)
        if calls is not None:
            calls.discard(call)
            if not calls:
                del self._under_way[job]

    async def _answer(self, worker: Worker, task: Task, message: ToolCall) -> None:
        try:
            if task.depth >= MAX_TOOL_DEPTH:
                raise MeshError(f"tool {message.name!r}: tools lead to tools at most {MAX_TOOL_DEPTH} deep")
            async with asyncio.timeout(task.timeout_s):  # the run's own end comes first, unless its worker is lost
                value = await self._on_tool_call(message.name, unpack(message.args), task)
            answer = ToolAnswer(message.call, pack(value, name=f"{message.name}'s value"))
        except TimeoutError as error:
            text = str(error) or f"tool {message.name!r} did not answer within the time of the run that called it"
            answer = ToolAnswer(message.call, b"", MeshTimeout.code, text)
        except Exception as error:  # whatever goes wrong, the program that called is told
            fault = to_fault(error)
            answer = ToolAnswer(message.call, b"", fault.code, fault.message)
        worker.send(answer)
