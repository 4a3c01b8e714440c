"""The door of REST, through a gateway."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import orjson
from icalendar import Calendar

from tests.api import at
from tests.torture.doors import Interrupted, held_until, refused
from tests.torture.record import UNKNOWN, Item, Json
from tests.writes.values import Write

_OPTIONAL_TIMES = ("created_at", "updated_at", "hold_until")
# How the parameters of reads are called in a query.
_NAMES = {
    "as_of_revision": "asOfRevision",
    "min_revision": "minRevision",
    "resource_id": "resourceId",
    "include_cancelled": "includeCancelled",
    "page_size": "pageSize",
    "page_token": "pageToken",
    "changes": "changes",
    "order_by": "orderBy",
    "after_revision": "afterRevision",
    "match": "match",
    "from": "from",
    "to": "to",
    "filter": "filter",
}


class RestDoor:
    """Calls a gateway. See `Door`."""

    def __init__(self, name: str, url: str) -> None:
        self.name = f"rest {name}"
        self._url = f"{url}/api"
        # Each call may wait as long as its caller likes.
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(connector=connector)
        # It would send some requests again by itself, and a call would be two in truth.
        self._session._retry_connection = False

    async def close(self) -> None:
        await self._session.close()

    async def write(
        self, organization: str, item: Item, *, accepted: bool, actor: str, seconds: float
    ) -> Json:
        write = item.write
        query: dict[str, Any] = {"organizationId": organization}
        headers = {"X-Actor": actor}
        body: Any = None
        path = f"/appointments/{quote(write.id)}"
        if write.kind == "UPSERT":
            method, body = "PUT", _body(write)
            if int(actor) % 2 or write.generated:
                method, path, query = "POST", "/appointments", {}
                body |= {"organizationId": organization, **_id(write)}
            query |= {"suggest": write.suggest} if write.suggest else {}
            headers |= {"If-None-Match": "*"} if write.create_only else {}
        elif write.kind == "UPDATE":
            method, body = "PATCH", _patch(write)
            headers["Content-Type"] = "application/merge-patch+json"
            query |= {"allowMissing": "true"} if write.allow_missing else {}
        elif write.kind in ("CONFIRM", "REDACT"):
            method, path = "POST", f"{path}:{write.kind.lower()}"
        else:
            method = "DELETE"
            decided = write.cancel_updated_at
            query |= {"updatedAt": at(decided).ToJsonString()} if decided is not None else {}
        if item.tag:
            headers["If-Match"] = item.tag if item.tag == "*" else f'"{item.tag}"'
        if write.key:
            headers["Idempotency-Key"] = write.key
        query |= {"validateOnly": "true"} if write.validate_only else {}
        headers |= {"Prefer": "respond-async"} if accepted else {}
        status, found, answered = await self._call(method, path, query, headers, body, seconds)
        if status == 202:
            return {"operation": found["name"]}
        if status >= 300 or UNKNOWN in found:
            return refused(found, _revision(answered)) if UNKNOWN not in found else found
        return {
            "outcome": answered["Appointment-Outcome"],
            "appointment": found,
            "revision": _revision(answered),
        }

    async def batch(
        self,
        organization: str,
        items: Sequence[Item],
        *,
        atomic: bool,
        validate_only: bool,
        actor: str,
        seconds: float,
    ) -> Json:
        requests = []
        for item in items:
            appointment = {**_body(item.write), "organizationId": organization, **_id(item.write)}
            request: dict[str, Any] = {
                "appointment": appointment,
                "createOnly": item.write.create_only,
            }
            if item.tag:
                request["etag"] = item.tag
            if item.write.key:
                request["idempotencyKey"] = item.write.key
            requests.append(request)
        body = {"requests": requests, "atomic": atomic, "validateOnly": validate_only}
        status, found, headers = await self._call(
            "POST", "/appointments:batchUpsert", {}, {"X-Actor": actor}, body, seconds
        )
        if status >= 300 or UNKNOWN in found:
            return refused(found, _revision(headers)) if UNKNOWN not in found else found
        results = [
            {"outcome": result["outcome"], "appointment": result["appointment"]}
            if "outcome" in result
            else refused(result["error"], None)
            for result in found["results"]
        ]
        return {"results": results, "revision": _revision(headers)}

    async def read(self, organization: str, kind: str, asks: Json, *, seconds: float) -> Json:
        query: dict[str, Any] = {"organizationId": organization}
        headers: dict[str, str] = {}
        for name, value in asks.items():
            if name in ("from", "to"):
                query[name] = at(value).ToJsonString()
            elif name == "duration":
                query[name] = f"{60 * value}s"
            elif name == "as_of_time":
                query["asOfTime"] = held_until(value - 1).ToJsonString()
            elif name == "if_none_match":
                headers["If-None-Match"] = f'W/"{value}"' if kind == "list" else f'"{value}"'
            elif name in _NAMES and kind != "webhook":
                query[_NAMES[name]] = str(value).lower() if isinstance(value, bool) else value
        path = {
            "get": f"/appointments/{quote(asks.get('id', ''))}",
            "list": "/appointments",
            "history": f"/appointments/{quote(asks.get('id', ''))}/history",
            "changes": "/changes",
            "availability": "/availability",
            "operation": f"/operations/{asks.get('operation', '').rpartition('/')[2]}",
            "operations": "/operations",
            "calendar": "/appointments.ics",
            "webhook": f"/webhooks/{asks.get('webhook', '')}",
        }[kind]
        if kind == "operation" and asks["wait"]:
            query["wait"] = f"{seconds / 2:.3f}s"
        status, found, answered = await self._call("GET", path, query, headers, None, seconds)
        if UNKNOWN in found:
            return found
        revision = _revision(answered)
        etag = answered.get("ETag", "").removeprefix("W/").strip('"').removesuffix("-gzip")
        if status == 304:
            return {"not_modified": True, "etag": etag, "revision": revision}
        if status >= 300:
            return refused(found, revision)
        if kind == "webhook":
            return {"delivered": int(found["deliveredRevision"])}
        return self._shown(kind, found, etag, revision)

    @staticmethod
    def _shown(kind: str, found: Mapping[str, Any], etag: str, revision: int | None) -> Json:
        match kind:
            case "get":
                return {"appointment": found, "revision": revision}
            case "list":
                return {
                    "appointments": found["appointments"],
                    "etag": etag,
                    "shown": int(found["revision"]),
                    "next": found["nextPageToken"],
                    "revision": revision,
                }
            case "availability":
                return {
                    "resources": found["resources"],
                    "shown": int(found["revision"]),
                    "revision": revision,
                }
            case "operation" | "operations":
                return _operations(found, revision)
            case "calendar":
                return {"events": found["events"], "revision": revision}
        return {
            "entries": found["entries"],
            "more": bool(found["nextPageToken"]),
            "next": found["nextPageToken"],
            "revision": revision,
        }

    async def add_webhook(
        self, organization: str, url: str, asks: Json, *, seconds: float
    ) -> tuple[str, str]:
        """Have all changes that a filter selects sent to a URL. Return the id and the secret."""
        filters = {_NAMES[name]: value for name, value in asks.items() if name != "after_revision"}
        body = {"organizationId": organization, "url": url, **filters}
        query = {"afterRevision": asks["after_revision"]}
        status, found, _ = await self._call("POST", "/webhooks", query, {}, body, seconds)
        if status != 201:
            raise RuntimeError(f"the webhook is not created: {found}")
        return found["id"], found["secret"]

    async def watch(
        self, organization: str, asks: Json, *, seconds: float
    ) -> AsyncGenerator[Json, None]:
        filters = {_NAMES[name]: value for name, value in asks.items() if name != "stream"}
        query = urlencode({"organizationId": organization, **filters}, doseq=True)
        timeout = aiohttp.ClientTimeout(total=seconds)
        headers = {"Accept": "text/event-stream"}
        try:
            async with self._session.get(
                f"{self._url}/changes?{query}", headers=headers, timeout=timeout
            ) as response:
                if response.status != 200:
                    yield refused(orjson.loads(await response.read()), None)
                    raise Interrupted
                data = kind = ""
                async for raw in response.content:
                    name, _, value = raw.decode().rstrip("\n").partition(": ")
                    if name == "event":
                        kind = value
                    elif name == "data":
                        data = value
                    elif not name and data:
                        if kind == "reset":
                            yield {"reset": orjson.loads(data)}
                            raise Interrupted
                        entry = orjson.loads(data)
                        yield {"entries": [entry], "revision": int(entry["revision"])}
                        data = kind = ""
        except (aiohttp.ClientError, TimeoutError, ConnectionError, ValueError) as error:
            raise Interrupted from error

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        headers: Mapping[str, str],
        body: Any,
        seconds: float,
    ) -> tuple[int, dict[str, Any], Mapping[str, str]]:
        url = f"{self._url}{path}?{urlencode(query, doseq=True)}"
        data = None if body is None else orjson.dumps(body)
        if data is not None:
            headers = {"Content-Type": "application/json", **headers}
        try:
            async with self._session.request(
                method,
                url,
                data=data,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as response:
                raw = await response.read()
                if response.content_type == "text/calendar":
                    return response.status, {"events": _events(raw)}, response.headers
                found = orjson.loads(raw) if raw else {}
                return response.status, found, response.headers
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            return 0, {UNKNOWN: f"{type(error).__name__}: {error}"}, {}


def _revision(headers: Mapping[str, str]) -> int | None:
    found = headers.get("Organization-Revision")
    return int(found) if found is not None else None


def _events(calendar: bytes) -> list[dict[str, str]]:
    """Return the properties of the events of a calendar, without the copies of others."""
    events = Calendar.from_ical(calendar).walk("VEVENT")
    return [
        {
            name: value.to_ical().decode() if name != "LOCATION" else str(value)
            for name, value in event.items()
            if name not in ("DTSTAMP", "TRANSP")
        }
        for event in events
    ]


def _id(write: Write) -> dict[str, str]:
    return {} if write.generated else {"id": write.id}


def _value(write: Write, name: str) -> Any:
    value = getattr(write.content, name)
    if value is None:
        return None
    if name == "hold_until":
        return held_until(value).ToJsonString()
    if name in ("start", "end", "created_at", "updated_at"):
        return at(value).ToJsonString()
    return value


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(other.title() for other in others)


def _body(write: Write) -> dict[str, Any]:
    """Return the body of an upsert."""
    names = ("resource_id", "additional_resource_ids", "start", "end", "title", "attributes")
    body = {_camel(name): _value(write, name) for name in names}
    times = {_camel(name): _value(write, name) for name in _OPTIONAL_TIMES}
    return body | {name: value for name, value in times.items() if value is not None}


def _patch(write: Write) -> dict[str, Any]:
    """Return the body of an update. It cannot replace `attributes`, only merge into them."""
    body = {_camel(name): _value(write, name) for name in sorted(write.fields)}
    if write.attributes_patch is not None:
        body["attributes"] = write.attributes_patch
    return body


def _operations(found: Mapping[str, Any], revision: int | None) -> Json:
    if "operations" not in found:
        return _operation(found, revision)
    listed = [{"operation": one["name"], **_operation(one, None)} for one in found["operations"]]
    return {"operations": listed, "next": found["nextPageToken"]}


def _operation(found: Mapping[str, Any], revision: int | None) -> Json:
    if not found["done"]:
        return {"done": False}
    if "error" in found:
        return {"done": True, "revision": revision, **refused(found["error"], revision)}
    appointment = {name: value for name, value in found["response"].items() if name != "@type"}
    return {
        "done": True,
        "outcome": found["metadata"]["outcome"],
        "appointment": appointment,
        "revision": revision,
    }
