"""fio on a disk or in a file system: as many jobs as the disk has virtqueues, each on a CPU whose
requests go to a virtqueue of its own, 32 in flight."""

from __future__ import annotations

from pathlib import Path

from tests.kernel.guest.bed import run

#: Bytes of a request.
BLOCK_SIZE = 4096


def verify(disk: str, *, size: int, folder: Path) -> None:
    """Random writes all over a file of ``size`` bytes a job in ``folder``, where ``disk`` is
    mounted; what is read back must have their checksums (crc32c)."""
    words = ["--rw=randwrite", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]
    _run(disk, f"--directory={folder}", f"--size={size}", *words)


def read_and_write(disk: str, requests: int) -> None:
    """So many ``requests`` a job, anywhere on the disk; they must succeed."""
    _run(disk, f"--filename={disk}", "--rw=randrw", f"--number_ios={requests}")


def cpu_of_queues(disk: str) -> list[int]:
    """A CPU of each virtqueue that Linux uses of a disk, online or not."""
    queues = sorted(Path(f"/sys/block/{Path(disk).name}/mq").iterdir(), key=lambda q: int(q.name))
    return [int((queue / "cpu_list").read_text().split(",")[0]) for queue in queues]


def _run(disk: str, *words: str) -> None:
    cpus = cpu_of_queues(disk)
    for cpu in cpus:
        _bring_online(cpu)
    run(
        *("fio", "--name=job", f"--numjobs={len(cpus)}", f"--cpus_allowed={_listed(cpus)}"),
        *("--cpus_allowed_policy=split", "--ioengine=libaio", "--direct=1", "--iodepth=32"),
        *(f"--bs={BLOCK_SIZE}", *words),
    )


def _listed(cpus: list[int]) -> str:
    return ",".join(map(str, cpus))


def _bring_online(cpu: int) -> None:
    """A CPU that the kernel left off (``maxcpus``)."""
    online = Path(f"/sys/devices/system/cpu/cpu{cpu}/online")
    # CPU 0 has no such file: it cannot be taken off.
    if online.exists() and online.read_text() == "0\n":
        online.write_text("1")
