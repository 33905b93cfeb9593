"""URLs as they may be shown to anybody: in errors, in the start-up report, in logs."""

import re

_USERINFO = re.compile(r"(://[^\s:@/]*):.*@")  # to the last @: a password may hold one unquoted
_PARAMETER = re.compile(
    r"([?&][^=&\s]*(?:pass|pwd|secret|token|key|credential|sig)[^=&\s]*=)[^&\s]*", re.IGNORECASE
)


def without_secrets(text: str) -> str:
    """The URL, or a line with URLs in it, with *** for what may be a password or a key.

    Of a line it may take more than that: a password that was not quoted can hold anything.
    """
    return _PARAMETER.sub(r"\1***", _USERINFO.sub(r"\1:***@", text))
