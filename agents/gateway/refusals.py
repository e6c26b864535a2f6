"""What a client is told that gets no answer: an HTTP status, what happened, and how to mend it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmagentos.streams.errors import (
    AgentError,
    AnswerError,
    AnswerTimeout,
    BrokerError,
    DeliveryError,
    InputError,
    LLMAgentOSError,
    RecordError,
    RecordTooLarge,
    SchemaError,
    UnknownAgent,
)

__all__ = ["Refused", "body_of", "status_of"]

#: The first that an error is an instance of.
_STATUS: tuple[tuple[type[LLMAgentOSError], int], ...] = (
    (UnknownAgent, 404),
    (AnswerTimeout, 504),
    (AnswerError, 502),
    (RecordTooLarge, 413),
    (RecordError, 400),
    (InputError, 400),
    (BrokerError, 503),
    (DeliveryError, 503),
    (SchemaError, 503),
    (AgentError, 500),
)

#: OpenAI's names, by which its clients raise.
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


class Refused(InputError):
    """A request is refused with an HTTP status."""

    def __init__(self, status: int, what: str, *, fix: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(what, fix=fix)
        self.status = status
        self.headers = dict(headers or {})


def status_of(error: LLMAgentOSError) -> int:
    """The HTTP status of *error*."""
    if isinstance(error, Refused):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def body_of(error: LLMAgentOSError) -> dict[str, Any]:
    """*error* as JSON, in OpenAI's form, so that its clients show it; `kept` and `fix` beside it."""
    status = status_of(error)
    said = f"{error.what}; {error.fix}" if error.fix else error.what
    found: dict[str, Any] = {
        "message": said,
        "type": _TYPES.get(status, "api_error"),
        "param": None,
        "code": "model_not_found" if isinstance(error, UnknownAgent) else None,
    }
    return {"error": found | {name: text for name, text in (("kept", error.kept), ("fix", error.fix)) if text}}
