"""The program ``xpeft``. Modules that need torch are imported by the commands that use them."""

from __future__ import annotations

from typing import Final

import typer

from . import bank, bench, keys, profiles, serve, tune

# A part with one command has its name from that command; a part with several is a group.
COMMANDS: Final = (serve.app, tune.app)
GROUPS: Final = {"bank": bank.app, "profiles": profiles.app, "keys": keys.app, "bench": bench.app}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="One frozen language model, one bank of adapters, and a model of their own for every user in a few"
    " hundred bytes. Start with: xpeft tune --data FILE --out PROFILE, xpeft serve, xpeft profiles put NAME PROFILE."
    " Every option of a command is"
    " also a variable: --store is XPEFT_STORE.",
)
for _command in COMMANDS:
    app.add_typer(_command)
for _name, _group in GROUPS.items():
    app.add_typer(_group, name=_name)
