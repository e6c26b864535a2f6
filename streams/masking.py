"""Values for people's eyes: what looks like a secret is masked, what is long is cut.

It is a guess, for screens and pages that are passed on; what is stored stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, cast

__all__ = ["MASK", "masked", "masked_text", "shortened"]

MASK: Final = "•••"

#: Names of fields whose values are secrets, whatever they look like. `tokens_in` and the like are counts.
_NAMES: Final = (
    r"(?:[\w-]*[_-])?(?:pass(?:word|wd|phrase)?|pwd|secret|secrets|token|api[_-]?key|apikey|access[_-]?key|"
    r"private[_-]?key|client[_-]?secret|authorization|credentials?|cookie|set-cookie|pin|cvv|cvc)"
)
_NAME: Final = re.compile(_NAMES, re.IGNORECASE)

#: Forms by which well-known services' secrets are told: what each must begin with, and how long it is at least.
_FORMS: Final = re.compile(
    r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic, Stripe
    r"|\bgh[opsur]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"
    r"|\bglpat-[\w-]{16,}|\bxox[abprs]-[\w-]{10,}|\bhf_[A-Za-z0-9]{20,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[\w-]{30,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # a JSON web token
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_BEARER: Final = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9+/._~=-]{8,}", re.IGNORECASE)
_IN_URL: Final = re.compile(r"(\w://[^\s:/@]*:)[^\s/@]+(?=@)")
_ASSIGNED: Final = re.compile(
    rf"(?<![\w-])({_NAMES}[\"']?\s*[=:]\s*[\"']?)(?![\"'\s])([^\s\"',;&]{{3,}})", re.IGNORECASE
)


def masked(value: Any) -> Any:
    """*value*, of JSON's types, with what looks like a secret masked."""
    if isinstance(value, str):
        return masked_text(value)
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, Any]", value)
        return {name: MASK if _hides(name, inner) else masked(inner) for name, inner in fields.items()}
    if isinstance(value, list | tuple):
        return [masked(inner) for inner in cast("list[Any]", value)]
    return value


def masked_text(text: str) -> str:
    """*text* with what looks like a secret masked."""
    text = _FORMS.sub(MASK, text)
    text = _BEARER.sub(rf"\1 {MASK}", text)
    text = _IN_URL.sub(rf"\1{MASK}", text)
    return _ASSIGNED.sub(rf"\1{MASK}", text)


def shortened(text: str, width: int | None) -> str:
    """*text* on one line, of *width* characters at most; None: whole."""
    if width is None:
        return text
    flat = text[: width * 4].replace("\r", "").replace("\n", " ⏎ ").replace("\t", " ")
    return flat if len(flat) <= width and len(text) <= width * 4 else f"{flat[: max(0, width - 1)]}…"


def _hides(name: str, value: Any) -> bool:
    return value not in (None, "", [], {}) and not isinstance(value, bool) and _NAME.fullmatch(name) is not None
