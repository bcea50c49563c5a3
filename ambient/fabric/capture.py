"""Holding a pod's start until it is captured, where no plugin does: we ask what ambient-cni would ask."""

from __future__ import annotations

import trio

from ambient.engine.rpc import AdminClient
from ambient.errors import AmbientError, Unavailable
from ambient.fabric.podsource import PodOrder
from ambient.redirect.cni_plan import ADD_SECONDS

# An agent that is about to come, or to come back. Picked, not measured.
RETRY_SECONDS = 0.05


async def wait(agent: str, order: PodOrder, netns: int) -> None:
    """Return when the pod is captured, or when control says that it is not to be.

    Args:
        agent: The socket of the node's agent.

    Raises:
        AmbientError: it cannot be captured, or nobody says so in time; it must not run.
    """
    reason = ""
    with trio.move_on_after(ADD_SECONDS):
        while True:
            try:
                await _ask(agent, order, netns)
                return
            except* Unavailable as group:
                reason = str(_first(group))
            await trio.sleep(RETRY_SECONDS)
    raise AmbientError(f"it was not captured within {ADD_SECONDS:g} s: {reason or 'the agent is silent'}")


async def _ask(agent: str, order: PodOrder, netns: int) -> None:
    async with AdminClient.connect(agent) as client:
        asked = {"namespace": order.namespace, "pod": order.name, "timeout": ADD_SECONDS}
        await client.call("cni_add", fds=[netns], **asked)


def _first(exc: BaseException) -> BaseException:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc
