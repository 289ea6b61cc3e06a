"""Mappings of files: which keys they have, and of what kind the values are."""

import pytest

from dk_bench.errors import UserError
from dk_bench.reading.yaml_words import check_keys

NEEDED, OPTIONAL = {"name": str, "seeds": int | float}, {"arms": list, "whole": bool}


def test_a_mapping_that_fits_passes():
    check_keys({"name": "a", "seeds": 2, "whole": True}, NEEDED, OPTIONAL)
    check_keys({}, {})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("name", "expected a mapping, got 'name'"),
        ({"name": "a"}, "missing seeds"),
        ({"name": "a", "seeds": 1, 7: 2, "b": 3}, "unknown 7, b, expected some of name, seeds, arms, whole, scope"),
        ({"name": 1, "seeds": 1}, "name is 1, expected text"),
        ({"name": "a", "seeds": True}, "seeds is True, expected a number"),
        ({"name": "a", "seeds": 1, "arms": "s4"}, "arms is 's4', expected a list"),
        ({"name": "a", "seeds": 1, "whole": 1}, "whole is 1, expected true or false"),
    ],
)
def test_what_does_not_fit_is_named(value, message):
    with pytest.raises(UserError) as error:
        check_keys(value, NEEDED, OPTIONAL, also=["scope"])
    assert str(error.value) == message
