from __future__ import annotations

from xpeft_benchmarks.command_line import shown_command


def test_a_command_is_shown_as_it_was_typed() -> None:
    assert shown_command(["bench", "ops", "--bank", "random:N=8", "--rounds=3"]) == (
        "xpeft bench ops --bank random:N=8 --rounds=3"
    )


def test_a_key_is_never_shown() -> None:
    assert "xp_" not in shown_command(["bench", "serve", "--api-key", "xp_a", "--api-key=xp_b", "--url", "http://h:1"])
    assert shown_command(["bench", "load", "--against-api-key", "xp_a", "--against-api-key=xp_b"]).count("***") == 2


def test_folders_of_the_machine_are_left_out() -> None:
    shown = shown_command(["--data", "/home/me/texts.jsonl", "--json=/tmp/x.jsonl", "--store", "sqlite:////var/p.db"])
    assert shown == "xpeft --data texts.jsonl --json=x.jsonl --store sqlite:///p.db"


def test_a_store_is_shown_without_its_password() -> None:
    assert shown_command(["--store", "redis://me:secret@db:6379/0"]) == "xpeft --store 'redis://***@db:6379/0'"
