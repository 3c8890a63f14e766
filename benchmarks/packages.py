"""wrk and nginx: found, or installed from Debian's packages.

Where that is impossible, one line says so, and None is what there is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def find(program: str, package: str) -> str | None:
    """The path of a program, installing its package if need be."""
    return _which(program) or (_install(program, package) and _which(program)) or None


def _which(program: str) -> str | None:
    return shutil.which(program, path=_PATH)


def _install(program: str, package: str) -> bool:
    if os.geteuid() != 0 or not _which("apt-get"):
        print(f"no {program}: install {package} as root; its rows are skipped", file=sys.stderr)
        return False
    print(f"installing {package}", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", package]):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            print(
                f"no {program}: {' '.join(command)}: {why}; its rows are skipped", file=sys.stderr
            )
            return False
    if program == "nginx":
        _stop_service()
    return True


def _stop_service() -> None:
    """Debian starts nginx on port 80 when it is installed, and at boot; we want the program."""
    for command in (["service", "nginx", "stop"], ["update-rc.d", "nginx", "disable"]):
        if _which(command[0]):
            subprocess.run(command, capture_output=True)
