import pytest

from adapters_store.urls import without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("/var/lib/adapterd", "/var/lib/adapterd"),
        ("postgresql://me@host:5432/db", "postgresql://me@host:5432/db"),
        ("postgresql://me:secret@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql://me:sec@ret/x@host/db", "postgresql://me:***@host/db"),
        ("sftp://:secret@host/x", "sftp://:***@host/x"),
        ("postgresql://host/db?password=secret&sslmode=x", "postgresql://host/db?password=***&sslmode=x"),
        ("https://h/k?X-Amz-Signature=secret", "https://h/k?X-Amz-Signature=***"),
        ("postgresql://me:sec ret@host/db", "postgresql://me:***@host/db"),
        ("no route to a://b:secret@c or d://e:secret@f", "no route to a://b:***@f"),
    ],
)  # fmt: skip
def test_secrets_are_not_shown(text, shown):
    assert without_secrets(text) == shown
