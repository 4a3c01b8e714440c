"""What of the calendar must stay as it is."""

from gateway.endpoints.calendar_text import uid_of


def test_a_uid_never_changes() -> None:
    """Otherwise every subscribed program takes all appointments for new ones."""
    assert uid_of("default", "standup") == "6f04e14c-7987-5237-b158-92922907b292"
    assert uid_of("Zürich, \N{PARTY POPPER}", "7") == "5bc726e1-7ddc-5010-8575-07f9edbeadfe"


def test_organization_and_id_cannot_be_confused() -> None:
    assert uid_of("a", "bc") != uid_of("ab", "c")
