"""What came in: commands and desired values are judged, asked of the main loop, and answered. Worker's thread only."""

from __future__ import annotations

import concurrent.futures
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.cloud import commands, payload
from agent.cloud.commands import Command, Desired, Refused
from agent.cloud.outbox import Outbox
from agent.cloud.payload import Stamp
from agent.cloud.publisher import Out
from agent.cloud.topics import Topics
from agent.cloud.uplink import Message
from agent.config.types import Config
from agent.twin.records import Ask, Event, Outcome

log = logging.getLogger("edgetwin.cloud")

ANSWERS_KEPT = 1000
ANSWERS_BOUND = 4 << 20
"""Bytes of answers in memory."""
CHANGING = frozenset({"write", "loop", "relearn"})
"""Operations whose answers outlive a restart: done twice, the others do no harm."""
GRACE = 2.0
"""Seconds after its deadline in which the main loop may still answer a request."""
DESIRED_PATIENCE = 30.0
"""Seconds that one name of `desired` may take."""
ANSWERS_FACT, DESIRED_FACT = "answers", "desired"

Future = concurrent.futures.Future[Outcome]


@dataclass(frozen=True, slots=True)
class Answered:
    """The main loop has answered; posted into the worker's queue. `name`: of a desired value, else None."""

    token: str
    outcome: Outcome
    name: str | None = None


@dataclass
class _Running:
    command: Command
    topic: str
    correlation: bytes | None
    deadline: float
    future: Future


@dataclass
class _Settling:
    """A `desired` whose names are being set."""

    desired: Desired
    left: set[str]
    deadline: float
    applied: list[str] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)


@dataclass
class Inbox:
    """Judges messages and answers them. `ask` hands a request to the main loop; `post` brings its answer back here."""

    config: Config
    topics: Topics
    outbox: Outbox
    key: bytes | None
    ask: Callable[[Ask], Future]
    post: Callable[[Answered], None]
    send: Callable[[Out], None]
    on_event: Callable[[Event], None]
    stamp: Callable[[], Stamp]
    mono: Callable[[], float]
    rebirth: Callable[[], None]
    resend: Callable[[str, int, int], tuple[int, int] | None]
    _running: dict[str, _Running] = field(default_factory=dict)
    _settling: _Settling | None = None
    _waiting_for_clock: Message | None = None
    _refused_whole: tuple[int, str] | None = None

    def __post_init__(self) -> None:
        known = self.outbox.get(ANSWERS_FACT)
        self._answers: dict[str, dict[str, Any]] = known if isinstance(known, dict) else {}
        last = self.outbox.get(DESIRED_FACT)
        self._ack: dict[str, Any] | None = last if isinstance(last, dict) else None

    def take(self, message: Message) -> None:
        """One message of a subscription."""
        if message.topic == self.topics.desired:
            self._desired(message)
            return
        op = self.topics.operation(message.topic)
        if op is not None and message.payload:  # an empty body is how a retained one is taken back
            self._command(op, message)

    def tick(self, now: float) -> None:
        """Answers what the main loop has not answered in time, so that every command gets an answer."""
        late = [one for one in self._running.values() if now > one.deadline + GRACE]
        for one in late:
            one.future.cancel()
            self.answered(
                Answered(one.command.id, Outcome(False, error="no answer in time; it may have been done"))
            )
        settling = self._settling
        if settling is not None and now > settling.deadline + GRACE:
            for name in sorted(settling.left):
                self._settled(str(settling.desired.ver), name, Outcome(False, error="no answer in time"))

    def clock_set(self) -> None:
        """The clock is right now: a `desired` that was refused for its sake is looked at again."""
        waiting, self._waiting_for_clock = self._waiting_for_clock, None
        if waiting is not None:
            self._desired(waiting)

    # -- commands -----------------------------------------------------------------------------------------------

    def _command(self, op: str, message: Message) -> None:
        now_ms = self.stamp().ms(self.mono())
        try:
            body = commands.open_envelope(message.topic, message.payload, self.key)
            known = self._answers.get(str(body.get("id")))
            if known is not None and not message.retained:
                self._repeat(str(body["id"]), known, message)
                return
            command = commands.judge(
                op,
                body,
                retained=message.retained,
                config=self.config.commands,
                now_ms=now_ms,
                synced=self.stamp().synced,
            )
            deadline = self.mono() + (command.exp - now_ms) / 1000
            self._carry_out(command, message, deadline)
        except Refused as refusal:
            self._audit(op, None, f"refused: {refusal.reason}", refused=True)
            if refusal.id is not None:
                self._refuse(refusal.id, refusal.reason, body, message)

    def _carry_out(self, command: Command, message: Message, deadline: float) -> None:
        topic = self._answer_topic(command.id, message)
        try:
            if command.op == "rebirth":
                self.rebirth()
                outcome = Outcome(True)
            elif command.op == "resend":
                outcome = self._resend(command)
            else:
                ask = commands.to_ask(command, self.config, deadline)
                self._remember(command.id, command.exp, None, keep=command.op in CHANGING)
                future = self.ask(ask)
                self._running[command.id] = _Running(command, topic, message.correlation, deadline, future)
                future.add_done_callback(lambda done: self.post(Answered(command.id, _outcome(done))))
                return
        except Refused as refusal:
            outcome = Outcome(False, error=refusal.reason)
        self._finish(command, topic, message.correlation, outcome)

    def answered(self, answer: Answered) -> None:
        """The main loop's answer has come."""
        if answer.name is not None:
            self._settled(answer.token, answer.name, answer.outcome)
            return
        running = self._running.pop(answer.token, None)
        if running is not None:
            self._finish(running.command, running.topic, running.correlation, answer.outcome)

    def _finish(self, command: Command, topic: str, correlation: bytes | None, outcome: Outcome) -> None:
        body = self._response(command.id, outcome)
        self._remember(command.id, command.exp, body, keep=command.op in CHANGING)
        self._send_answer(topic, body, correlation)
        said = "done" if outcome.ok else f"refused: {outcome.error}"
        what = command.body.get("tag") or command.body.get("loop") or command.body.get("device") or ""
        self._audit(f"{command.op} {what}".strip(), command.by, said, refused=not outcome.ok)

    def _repeat(self, id_: str, known: Mapping[str, Any], message: Message) -> None:
        """The same id again: the same answer, nothing done twice."""
        if id_ in self._running:
            return  # its answer is on its way
        body = known.get("body")
        if body is None:
            outcome = Outcome(False, error="interrupted by a restart; whether it was done is not known")
            body = self._response(id_, outcome)
        self._send_answer(self._answer_topic(id_, message), body, message.correlation)

    def _refuse(self, id_: str, reason: str, asked: Mapping[str, Any], message: Message) -> None:
        """Answers a command that is not carried out; where it can be told how long it is valid, once for all."""
        body = self._response(id_, Outcome(False, error=reason))
        exp, now_ms = asked.get("exp"), self.stamp().ms(self.mono())
        if (
            isinstance(exp, int)
            and now_ms <= exp <= now_ms + commands.FARTHEST_EXPIRY
            and not message.retained
        ):
            self._remember(id_, exp, body, keep=False)
        self._send_answer(self._answer_topic(id_, message), body, message.correlation)

    def _send_answer(self, topic: str, body: Mapping[str, Any], correlation: bytes | None) -> None:
        data = payload.encode(body)
        self.send(Out(topic, data, again=True, correlation=correlation, answer_to=str(body["id"])))

    def _answer_topic(self, id_: str, message: Message) -> str:
        """The MQTT 5 response topic where it lies under resp/, else resp/<id>."""
        wanted = message.response_topic
        if wanted and wanted.startswith(self.topics.response("")) and not set("+#") & set(wanted):
            return wanted
        return self.topics.response(id_)

    def _response(self, id_: str, outcome: Outcome) -> dict[str, Any]:
        return self.stamp().head(self.mono()) | {
            "id": id_,
            "ok": outcome.ok,
            "applied": payload.plain(outcome.applied),
            "readback": payload.plain(outcome.readback),
            "error": None if outcome.error is None else commands.readable(outcome.error),
            "result": _clean(outcome.result),
        }

    def _remember(self, id_: str, exp: int, body: Mapping[str, Any] | None, *, keep: bool) -> None:
        """Keeps an answer until its command expires, so that no repetition is done twice; `keep`: over restarts too."""
        now_ms = self.stamp().ms(self.mono())
        answers = {key: one for key, one in self._answers.items() if one["exp"] >= now_ms}
        size = 0 if body is None else len(payload.encode(body))
        answers[id_] = {"exp": exp, "body": body, "keep": keep, "size": size}
        # those go first that may safely be done once more, the oldest before the others
        leaving = sorted(
            (key for key in answers if key != id_), key=lambda key: bool(answers[key].get("keep"))
        )
        total = sum(one.get("size", 0) for one in answers.values())
        for key in leaving:
            if len(answers) <= ANSWERS_KEPT and total <= ANSWERS_BOUND:
                break
            total -= answers.pop(key).get("size", 0)
        self._answers = answers
        if keep:
            self.outbox.put(ANSWERS_FACT, {key: one for key, one in answers.items() if one.get("keep")})

    def _resend(self, command: Command) -> Outcome:
        found = self.resend(*commands.resend_range(command.body, self.config))
        if found is None:
            return Outcome(False, error="none of these are kept (outbox.keep)")
        return Outcome(True, result={"from": found[0], "to": found[1]})

    # -- desired ------------------------------------------------------------------------------------------------

    def _desired(self, message: Message) -> None:
        if not message.payload:
            return
        try:
            desired = commands.read_desired(commands.open_envelope(message.topic, message.payload, self.key))
        except Refused as refusal:
            self._audit("desired", None, f"refused: {refusal.reason}", refused=True)
            return
        if self._ack is not None and desired.ver <= self._ack["ver"]:
            self._publish_ack(self._ack)
            return
        if self._settling is not None and desired.ver <= self._settling.desired.ver:
            return
        stamp = self.stamp()
        reason = None
        if not self.config.commands.enabled:
            reason = "commands are not enabled"
        elif not stamp.synced:
            reason = "clock"
            self._waiting_for_clock = message
        elif desired.exp is not None and stamp.ms(self.mono()) > desired.exp:
            reason = "expired"
        settling = _Settling(desired, set(desired.set), self.mono() + DESIRED_PATIENCE)
        if reason is not None:
            settling.rejected = dict.fromkeys(desired.set, reason)
            if (desired.ver, reason) != self._refused_whole:  # it comes again at every connect
                self._refused_whole = (desired.ver, reason)
                self._audit(f"desired {desired.ver}", desired.by, f"refused: {reason}", refused=True)
            self._end_desired(settling, keep=reason == "expired")
            return
        self._settling = settling
        for name, value in desired.set.items():
            self._set(settling, name, value)
        if not settling.left:
            self._end_desired(settling)

    def _set(self, settling: _Settling, name: str, value: object) -> None:
        desired = settling.desired
        patience = round(1000 * DESIRED_PATIENCE)
        if desired.exp is not None:  # as integers: `exp` may be larger than any float
            patience = min(patience, desired.exp - self.stamp().ms(self.mono()))
        deadline = self.mono() + patience / 1000
        try:
            future = self.ask(commands.desired_ask(name, value, desired.by, deadline))
        except Refused as refusal:
            settling.left.discard(name)
            settling.rejected[name] = refusal.reason
            self._audit(f"desired {name}", desired.by, f"refused: {refusal.reason}", refused=True)
            return
        token = str(desired.ver)
        future.add_done_callback(lambda done: self.post(Answered(token, _outcome(done), name)))

    def _settled(self, token: str, name: str, outcome: Outcome) -> None:
        settling = self._settling
        if settling is None or str(settling.desired.ver) != token:
            return
        settling.left.discard(name)
        if outcome.ok:
            settling.applied.append(name)
        else:
            settling.rejected[name] = outcome.error or "refused"
        said = "done" if outcome.ok else f"refused: {outcome.error}"
        self._audit(f"desired {name}", settling.desired.by, said, refused=not outcome.ok)
        if not settling.left:
            self._end_desired(settling)

    def _end_desired(self, settling: _Settling, *, keep: bool = True) -> None:
        self._settling = None
        ack = {
            "ver": settling.desired.ver,
            "applied": settling.applied,
            "rejected": {name: commands.readable(why) for name, why in settling.rejected.items()},
            "superseded": [],
        }
        if keep:
            self._ack = ack
            self.outbox.put(DESIRED_FACT, ack)
        self._publish_ack(ack)

    def superseded(self, name: str) -> None:
        """Somebody on the spot has changed what `desired` had set: that wins, and the central side is told."""
        ack = self._ack
        if ack is None or name not in ack["applied"] or name in ack["superseded"]:
            return
        ack["superseded"].append(name)
        self.outbox.put(DESIRED_FACT, ack)
        self._publish_ack(ack)

    def retell(self) -> None:
        """The last acknowledgement again, at every connect: the broker may be another one."""
        if self._ack is not None and self.config.commands.enabled:
            self._publish_ack(self._ack)

    def _publish_ack(self, ack: Mapping[str, Any]) -> None:
        body = self.stamp().head(self.mono()) | dict(ack)
        self.send(Out(self.topics.desired_ack, payload.encode(body), retain=True, again=True))

    # -- audit --------------------------------------------------------------------------------------------------

    def _audit(self, what: str, by: str | None, said: str, *, refused: bool) -> None:
        text = (
            f"{commands.readable(what)} by {commands.readable(by or 'somebody')}: {commands.readable(said)}"
        )
        name = "command_refused" if refused else "command"
        self.on_event(Event(None, name, "warning" if refused else "info", "raised", text, self.mono()))


def _outcome(future: Future) -> Outcome:
    try:
        return future.result(timeout=0)
    except concurrent.futures.CancelledError:
        return Outcome(False, error="the agent is stopping")
    except Exception:
        log.exception("a request failed; this is a fault of the program")
        return Outcome(False, error="a fault of the agent")


def _clean(result: Any) -> Any:
    """A result as JSON may carry it."""
    if isinstance(result, Mapping):
        return {str(key): _clean(value) for key, value in result.items()}
    if isinstance(result, list | tuple):
        return [_clean(value) for value in result]
    if result is None or isinstance(result, bool | int | float | str):
        return payload.plain(result)
    return json.loads(json.dumps(result, default=str))
