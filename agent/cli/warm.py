"""`edgetwin warm`: compiles the kernels into the cache, so that the first start does not have to."""

from __future__ import annotations

import argparse

HELP = (
    "Compiles every kernel into the cache ($CACHE_DIRECTORY, or $NUMBA_CACHE_DIR, or ~/.cache/edgetwin) and makes it "
    "durable. An installer's step: run it as the service's user, with the service's environment. "
    "Exit 1 when they cannot be compiled or kept; the agent then runs all the same, slower or with a slower start."
)
EXAMPLE = "sudo -u edgetwin CACHE_DIRECTORY=/var/cache/edgetwin edgetwin warm"


def configure(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def main(args: argparse.Namespace) -> int:
    """Prints each kernel with the seconds it took, then where they are kept."""
    from agent import kernelcache
    from agent.cli.fault import Failure

    for name, seconds in kernelcache.warm():
        print(f"{seconds:7.3f} s  {name}")
    words = kernelcache.problems()
    for each in words[:-1]:
        print(each)
    if not kernelcache.kept():
        raise Failure(words[-1] if words else "the kernels could not be kept")
    for each in words[-1:]:
        print(each)
    print(f"kept in {kernelcache.cache_folder()}")
    return 0
