from __future__ import annotations

import pytest

from transforms.storage.access import redact, redacted, redacted_command, secrets_of


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ftp://me:hunter2@host/a.wav", "ftp://***@host/a.wav"),
        ("http://me:a@b@host/x", "http://***@host/x"),
        (
            "https://h/a b.wav?X-Amz-Signature=abc%2F&sig=d/e+f== said 403",
            "https://h/a b.wav?X-Amz-Signature=***&sig=*** said 403",
        ),
        ("('https://h/x?token=abc', 1)", "('https://h/x?token=***', 1)"),
        ("gs://bucket/part-?.csv", "gs://bucket/part-?.csv"),
        ("hf://user/repo@main/x", "hf://user/repo@main/x"),
        ("mail me@home or read a/b.wav", "mail me@home or read a/b.wav"),
    ],
)
def test_what_a_uri_confides_is_hidden_and_the_rest_stays(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_secrets_of_storage_options_are_those_that_are_named_so() -> None:
    options = {
        "s3": {
            "key": "AKIAEXAMPLE",
            "secret": 'sl/ash"quote',
            "client_kwargs": {"endpoint_url": "http://127.0.0.1:9000"},
        },
        "gs": {"token": {"private_key": "-----BEGIN\nkey", "type": "service_account"}},
        "http": {"headers": {"Authorization": "Bearer abcdef"}, "get_client": object()},
        "memory": {"token": "anon", "project": "my-project", "account_keys": ["one-key", 3]},
    }
    secrets = secrets_of(options)
    text = (
        'AKIAEXAMPLE sl/ash"quote sl%2Fash%22quote sl/ash\\"quote -----BEGIN\nkey '
        "Bearer abcdef one-key http://127.0.0.1:9000 anon my-project"
    )
    assert redact(text, secrets) == (
        "*** *** *** *** *** *** *** http://127.0.0.1:9000 anon my-project"
    )


def test_records_keep_their_form() -> None:
    record = {"manifests": ("http://u:p@h/x",), "rows": [{"n": 1.5, "uri": None}], "ok": True}
    assert redacted(record) == {
        "manifests": ["http://***@h/x"],
        "rows": [{"n": 1.5, "uri": None}],
        "ok": True,
    }


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        (["--output", "s3://u:p@b/x"], ["--output", "s3://***@b/x"]),
        (["--output=http://h/x?sig=abc"], ["--output=http://h/x?sig=***"]),
        (["--storage_options", '{"s3": {"key": "k"}}'], ["--storage_options", "***"]),
        (['--storage_options={"s3": {"key": "k"}}'], ["--storage_options=***"]),
        (
            ["--s3_secret_access_key", "hush", "--resume"],
            ["--s3_secret_access_key", "***", "--resume"],
        ),
        (["--s3_session_token=hush"], ["--s3_session_token=***"]),
        (["--positive", "a key, turning"], ["--positive", "a key, turning"]),
        (["--mix_level_range_db", "-5", "5"], ["--mix_level_range_db", "-5", "5"]),
        (["--labels", "longsecret"], ["--labels", "***"]),
    ],
)
def test_a_command_line_shows_no_credentials(word: list[str], shown: list[str]) -> None:
    assert redacted_command(word, secrets=("longsecret",)) == shown
