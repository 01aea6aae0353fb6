from __future__ import annotations

import pytest

from xpeft_server.cli.tune.names import NamesInvalid, check_profile_name, profile_names


def test_what_no_name_may_have_becomes_a_dash() -> None:
    values = ["rt:corey-hall", "a b", "Zoë", "x.y_z-1"]
    assert profile_names(values, field="user", template="{user}") == {
        "rt:corey-hall": "rt-corey-hall",
        "a b": "a-b",
        "Zoë": "Zo-",
        "x.y_z-1": "x.y_z-1",
    }


def test_the_template_may_surround_the_value() -> None:
    assert profile_names(["-1", "2"], field="user", template="u{user}.v2") == {"-1": "u-1.v2", "2": "u2.v2"}


@pytest.mark.parametrize(
    ("values", "template", "message"),
    [
        (["a"], "critic", "profile is 'critic', it must have {user} in it, in whose place the user comes"),
        (["a"], "{name}", "profile is '{name}', it must have {user} in it, in whose place the user comes"),
        (["a"], "{user}{name}", "user 'a': name: 'a{name}' is not a name"),
        (["a"], "x/{user}", "user 'a': name: 'x/a' is not a name"),
        (["a", ".b"], "{user}", "user '.b': name: '.b' is not a name"),
        (["a" * 129], "{user}", "is not a name"),
        (["base"], "{user}", "user 'base': name: 'base' stands for the bare model, no profile can have it"),
        (["a:b", "c", "a b"], "{user}", "user 'a:b' and user 'a b' would both be profile a-b"),
        (["-", "a", ":", "_", ".", "/"], "{user}", "(and 2 more)"),
    ],
)
def test_values_that_give_no_names_are_told(values: list[str], template: str, message: str) -> None:
    with pytest.raises(NamesInvalid) as refused:
        profile_names(values, field="user", template=template)
    assert message in str(refused.value)


def test_one_name_is_checked_as_a_server_does() -> None:
    check_profile_name("desk")
    for name in ("base", "", "a/b"):
        with pytest.raises(NamesInvalid, match="name: "):
            check_profile_name(name)
