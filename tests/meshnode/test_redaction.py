"""What is hidden of settings and texts before people see them; that logs pass here is tested with the logs."""

from meshnode.redaction import HIDDEN, hide_secrets, secrets_of


def test_only_variables_named_like_secrets_count() -> None:
    environment = {"LM_KEY": "a-long-value", "HOME": "/home/someone", "A_PASSWORD": "short", "X_TOKEN": "long-enough"}
    assert secrets_of(environment) == ["a-long-value", "long-enough"]


def test_settings_are_shown_without_their_secrets() -> None:
    assert hide_secrets({"port": 7700, "api_key": "x", "url": "redis://a:b@h", "none": None}) == {
        "port": 7700,
        "api_key": HIDDEN,
        "url": f"redis://{HIDDEN}@h",
        "none": None,
    }
