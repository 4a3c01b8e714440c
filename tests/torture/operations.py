"""Judges lists of operations: the latest first, and none left out."""

from collections.abc import Iterator, Mapping, Sequence

from tests.torture.record import Call, Json


class Operations:
    """The accepted writes of an organization, and how they ended."""

    def __init__(self, calls: Sequence[Call]) -> None:
        # The calls that submitted the operations, by the operations' names.
        self.submitted: Mapping[str, Call] = {
            call.answer["operation"]: call for call in calls if "operation" in call.answer
        }
        # Their ends, each with the time when the first answer told it.
        self.ended: dict[str, tuple[float, Json]] = {}
        for call in calls:
            if call.request.kind == "operation" and call.answer.get("done"):
                self.ended.setdefault(call.request.asks["operation"], (call.end, call.answer))

    def judge(self, call: Call) -> str:
        """Judge a page of a list.

        Operations in RabbitMQ are not listed before they are applied. So what has to be there is
        what somebody had read as done before the list was asked for.
        """
        asks, answer = call.request.asks, call.answer
        if "code" in answer:
            return f"it is refused: {dict(answer)}"
        names = [operation["operation"] for operation in answer["operations"]]
        first: str | None = asks.get("after")
        if sorted(set(names), reverse=True) != names or (first and names and names[0] >= first):
            return f"it does not have the latest first: {names}"
        last = names[-1] if answer["next"] and names else ""
        for name, (end, result) in self.ended.items():
            inside = name >= last and (not first or name < first)
            selected = inside and end < call.begin and _selects(asks["filter"], result)
            if selected and name not in names:
                return f"it leaves out {name}, which was done"
        for operation in answer["operations"]:
            if not _selects(asks["filter"], operation):
                return f"the filter {asks['filter']!r} does not select {operation}"
        return ""

    def listed(self, call: Call) -> Iterator[tuple[Call, Json]]:
        """Yield the operations of a list that are done, with the calls that submitted them.

        A list does not tell at which revision they were decided, but another answer does.
        """
        for operation in call.answer.get("operations", ()):
            name = operation["operation"]
            if operation["done"] and name in self.submitted and name in self.ended:
                _, result = self.ended[name]
                yield self.submitted[name], {**operation, "revision": result["revision"]}


def _selects(filter: str, operation: Json) -> bool:
    match filter:
        case "done=true":
            return bool(operation["done"])
        case "done=false":
            return not operation["done"]
        case "error:*":
            return "code" in operation
    return True
