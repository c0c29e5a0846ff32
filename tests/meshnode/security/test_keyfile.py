"""The mesh key file: what it holds, who may read it, what is said when it is wrong."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from meshnode.errors import ConfigError
from meshnode.security.keyfile import KeyFile, load_keys, make_key, parse_keys, save_keys
from meshnode.security.ring import KeyRing


def test_a_key_file_reads_back_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "mesh.key"
    content = KeyFile((make_key(), make_key()), authority=bytes(range(32)), revoked=(b"one", b"two"))
    save_keys(path, content)
    assert load_keys(path) == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["mesh.key"]


def test_a_key_file_is_never_overwritten_by_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "mesh.key"
    save_keys(path, first := KeyFile((make_key(),)), new=True)
    with pytest.raises(ConfigError, match="exists already"):
        save_keys(path, KeyFile((make_key(),)), new=True)
    assert load_keys(path) == first
    assert [each.name for each in tmp_path.iterdir()] == ["mesh.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused_with_the_way_out(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "mesh.key"
    save_keys(path, KeyFile((make_key(),)))
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        load_keys(path)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file.*meshnode keygen"):
        load_keys(tmp_path / "none.key")


def test_what_is_wrong_is_named_by_its_line_and_never_shown() -> None:
    key = make_key()
    lines = "meshnode-mesh-key 1\nkey {} {}\n"
    secret = "c2VjcmV0" * 5
    for text in (lines.format(key.key_id, secret), f"key {key.key_id} {secret}", "meshnode-mesh-key 2\n", "\xff\xfe"):
        with pytest.raises(ConfigError, match=r"line [12]") as caught:
            parse_keys(text.encode("latin-1"), "mesh.key")
        assert secret not in str(caught.value)
        assert caught.value.__cause__ is None
    with pytest.raises(ConfigError, match="holds no mesh key"):
        parse_keys(b"meshnode-mesh-key 1\n", "mesh.key")


def test_a_key_with_one_changed_character_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mesh.key"
    save_keys(path, KeyFile((make_key(),)))
    text = path.read_text()
    at = text.rindex("key ") + 20
    changed = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
    with pytest.raises(ConfigError, match="copy the file anew"):
        parse_keys(changed.encode(), "mesh.key")


def test_rotation_installs_uses_and_removes() -> None:
    old, new = make_key(), make_key()
    content = KeyFile((old,)).installed(new)
    assert content.keys == (old, new)
    content = content.used(new.key_id[:5])
    assert content.keys == (new, old)
    with pytest.raises(ConfigError, match="is in use"):
        content.removed(new.key_id)
    assert content.removed(old.key_id).keys == (new,)
    with pytest.raises(ConfigError, match="installed already"):
        content.installed(new)
    with pytest.raises(ConfigError, match=f"no key begins with 'zz'.*{new.key_id}"):
        content.find("zz")


def test_no_representation_shows_a_secret() -> None:
    content = KeyFile((make_key(),))
    ring = KeyRing(content)
    secret = content.keys[0].secret
    for shown in (repr(content), repr(content.keys[0]), repr(ring.primary), repr(ring)):
        assert repr(secret) not in shown
        assert secret.hex() not in shown


def test_a_tag_is_admitted_only_by_a_ring_that_has_its_key() -> None:
    old, new = make_key(), make_key()
    tag = KeyRing(KeyFile((old,))).primary.tag(b"said")
    ring = KeyRing(KeyFile((new, old)))
    assert ring.admits(tag, b"said")
    assert not ring.admits(tag, b"said otherwise")
    assert not ring.admits(tag[:-1] + bytes([tag[-1] ^ 1]), b"said")
    assert not ring.admits(b"", b"said")
    ring.replace(KeyFile((new,)))
    assert not ring.admits(tag, b"said")
