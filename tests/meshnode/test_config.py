from __future__ import annotations

from pathlib import Path

import pytest

from meshnode import Config, ConfigError
from meshnode.config import join_address, split_address


def test_flags_stand_above_environment_above_file_above_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text('name = "file"\nbind = "127.0.0.2"\nworkers = 3\n')
    monkeypatch.setenv("MESHNODE_NAME", "environment")
    monkeypatch.setenv("MESHNODE_BIND", "127.0.0.3")
    config = Config.load(file, name="flag", port=None)
    assert (config.name, config.bind, config.workers, config.port) == ("flag", "127.0.0.3", 3, 7700)


def test_seeds_in_the_environment_are_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHNODE_SEEDS", "host-a:7700, host-b:7700")
    assert Config.load().seeds == ("host-a:7700", "host-b:7700")


@pytest.mark.parametrize("seed", ["host", "host:", ":7700", "host:port", "host:0", "host:70000"])
def test_a_bad_seed_is_refused_by_name(seed: str) -> None:
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        Config(seeds=[seed])


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match="naem"):
        Config(naem="x")


def test_a_bad_value_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"^port: .*70000"):
        Config(port=70000)


def test_a_malformed_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("name = ")
    with pytest.raises(ConfigError, match=r"bad\.toml: "):
        Config.load(file)


@pytest.mark.parametrize("address", ["host:1", "127.0.0.1:7700", "[::1]:7700"])
def test_addresses_split_and_join(address: str) -> None:
    assert join_address(*split_address(address)) == address
