from __future__ import annotations

from pathlib import Path

import pytest

from meshnode import ConfigError
from meshnode.identity import keep_mesh_id, load_identity, load_mesh_id, make_identity, node_id_of, verify


def test_the_node_id_is_the_hash_of_its_key() -> None:
    identity = make_identity()
    assert identity.node_id == node_id_of(identity.public_key)
    assert len(identity.node_id) == 32


def test_a_signature_holds_for_its_message_and_its_key_only() -> None:
    one, other = make_identity(), make_identity()
    signature = one.sign(b"vote")
    assert verify(one.public_key, signature, b"vote")
    assert not verify(one.public_key, signature, b"vota")
    assert not verify(other.public_key, signature, b"vote")
    assert not verify(b"short", signature, b"vote")


def test_a_data_directory_keeps_the_identity_for_its_owner_only(tmp_path: Path) -> None:
    data = tmp_path / "deep" / "data"
    first = load_identity(data)
    assert load_identity(data).node_id == first.node_id
    assert (data / "identity.key").stat().st_mode & 0o777 == 0o600


def test_without_a_data_directory_each_start_is_a_new_node() -> None:
    assert load_identity(None).node_id != load_identity(None).node_id


def test_a_damaged_key_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "identity.key").write_bytes(b"short")
    with pytest.raises(ConfigError, match=r"identity\.key is damaged \(5 bytes, not 32\)"):
        load_identity(tmp_path)
    assert (tmp_path / "identity.key").read_bytes() == b"short"


def test_a_data_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(ConfigError, match="name one you can write to"):
        load_identity(tmp_path / "data")


def test_the_mesh_id_is_kept(tmp_path: Path) -> None:
    assert load_mesh_id(tmp_path) is None
    keep_mesh_id(tmp_path, "abc")
    assert load_mesh_id(tmp_path) == "abc"


def test_the_secret_never_shows_in_a_representation() -> None:
    assert "key" not in repr(make_identity()).lower().replace("node_id", "")
