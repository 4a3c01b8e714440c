"""Call the ports that docker-compose.yml publishes, and print the results as JSON.

It runs in the image, in the network of the engine.
"""

import json
from http.client import HTTPConnection
from typing import Any

import click
import grpc
from appointments.v1.appointment_service_pb2 import ListAppointmentsRequest
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub


def stored() -> list[str]:
    """Return the ids of all appointments, by gRPC."""
    with grpc.insecure_channel("127.0.0.1:50051") as channel:
        request = ListAppointmentsRequest(organization_id="default")
        found = AppointmentServiceStub(channel).ListAppointments(request, timeout=10)
        return [each.id for each in found.appointments]


def send(method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
    """Return status and body of the gateway's response."""
    connection = HTTPConnection("127.0.0.1", 3000, timeout=30)
    content = {"Content-Type": "application/json"} if body else {}
    connection.request(method, path, json.dumps(body) if body else None, {**content, **headers})
    response = connection.getresponse()
    return response.status, json.load(response)


def upsert(identifier: str, day: int, **headers: str) -> tuple[int, Any]:
    times = {"start": f"2030-01-0{day} 10:00", "end": f"2030-01-0{day} 11:00"}
    appointment = {"id": identifier, "resourceId": "chair 1", **times}
    return send("POST", "/api/appointments", appointment, **headers)


before = stored()
statuses = [upsert("a", 1)[0], upsert("b", 1)[0]]
accepted, operation = upsert("c", 2, Prefer="respond-async")
_, ended = send("GET", f"/api/operations/{operation['name'].rpartition('/')[2]}?wait=10s")
results = {
    "stored before": before,
    "upsert, conflict, asynchronous": [*statuses, accepted],
    "asynchronous outcome": ended["metadata"].get("outcome"),
}
click.echo(json.dumps(results))
