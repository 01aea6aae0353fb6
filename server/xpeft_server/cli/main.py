"""The program ``xpeft``. Modules that need torch are imported by the commands that use them."""

from __future__ import annotations

from typing import Final

import typer

from .bank import commands as bank
from .bench import commands as bench
from .flags_in_help import FlagsGroup, show_flags_alone
from .keys import commands as keys
from .profiles import commands as profiles
from .serve import commands as serve
from .tune import commands as tune

# A part with one command has its name from that command; a part with several is a group.
COMMANDS: Final = (serve.app, tune.app)
GROUPS: Final = {"bank": bank.app, "profiles": profiles.app, "keys": keys.app, "bench": bench.app}

app = typer.Typer(
    cls=FlagsGroup,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Serve a personal language model to every user: one frozen model, one bank of adapters, and a few"
    " hundred bytes for each user. Start with: xpeft tune --data FILE --out PROFILE, xpeft serve,"
    " xpeft profiles put NAME PROFILE. Every option of xpeft serve is also an environment variable:"
    " --store is XPEFT_STORE. Variables of other commands are in their help.",
)
for _command in COMMANDS:
    show_flags_alone(_command)
    app.add_typer(_command)
for _name, _group in GROUPS.items():
    show_flags_alone(_group)
    app.add_typer(_group, name=_name, cls=FlagsGroup)
