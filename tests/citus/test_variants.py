"""migrations/citus.sql replaces functions of functions.sql, and follows their changes."""

import hashlib
import re

import psycopg

from local.schema import FUNCTIONS, blocks_of, read_functions
from service.postgres.distribution import VARIANTS
from tests.conftest import CreateDatabase
from tests.databases import apply_variants

REPLACES = re.compile(r"^-- (?:Replaces|Follows) (\w+), digest (\w{16}):", re.MULTILINE)
DEFINES = re.compile(r"^CREATE OR REPLACE FUNCTION (\w+)\(", re.MULTILINE)
# The functions that there are only in a distributed database.
ONLY_THERE = {"apply_queued", "purge_organization"}


def stale(plain: str) -> dict[str, str]:
    """The replaced functions whose plain text has changed, with its digests now."""
    blocks = blocks_of(plain)
    now = {
        name: hashlib.sha256(blocks[name].encode()).hexdigest()[:16]
        for name, _ in REPLACES.findall(VARIANTS.read_text())
    }
    return dict(now.items() - set(REPLACES.findall(VARIANTS.read_text())))


def test_each_variant_was_looked_at_since_the_plain_function_changed() -> None:
    text = VARIANTS.read_text()
    followed = {"apply_queued_operations"}
    assert set(DEFINES.findall(text)) == dict(REPLACES.findall(text)).keys() - followed | ONLY_THERE
    found = stale(FUNCTIONS.read_text())
    assert not found, "look at the variants in migrations/citus.sql, then note these digests"


def test_a_change_of_the_plain_function_is_noticed() -> None:
    changed = FUNCTIONS.read_text().replace("c_step constant bigint := 1000", "c_step bigint := 1")
    assert stale(changed).keys() == {"advance_operation_queue"}


def test_a_variant_is_called_as_the_plain_function_is(create_database: CreateDatabase) -> None:
    url = create_database()
    with psycopg.connect(url) as connection:
        before = read_functions(connection)
    apply_variants(url)
    with psycopg.connect(url) as connection:
        after = read_functions(connection)
    assert {function.name for function in after.values()} - {
        function.name for function in before.values()
    } == ONLY_THERE
    for identity, function in before.items():
        assert after[identity].kept() == function.kept(), identity
        for word in ("SECURITY DEFINER", "IMMUTABLE", "STABLE"):
            assert (word in after[identity].definition) == (word in function.definition), identity
    # Once more, nothing changes.
    apply_variants(url)
    with psycopg.connect(url) as connection:
        assert read_functions(connection) == after
