"""Every statement of the service that is not for one organization is known, with its cost.

Statements for one organization are those of `Database.fetch` (test_rules.py looks at their plans).
The others are found in the code. docs/scaling.md lists those that visit all shards.
"""

import ast
import re

from local.programs import ROOT

DOCUMENT = ROOT / "docs" / "scaling.md"
ROW = re.compile(r"^\| `(service/[\w/]+\.py)` `(\w+)` \|", re.MULTILINE)

# For one organization in a distributed database: a call that is delegated, or a statement that
# names the organization.
FOR_ONE = {
    ("service/events/store.py", "entries"),
    ("service/operations/postgres/queue.py", "_insert"),
    ("service/operations/postgres/worker.py", "_apply_in_database"),
    ("service/operations/postgres/worker.py", "_give_up"),
    ("service/operations/postgres/worker.py", "_release"),
    ("service/operations/rabbitmq/applier.py", "_apply_in_database"),
    ("service/operations/rabbitmq/applier.py", "refuse"),
    ("service/postgres/trace_contexts.py", "trace_contexts"),
    ("service/webhooks/claims.py", "_record"),
    ("service/webhooks/claims.py", "release"),
}
# On the shards of the organizations that are asked for.
FOR_SOME = {
    ("service/operations/results.py", "_watch"),
    ("service/reads/moments.py", "_fetch"),
    ("service/reads/watch.py", "_poll"),
}
# On tables of the coordinator, or none.
ON_COORDINATOR = {
    ("service/access/api_keys.py", "_changes"),
    ("service/events/store.py", "acquire"),
    ("service/events/store.py", "release"),
    ("service/events/store.py", "renew"),
    ("service/limits/store.py", "forget"),
    ("service/limits/store.py", "report"),
    ("service/operations/rabbitmq/applier.py", "wait_for_database"),
    ("service/postgres/database.py", "fetch"),  # what is for one organization
    ("service/postgres/notifications.py", "_listen"),
    ("service/postgres/notifications.py", "_run"),
    ("service/reads/replicas.py", "_responds"),
    ("service/rpc/health.py", "watch_readiness"),
}
# Not in a distributed database.
ON_ONE_SERVER = {
    ("service/postgres/history_size.py", "run"),
    ("service/reads/current.py", "_get"),
    ("service/reads/current.py", "_list"),
    ("service/writes/store.py", "apply_batches"),
}


def places() -> set[tuple[str, str]]:
    """The functions in which the service runs a statement that is not for one organization."""
    found = set()
    for path in (ROOT / "service").rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.AsyncFunctionDef | ast.FunctionDef) and any(
                isinstance(node, ast.Attribute) and node.attr == "fetch_across"
                for node in ast.walk(function)
            ):
                found.add((path.relative_to(ROOT).as_posix(), function.name))
    return found


def test_the_document_lists_every_statement_that_visits_all_shards() -> None:
    known = FOR_ONE | FOR_SOME | ON_COORDINATOR | ON_ONE_SERVER
    found = places()
    assert found >= known, "it runs no such statement any more"
    assert set(ROW.findall(DOCUMENT.read_text())) == found - known
