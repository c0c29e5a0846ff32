"""A node runs with the values of a Config that was made in another process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshnode import Config, ConfigError
from meshnode.settled import Settled, begin

# The test runner has threads; the command line, which forks before anything else, has none.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def settings() -> Config:
    return Config(seeds=["a:1", "b:2"], tags={"x": "y"}, data_dir=Path("d"), port=0, lm_cache="1MiB")


def test_what_a_child_read_is_what_would_have_been_read_here() -> None:
    here, told = settings(), begin(settings)()
    assert isinstance(told, Settled)
    for name, value in dict(here).items():
        assert (name, type(getattr(told, name)), getattr(told, name)) == (
            name, int if name == "lm_cache" else type(value), value,
        )  # fmt: skip
    assert told.model_dump(mode="json") == here.model_dump(mode="json")
    assert (told.sources, told.model_fields_set) == (here.sources, here.model_fields_set)
    with pytest.raises(AttributeError, match="does not change"):
        told.port = 1
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        _ = told.nothing_of_ours


def test_what_is_wrong_is_told_as_here() -> None:
    with pytest.raises(ConfigError, match="no setting 'prot'"):
        begin(lambda: Config(prot=1))()


def test_a_child_that_can_not_tell_is_done_without() -> None:
    child_only = os.getpid()

    def load() -> Config:
        if os.getpid() != child_only:
            os._exit(1)
        return settings()

    assert begin(load)() == settings()
