from __future__ import annotations

import pytest

from xpeft_server.cli.assembly import load_classifier
from xpeft_server.model.bank_errors import BankSpecInvalid
from xpeft_server.settings import Settings


def test_a_bad_bank_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(BankSpecInvalid, match="N is 'x'"):
        load_classifier(Settings(plm="/no/model/there", bank="random:N=x"))
