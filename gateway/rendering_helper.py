"""Renders large replies of the service in a process of its own.

`python -m gateway.rendering_helper` is that process.
"""

import pickle
from collections.abc import Sequence
from functools import cache

from google.rpc.status_pb2 import Status

from gateway.endpoints.route_responses import Rendered, RouteResponses
from gateway.http.problems import StatusConverter
from gateway.transcoding.routes import SERVICES, Route, routes_of
from runtime.helper import Helper, serve

MODULE = "gateway.rendering_helper"


class Renderer:
    """Renders replies by a helper. It is called in threads."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper

    def __call__(self, route: str, encoded: bytes) -> Rendered:
        """Render the reply of a route. Raises HelperFailed."""
        answer = self._helper.run(pickle.dumps((route, encoded)))
        rendered: Rendered = pickle.loads(answer)  # noqa: S301  # by our own program
        return rendered


def status_converter(routes: Sequence[Route]) -> StatusConverter:
    return StatusConverter(frozenset(route.body for route in routes if route.body not in {"", "*"}))


@cache
def _responses() -> dict[str, RouteResponses]:
    routes = routes_of(*SERVICES)
    special = {Status.DESCRIPTOR.full_name: status_converter(routes).render}
    return {
        route.name: RouteResponses(route, None, special, lambda *_: (None, {})) for route in routes
    }


def render(request: bytes) -> bytes:
    route, encoded = pickle.loads(request)  # noqa: S301  # by our own program
    return pickle.dumps(_responses()[route].render(encoded))


if __name__ == "__main__":
    serve(render)
