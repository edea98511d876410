"""Other people's NBD clients, run as their users run them."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.means import find_program

#: Seconds after which a client hangs.
LIMIT = 60.0
JOBS = 4


def run(*command: str, check: bool = True) -> str:
    """What a program prints."""
    program = find_program(command[0])
    assert program is not None, command[0]
    done = subprocess.run(
        [program, *command[1:]], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def run_json(*command: str) -> Any:
    """The same, of a program that prints JSON."""
    return json.loads(run(*command))


@dataclass(frozen=True)
class Verified:
    """What fio found, all jobs together."""

    #: The first errno of a job; 0: none. Data that is not what was written is EILSEQ.
    error: int
    written: int
    #: Requests that read something back.
    read: int
    #: Bytes of both.
    written_bytes: int
    read_bytes: int


def fio_command(uri: str, **options: object) -> list[str]:
    """fio on an NBD server. Its jobs are threads: one pid, one SIGKILL."""
    merged = {
        "name": "job",
        "ioengine": "nbd",
        "uri": uri,
        "iodepth": 32,
        "verify_state_save": 0,
        "output_format": "json",
        **options,
    }
    return [
        "fio",
        "--thread",
        *(f"--{name.replace('_format', '-format')}={value}" for name, value in merged.items()),
    ]


def fio_verified(uri: str, folder: Path, **options: object) -> Verified:
    """Writes by four jobs, each in an area of its own, whose blocks carry checksums and are
    read back and compared."""
    command = fio_command(
        uri,
        rw="randwrite",
        numjobs=JOBS,
        offset_increment=options["size"],
        verify="crc32c",
        verify_fatal=1,
        **options,
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, cwd=folder)
    found = verified(done.stdout)
    assert (done.returncode == 0) == (found.error == 0), done.stdout + done.stderr
    return found


def verified(output: str) -> Verified:
    """From fio's JSON, which its nbd engine puts words before."""
    jobs = json.loads(output[output.index("{") :])["jobs"]
    return Verified(
        next((job["error"] for job in jobs if job["error"]), 0),
        sum(job["write"]["total_ios"] for job in jobs),
        sum(job["read"]["total_ios"] for job in jobs),
        sum(job["write"]["io_bytes"] for job in jobs),
        sum(job["read"]["io_bytes"] for job in jobs),
    )
