"""Spans of calls to the service."""

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from gateway.http.context import RequestContext

Call = TypeVar("Call", bound=Callable[..., Coroutine[Any, Any, Any]])


def traced(call: Call) -> Call:
    """Give the calls of a client a span, if their requests are sampled.

    It is the current span while the call lasts, so that `metadata_of` passes it on.
    """

    @wraps(call)
    async def with_span(
        client: object, method: str, message: Message, context: RequestContext, **options: float
    ) -> object:
        if context.span is None:
            return await call(client, method, message, context, **options)
        with context.span.child(method.removeprefix("/"), kind="client"):
            return await call(client, method, message, context, **options)

    return cast("Call", with_span)
