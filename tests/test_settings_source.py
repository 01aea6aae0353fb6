"""Options and variables: which are read, which are refused, and what is said about them."""

from __future__ import annotations

import pytest

from xpeft_server.settings import Settings, SettingsInvalid
from xpeft_server.settings_source import describe_settings, load_settings


def test_an_option_wins_over_its_variable_and_the_variable_over_the_default():
    environ = {"XPEFT_PORT": "9000", "XPEFT_SLOTS": "7", "PATH": "/bin"}
    settings = load_settings({"port": "9001", "slots": None}, environ)
    assert (settings.port, settings.slots, settings.max_inputs) == (9001, 7, 256)


def test_a_misspelt_variable_is_refused_with_the_nearest_one():
    said = "XPEFT_QUEUE_LIMITS is not a setting; the nearest is XPEFT_QUEUE_LIMIT"
    with pytest.raises(SettingsInvalid, match=f"^{said}$"):
        load_settings({}, {"XPEFT_QUEUE_LIMITS": "5"})


def test_what_a_misspelt_variable_holds_is_not_said():
    with pytest.raises(SettingsInvalid) as refused:
        load_settings({}, {"XPEFT_APIKEY": "xp_secret"})
    assert "xp_secret" not in str(refused.value)


def test_variables_of_other_commands_are_none_of_the_servers():
    theirs = {"XPEFT_TUNE_STORE": "sqlite:///t.db", "XPEFT_TUNE_EPOCHS": "3", "XPEFT_BANK_TRAIN_EPOCHS": "1"}
    assert load_settings({}, theirs) == load_settings({}, {})


def test_an_empty_variable_is_refused():
    with pytest.raises(SettingsInvalid, match="XPEFT_API_KEYS is empty"):
        load_settings({}, {"XPEFT_API_KEYS": ""})


def test_the_variables_of_the_clients_are_no_mistake():
    load_settings({}, {"XPEFT_URL": "http://127.0.0.1:8000", "XPEFT_API_KEY": "xp_x"})


def test_every_setting_is_described_once():
    described = describe_settings()
    assert [setting.name for setting in described] == list(Settings.model_fields)
    for setting in described:
        assert setting.help
        assert setting.variable == "XPEFT_" + setting.name.upper()
        assert setting.option == "--" + setting.name.replace("_", "-")
    flags = {setting.name for setting in described if setting.is_flag}
    assert flags == {"disable_prefix_caching", "metrics_open", "access_log"}


def test_a_described_default_is_one_that_can_be_typed():
    typed = {setting.name: setting.default for setting in describe_settings() if setting.default}
    assert load_settings(typed, {}) == Settings()
