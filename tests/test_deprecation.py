"""Old names keep working, with a warning."""

import dataclasses

import pytest

from egno_jax import deprecation


@deprecation.renamed_fields(old="new")
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Config:
    new: int = 1
    other: int = 2


def test_old_fields_are_accepted_and_read_with_a_warning():
    with pytest.warns(DeprecationWarning, match=r"_Config\.old is deprecated .* use _Config\.new"):
        config = _Config(old=5)
    assert config == _Config(new=5)
    with pytest.warns(DeprecationWarning, match="use _Config.new"):
        assert config.old == 5
    with pytest.warns(DeprecationWarning):
        assert dataclasses.replace(config, old=7).new == 7
    assert [field.name for field in dataclasses.fields(_Config)] == ["new", "other"]


def test_old_names_of_a_module_lead_to_the_new_ones():
    serve = deprecation.module_getattr("somewhere", {"old": "dataclasses:replace"})
    with pytest.warns(DeprecationWarning, match=r"somewhere\.old .* use dataclasses\.replace"):
        assert serve("old") is dataclasses.replace
    with pytest.raises(AttributeError, match="'somewhere' has no attribute 'other'"):
        serve("other")
