"""The organization of a request, and the URLs of what it owns."""

import re
from collections.abc import Callable
from operator import attrgetter
from typing import Any
from urllib.parse import quote

from appointments.v1 import rules_pb2
from appointments.v1.appointment_pb2 import Appointment
from google.protobuf.descriptor import Descriptor

DEFAULT_ORGANIZATION = "default"
MAX_ORGANIZATION = (
    Appointment.DESCRIPTOR.fields_by_name["organization_id"]
    .GetOptions()
    .Extensions[rules_pb2.rules]
    .max_length
)

_UNRESERVED = re.compile("[A-Za-z0-9_.~-]*")


def organization_reader(input_type: Descriptor) -> Callable[[Any], str | None]:
    """Return a function that reads the organization of a request, for logs and connections."""
    fields = input_type.fields_by_name
    for name in ("appointment", "webhook"):
        if name in fields:
            read = attrgetter(name)
            return lambda request: _organization_of(read(request))
    if "requests" in fields:
        return lambda batch: (
            _organization_of(batch.requests[0].appointment) if batch.requests else None
        )
    return _organization_of


def _organization_of(message: Any) -> str:  # noqa: ANN401  any message with an organization
    organization: str = message.organization_id
    return organization[:MAX_ORGANIZATION] or DEFAULT_ORGANIZATION


def resource_location(path: str, id: str, organization_id: str) -> str:
    """Return the URL of an object of an organization, relative to the host."""
    # Dots are unreserved, but clients resolve the segments `.` and `..` (RFC 3986, section 5.2.4).
    identifier = _encoded(id)
    if identifier in {".", ".."}:
        identifier = identifier.replace(".", "%2E")
    location = f"{path}/{identifier}"
    if organization_id in {"", DEFAULT_ORGANIZATION}:
        return location
    return f"{location}?organizationId={_encoded(organization_id)}"


def _encoded(text: str) -> str:
    return text if _UNRESERVED.fullmatch(text) else quote(text, safe="")
