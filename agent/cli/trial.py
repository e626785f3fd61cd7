"""`edgetwin try`: a device, its tags and a broker on one line; the agent runs with what they say."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.fault import Failure, tell
from agent.config.oneline import OneLine
from agent.config.paths import state_dir

if TYPE_CHECKING:
    from agent.config.types import Config
    from agent.runtime.service import Service

HELP = """\
From nothing to values at a broker in one line. Makes a configuration of the line, checks it as `check` does, and runs
it as `run` does, with forecasts and health, until Ctrl-C. It only reads: nothing is ever written to the device.

a tag is 'NAME: TABLE ADDRESS [TYPE] [ORDER] [KEY=VALUE ...] [UNIT]'
  TABLE    holding, input, coil, discrete: ADDRESS as on the wire, from 0; modicon: the printed number, as 40101
  TYPE     uint16 unless given; int16 int32 uint32 int64 uint64 float32 float64 bcd16 bcd32 string bool
  ORDER    ABCD unless given; CDAB BADC DCBA (--order gives it for all)
  KEY      as in a configuration: scale=0.1 offset=-40 bit=3 bits=8-11 length=16 every=10s counter=true unit=steps
a range of addresses is many tags: one begins at its first address, the next behind it, and so on for as long as one
begins within the range; each is called by NAME and its address: 'v: holding 0-98 float32' is v0, v2, v4 ... v98."""
EXAMPLE = """\
edgetwin try tcp://10.0.0.5:502 --unit 1 --profile eastron-sdm630 --mqtt mqtt://broker
  edgetwin try tcp://10.0.0.5:502 --tag 'temperature: holding 100 float32 °C' --tag 'level: input 9 scale=0.1 %' \\
    --tag 'v: holding 0-98 float32' --mqtt mqtt://127.0.0.1 --save edgetwin.yaml"""

CONFIG = "try.yaml"
"""In the state folder: the configuration of the last line, for `status`, `read` and SIGHUP."""
MOST_BESIDE = 2000.0
"""Values a second for which the agent does not wait for compiled kernels."""
NICE = 10
LOOK_EVERY = 0.1
PATIENCE = 5.0
"""Seconds without a value or a broker after which it is said what is wrong."""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("url", metavar="URL", help="the device: tcp://HOST:502, rtu:///dev/ttyUSB0?baud=9600&parity=N, …")
    add("--unit", metavar="N", help="its unit id (1)")
    add("--tag", action="append", default=[], metavar="TAG", help="what to read; again for each, see above")
    add("--profile", metavar="NAME", help="a make of device whose tags are known, or a file of them")
    add("--mqtt", metavar="URL", help="the broker: mqtt://HOST, mqtts://HOST, ws://, wss:// or unix:///PATH")
    add("--username", metavar="NAME", help="user name at the broker")
    add("--password-file", metavar="FILE", help="file that holds the password at the broker")
    add("--ca", metavar="FILE", help="certificates that sign the broker's (PEM)")
    add("--every", metavar="TIME", help="period (1s)")
    add("--order", metavar="ORDER", help="order of bytes and words: ABCD, CDAB, BADC or DCBA")
    add("--gateway", metavar="NAME", help="this gateway's name, no other's (the machine's)")
    add("--device", metavar="NAME", help="the device's name in the topics (the profile's, or device)")
    add("--page", metavar="HOST:PORT", help="where the status page listens (127.0.0.1:8080), or off")
    add(
        "--state-dir", metavar="DIR", help="folder of what is to outlive it (~/.local/state/edgetwin/GATEWAY)"
    )
    add(
        "--save",
        metavar="FILE",
        help="write the configuration there, for `edgetwin run FILE`; never overwrites",
    )
    add("--for", dest="seconds", metavar="TIME", help="end by itself after this (30s, 2m)")


def main(args: argparse.Namespace) -> int:
    from agent.cli.run import HangUp, serve, take

    hang_up = HangUp()
    line, seconds = line_of(args), _seconds(args.seconds)
    path = Path(line.state_dir) / CONFIG if args.save is None else Path(args.save).absolute()
    text, config = _checked(line, path, named=args.gateway is not None)
    if args.save is not None and path.exists():
        raise Failure(
            f"--save {args.save}: the file is there already, and is never overwritten; give another name"
        )
    _look_for_password(config)
    with take(state_dir(config), given_by="--state-dir"):
        _write(path, text, saved=args.save is not None)
        _tell(config, path, saved=args.save is not None)
        level = args.log_level or ("debug" if args.verbose else "warning")
        beside = functools.partial(_beside, seconds=seconds)
        with _kernels_beside(config):
            status = serve(config, hang_up, read_only, level=level, beside=beside)
    _tell_how_to_keep(args.save)
    return status


def line_of(args: argparse.Namespace) -> OneLine:
    """What was typed, with the names that it leaves out, and with paths that hold from any folder."""
    if args.mqtt is None:
        raise Failure("--mqtt is missing: give the broker's URL, as --mqtt mqtt://HOST", status=2)
    gateway = args.gateway if args.gateway is not None else socket.gethostname().partition(".")[0]
    profile: str | None = args.profile
    shipped = profile is not None and "/" not in profile and not profile.endswith((".yaml", ".yml"))
    return OneLine(
        url=args.url,
        mqtt=args.mqtt,
        gateway=gateway,
        state_dir=str(_state_dir(args.state_dir, gateway)),
        device=args.device or (str(profile) if shipped else "device"),
        tags=tuple(args.tag),
        profile=profile if shipped else _absolute(profile),
        unit=args.unit,
        every=args.every,
        order=args.order,
        username=args.username,
        password_file=_absolute(args.password_file),
        ca=_absolute(args.ca),
        page=args.page,
    )


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


def _state_dir(given: str | None, gateway: str) -> Path:
    if given is not None:
        return Path(given).absolute()
    base = os.environ.get("XDG_STATE_HOME")
    try:
        home = Path(base) if base else Path.home() / ".local" / "state"
    except RuntimeError:
        raise Failure("there is no home folder to keep the state in; give a folder by --state-dir") from None
    return home / "edgetwin" / gateway


def _seconds(text: str | None) -> float | None:
    from agent.config.scalars import Wrong, duration

    try:
        seconds = None if text is None else duration(text)
    except Wrong as wrong:
        raise Failure(f"--for: {wrong.words}", status=2) from None
    if seconds is not None and seconds <= 0:
        raise Failure(f"--for: {text} is no time to run", status=2)
    return seconds


def _checked(line: OneLine, path: Path, *, named: bool) -> tuple[str, Config]:
    """The configuration, as text and as `run` takes it; each thing wrong is told as one line. Raises Failure."""
    from agent.config import oneline
    from agent.config.load import for_run, parse
    from agent.config.scalars import Wrong

    try:
        text = oneline.text(line)
    except Wrong as wrong:
        raise Failure(wrong.words, status=2) from None
    loaded = parse(text, str(path))
    words: dict[str, None] = {}  # each once: one --tag may give many tags
    for problem in (*loaded.problems, *for_run(loaded)):
        told = str(problem) if problem.file != str(path) else oneline.in_words(problem, line)
        if problem.path == "gateway" and not named:
            told = f"this machine's name does not do: {problem.what}; name the gateway by --gateway NAME"
        if problem.severity == "error":
            words[told] = None
        else:
            tell(f"edgetwin: {told}", priority=4)
    for told in list(words)[:-1]:
        tell(f"edgetwin: {told}")
    if words or loaded.config is None:
        raise Failure(list(words)[-1], status=2)
    return text, read_only(loaded.config)


def _look_for_password(config: Config) -> None:
    """Before anything is written. Raises Failure."""
    from agent.config.secrets import SecretProblem, reveal

    try:
        if config.mqtt.password is not None:
            reveal(config.mqtt.password)
    except SecretProblem as problem:
        raise Failure(f"--password-file: {problem}") from None


def read_only(config: Config) -> Config:
    """The configuration with no tag that can be written, whatever a profile says."""
    devices = {}
    for name, device in config.devices.items():
        tags = {key: dataclasses.replace(tag, write=None) for key, tag in device.tags.items()}
        devices[name] = dataclasses.replace(device, tags=tags)
    return dataclasses.replace(config, devices=devices)


def _write(path: Path, text: str, *, saved: bool) -> None:
    try:
        with path.open("x" if saved else "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from None


def _tell(config: Config, path: Path, *, saved: bool) -> None:
    from agent.cloud.topics import Topics
    from agent.config.scalars import duration_text

    topics = Topics(config.mqtt.root, str(config.gateway))
    [device] = config.devices.values()
    many = f"{len(device.tags)} tag{'' if len(device.tags) == 1 else 's'}"
    watch = f"edgetwin watch {shlex.quote(config.mqtt.url)} --gateway {config.gateway}"
    rows = [
        ("device", f"{device.url.text} unit {device.unit}: {many} every {duration_text(device.every)}"),
        ("broker", config.mqtt.url),
        (
            "values",
            f"{topics.of('data', device.name)}   each reading",
        ),
        ("", f"{topics.of('twin', device.name)}   the latest of each tag, with health; retained"),
        ("", f"{topics.of('forecast', device.name)}   forecasts with intervals; retained"),
        ("look", watch),
        ("state", str(config.state_dir)),
        ("saved" if saved else "config", str(path)),
    ]
    for head, words in rows:
        print(f"{head:8}{words}", flush=True)


def _tell_how_to_keep(saved: str | None) -> None:
    if saved is None:
        print("to keep it: the same line with --save FILE, then edgetwin run FILE", flush=True)
    else:
        print(f"to go on: edgetwin run {shlex.quote(saved)}", flush=True)


@contextlib.contextmanager
def _kernels_beside(config: Config) -> Iterator[None]:
    """Where nothing is compiled yet, a process of its own does it, for the next start, and this one goes on without.

    The references take no more time than kernels do for so few tags, and nothing is controlled here.
    """
    from agent import kernelcache

    rate = sum(1.0 / tag.every for device in config.devices.values() for tag in device.tags.values())
    if rate > MOST_BESIDE or not kernelcache.cold():
        yield
        return
    kernelcache.stand_in("the kernels are being compiled for the next start; plain NumPy computes until then")
    nothing = subprocess.DEVNULL
    compiler = subprocess.Popen(
        [sys.executable, "-m", "agent", "warm"],
        stdin=nothing,
        stdout=nothing,
        stderr=nothing,
        start_new_session=True,  # Ctrl-C is this process's
    )
    try:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, compiler.pid, NICE)
        yield
    finally:
        compiler.terminate()
        compiler.wait()


async def _beside(service: Service, stop: asyncio.Event, *, seconds: float | None) -> None:
    """Tells the page, and what comes of it all; ends the service after so many seconds."""
    page = service.config.page
    if page is not None and service.front.port is not None:
        host = f"[{page.host}]" if ":" in page.host else page.host
        print(f"page    http://{host}:{service.front.port}", flush=True)
    try:
        async with asyncio.timeout(seconds):
            await _tell_first(service)
            await stop.wait()
    except TimeoutError:
        stop.set()


async def _tell_first(service: Service) -> None:
    """Returns when a good value is read and the broker is there; tells what is in the way when that takes long."""
    from agent import kernelcache

    begin = service.clock.mono()
    told = False
    while True:
        status = service.status()
        counts = status["counts"]
        if counts["values_read"] > counts["values_bad"] and status["uplink"]["state"] == "online":
            break
        if not told and service.clock.mono() - begin > PATIENCE:
            told = True
            problems = [one for one in status["problems"] if one not in kernelcache.problems()]
            for problem in problems or ["no tag has a good value yet"]:
                print(f"problem {problem}", flush=True)
        await asyncio.sleep(LOOK_EVERY)
    print("values are read and published; Ctrl-C ends it", flush=True)
