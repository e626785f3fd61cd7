"""The token of the page's control, and whoever guesses at it."""

from __future__ import annotations

import hmac
import logging

from agent.page.wire import Refused

log = logging.getLogger("edgetwin.page")

WRONG_TOKENS, LOCKED_FOR = 5, 60.0
MOST_CLIENTS = 1000
"""Addresses that are remembered; beyond them the one that was wrong longest ago is forgotten."""


class TokenGuard:
    """Judges tokens. Five wrong ones from one address within a minute lock that address for a minute from the last on,
    for the right one too; so nobody can lock out another. Times are monotonic seconds."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._wrong: dict[str, list[float]] = {}

    def check(self, given: str, client: str, now: float) -> None:
        """Returns where the token is right. Raises Refused: 403 without any or with a wrong one, 429 while locked."""
        if not given:
            raise Refused(403, "this needs the token of the page (page.token)")
        wrong = [t for t in self._wrong.get(client, ()) if now - t < LOCKED_FOR]
        if len(wrong) >= WRONG_TOKENS:
            raise Refused(429, "locked for a minute after five wrong tokens")
        self._wrong.pop(client, None)
        if hmac.compare_digest(given.encode(), self._token):
            return
        wrong.append(now)
        if len(wrong) >= WRONG_TOKENS:
            wrong = [now] * WRONG_TOKENS
            log.warning(
                "the page's control is locked for %s for a minute: %d wrong tokens", client, WRONG_TOKENS
            )
        self._wrong[client] = wrong
        if len(self._wrong) > MOST_CLIENTS:
            del self._wrong[next(iter(self._wrong))]
        raise Refused(403, "wrong token")
