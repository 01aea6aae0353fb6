"""Who connected, as logs show it."""

import pytest

from xpeft_server.api.client_address import shown_client


@pytest.mark.parametrize(
    ("client", "shown"),
    [
        (None, None),
        (("192.0.2.7", 8000), "192.0.2.7:8000"),
        (("2001:db8::1", 8000), "[2001:db8::1]:8000"),
        (("::ffff:192.0.2.7", 8000), "[::ffff:192.0.2.7]:8000"),
    ],
)
def test_a_client_is_its_address_and_its_port(client, shown):
    assert shown_client(client) == shown
