from __future__ import annotations

from pathlib import Path

import pytest

from meshnode import Config, ConfigError
from meshnode.addresses import has_port, join_address, split_address
from meshnode.config_sources import find_file


def test_flags_stand_above_environment_above_file_above_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text('name = "file"\nbind = "127.0.0.2"\nworkers = 3\n')
    monkeypatch.setenv("MESHNODE_NAME", "environment")
    monkeypatch.setenv("MESHNODE_BIND", "127.0.0.3")
    config = Config.load(file, name="flag", port=None)
    assert (config.name, config.bind, config.workers, config.port) == ("flag", "127.0.0.3", 3, 7700)
    told = config.sources
    assert (told["name"], told["bind"], told["workers"], told["port"]) == (
        "argument", "MESHNODE_BIND", f"{file}:3", "default",
    )  # fmt: skip


def test_a_table_given_twice_is_replaced_not_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text('port = 1\n[tags]\ngpu = "yes"\nname = "no setting, a tag"\n')
    assert Config.load(file).tags == {"gpu": "yes", "name": "no setting, a tag"}
    assert Config.load(file).sources["tags"] == f"{file}:2"
    monkeypatch.setenv("MESHNODE_TAGS", "zone=x, disk=a=b")
    assert Config.load(file).tags == {"zone": "x", "disk": "a=b"}
    monkeypatch.setenv("MESHNODE_TAGS", '{"zone": "y"}')
    assert Config.load(file).tags == {"zone": "y"}
    assert Config.load(file, tags={"rack": "1"}).tags == {"rack": "1"}


def test_seeds_in_the_environment_are_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHNODE_SEEDS", "host-a:7700, host-b:7700")
    assert Config.load().seeds == ("host-a:7700", "host-b:7700")


def test_an_empty_variable_is_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHNODE_ADVERTISE", "")
    monkeypatch.setenv("MESHNODE_PORT", "")
    assert (Config().advertise, Config().port) == (None, 7700)


def test_a_variable_with_file_behind_names_a_file_that_holds_the_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "otlp"
    secret.write_text("http://user:pass@collector:4318\n")
    monkeypatch.setenv("MESHNODE_OTLP_FILE", str(secret))
    monkeypatch.setenv("MESHNODE_KEY_FILE", "mesh.key")  # a setting that is itself a file's name
    config = Config()
    assert (config.otlp, config.sources["otlp"]) == ("http://user:pass@collector:4318", "MESHNODE_OTLP_FILE")
    assert config.key_file == Path("mesh.key")
    monkeypatch.setenv("MESHNODE_OTLP", "http://other:4318")
    with pytest.raises(ConfigError, match="both give otlp"):
        Config()
    monkeypatch.delenv("MESHNODE_OTLP")
    monkeypatch.setenv("MESHNODE_OTLP_FILE", str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match=r"MESHNODE_OTLP_FILE: .*missing: No such file"):
        Config()


def test_the_file_is_the_one_given_else_the_environments_else_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = tmp_path / "meshnode" / "meshnode.toml"
    users.parent.mkdir()
    users.write_text("port = 1\n")
    (tmp_path / "named.toml").write_text("port = 2\n")
    (tmp_path / "given.toml").write_text("port = 3\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("MESHNODE_CONFIG_FILE")
    assert (find_file(None), Config.load().port) == (users, 1)
    assert Config().port == 7700, "a Config made in Python reads no file"
    monkeypatch.setenv("MESHNODE_CONFIG_FILE", str(tmp_path / "named.toml"))
    assert Config.load().port == 2
    assert Config.load(tmp_path / "given.toml").port == 3
    monkeypatch.setenv("MESHNODE_CONFIG_FILE", "")
    assert Config.load().port == 7700
    monkeypatch.setenv("MESHNODE_CONFIG_FILE", str(tmp_path / "missing.toml"))
    with pytest.raises(ConfigError, match=r"missing\.toml: No such file"):
        Config.load()


@pytest.mark.parametrize("seed", ["host", "host:", ":7700", "host:port", "host:0", "host:70000", "::1:7700"])
def test_a_bad_seed_is_refused_by_name(seed: str) -> None:
    with pytest.raises(ConfigError, match=r"^seeds: .*is not HOST:PORT"):
        Config(seeds=[seed])


@pytest.mark.parametrize("advertise", ["0.0.0.0", "[::]:7700", "host:port", "http://host", "a b"])
def test_an_address_nobody_can_reach_is_not_advertised(advertise: str) -> None:
    with pytest.raises(ConfigError, match=r"^advertise: "):
        Config(advertise=advertise)


@pytest.mark.parametrize("advertise", ["host", "host:7700", "::1", "[2001:db8::1]:7700", "192.0.2.1"])
def test_hosts_with_and_without_a_port_are_advertised(advertise: str) -> None:
    assert Config(advertise=advertise).advertise == advertise


def test_an_unknown_setting_is_refused_with_the_nearest_known_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="no setting 'naem'; did you mean 'name'"):
        Config(naem="x")
    file = tmp_path / "mesh.toml"
    file.write_text('port = 1\n\nhttp-bind = "::1"\n')
    with pytest.raises(ConfigError, match=r"mesh\.toml:3: there is no setting 'http-bind'; did you mean 'http_bind'"):
        Config.load(file)
    monkeypatch.setenv("MESHNODE_HTP_BIND", "::1")
    with pytest.raises(ConfigError, match="no variable MESHNODE_HTP_BIND; did you mean MESHNODE_HTTP_BIND"):
        Config()
    monkeypatch.delenv("MESHNODE_HTP_BIND")
    monkeypatch.setenv("MESHNODE_KEY_FLIE", "mesh.key")
    with pytest.raises(ConfigError, match="did you mean MESHNODE_KEY_FILE"):
        Config()


def test_a_bad_value_names_the_setting_the_rule_and_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^port: .*less than or equal to 65530 \(got 70000\)$"):
        Config(port=70000)
    file = tmp_path / "mesh.toml"
    file.write_text("# ports\nport = true\n")
    with pytest.raises(ConfigError, match=r"^port: .*true or false \(got True, from .*mesh\.toml:2\)$"):
        Config.load(file)
    monkeypatch.setenv("MESHNODE_WORKERS", "many")
    with pytest.raises(ConfigError, match=r"^workers: .*integer.*\(got 'many', from MESHNODE_WORKERS\)$"):
        Config.load()


def test_a_secret_is_hidden_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHNODE_OTLP", "http://user:correct-horse@collector:4318")
    monkeypatch.setenv("MESHNODE_TAGS", '{"token": ["correct-horse"]}')
    with pytest.raises(ConfigError, match="tags") as caught:
        Config()
    assert "correct-horse" not in str(caught.value)


def test_a_malformed_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("name = ")
    with pytest.raises(ConfigError, match=r"bad\.toml: "):
        Config.load(file)


@pytest.mark.parametrize("address", ["host:1", "127.0.0.1:7700", "[::1]:7700"])
def test_addresses_split_and_join(address: str) -> None:
    assert join_address(*split_address(address)) == address
    assert has_port(address)


@pytest.mark.parametrize("host", ["host", "127.0.0.1", "::1", "[::1]"])
def test_a_host_alone_has_no_port(host: str) -> None:
    assert not has_port(host)


def test_the_operators_page_names_every_setting() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    assert [name for name in Config.model_fields if f"`{name}`" not in page] == []
