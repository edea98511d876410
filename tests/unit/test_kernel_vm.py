"""The test bed without a kernel: which one, the initramfs, QEMU's command line, boots that fail."""

from __future__ import annotations

import lzma
import stat
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.kernel import __main__ as bed_command
from tests.kernel import fetch, initramfs, vm
from tests.kernel.fetch import BedError, Kernel
from tests.kernel.initramfs import Cpio, load_order
from tests.kernel.vm import VM, Machine, Stopped, Tripped, command_line

RELEASE = "6.12.9+deb13-amd64"


def test_newest_release_is_by_number_and_plain() -> None:
    names = [
        "linux-image-6.12.94+deb13-amd64",
        "linux-image-6.12.107+deb13-amd64",
        "linux-image-6.12.108+deb13-cloud-amd64",
        "linux-image-6.12.108+deb13-amd64-dbg",
        "linux-image-6.120.1+deb14-amd64",
        "linux-image-7.2.13+deb14-amd64",
    ]
    assert fetch.newest(names, "6.12", 0) == "6.12.107+deb13-amd64"
    assert fetch.newest(names, "6.12", 107) == "6.12.107+deb13-amd64"
    assert fetch.newest(names, "6.12", 108) is None
    assert fetch.newest(names, "7.2", 0) == "7.2.13+deb14-amd64"


class FakeApt:
    """Suites and the one kernel that each has; nothing can be downloaded."""

    images: ClassVar[dict[str, str]] = {}

    def __init__(self, folder: Path, suites: Sequence[str]) -> None:
        assert folder.is_dir()
        [self.suite] = suites

    def run(self, program: str, *args: str) -> str:
        if program == "apt-cache":
            return f"linux-doc\nlinux-image-{self.images[self.suite]}\n"
        raise BedError(f"{self.suite}: {args[-1]}")


@pytest.fixture
def apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """What ``FakeApt`` has, by suite."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(fetch, "CACHE", tmp_path)
    monkeypatch.setattr(fetch, "find_program", lambda name: name)
    monkeypatch.setattr(fetch, "Apt", FakeApt)
    monkeypatch.setattr(FakeApt, "images", images := {})
    return images


def test_suite_that_has_moved_on_is_followed_by_the_next_one(apt: dict[str, str]) -> None:
    apt["sid"] = "7.3.1+deb14-amd64"
    apt["forky"] = "7.2.12+deb14-amd64"
    with pytest.raises(BedError, match=r"^forky: linux-image-7\.2\.12\+deb14-amd64$"):
        fetch.kernel("7.2")


def test_no_release_names_the_suites_and_what_is_wanted(apt: dict[str, str]) -> None:
    apt["trixie"] = "6.12.113+deb13-amd64"
    with pytest.raises(BedError, match=r"^apt has no linux-image-6\.12\.114 or newer in trixie$"):
        fetch.kernel("6.12")
    apt |= dict.fromkeys(("sid", "forky", "trixie-backports"), "7.3.1+deb14-amd64")
    with pytest.raises(BedError, match=r"7\.2\.0 or newer in sid or forky or trixie-backports$"):
        fetch.kernel("7.2")


def test_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(BedError, match="x86_64 only, this is aarch64"):
        fetch.kernel("6.12")


def test_full_disk_is_seen_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(fetch, "CACHE", tmp_path / "kernels")
    monkeypatch.setattr(fetch, "find_program", lambda name: name)
    monkeypatch.setattr(fetch, "_SPACE", 1 << 62)
    with pytest.raises(BedError, match=r"MiB free, \d+ MiB needed"):
        fetch.kernel("6.12")
    assert [path.name for path in (tmp_path / "kernels").iterdir()] == ["lock"]


def test_fetched_kernel_is_not_fetched_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(fetch, "CACHE", tmp_path)
    monkeypatch.setattr(fetch, "find_program", lambda name: None)
    with pytest.raises(BedError, match=r"^needs apt-get: "):
        fetch.kernel("6.12")
    # One that was fetched when an older one would do.
    (tmp_path / "6.12.0+").mkdir()
    with pytest.raises(BedError, match=r"^needs apt-get: "):
        fetch.kernel("6.12")
    (tmp_path / "6.12.114+").mkdir()
    assert fetch.kernel("6.12").root == tmp_path / "6.12.114+"


def unpacked(root: Path, image: str) -> Kernel:
    (root / "usr/lib/modules" / RELEASE).mkdir(parents=True)
    (root / image).parent.mkdir(exist_ok=True)
    (root / image).write_bytes(b"kernel")
    return Kernel(root)


@pytest.mark.parametrize(
    "image", [f"boot/vmlinuz-{RELEASE}", f"usr/lib/modules/{RELEASE}/vmlinuz"], ids=["6.12", "7.2"]
)
def test_kernels_image_is_found_in_both_layouts(image: str, tmp_path: Path) -> None:
    assert unpacked(tmp_path, image).image == tmp_path / image


def test_modules_load_after_what_they_need() -> None:
    modules_dep = """\
kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz
kernel/net/9p/9pnet_virtio.ko.xz: kernel/drivers/virtio/virtio.ko.xz kernel/net/9p/9pnet.ko.xz
kernel/net/9p/9pnet.ko.xz:
kernel/fs/netfs/netfs.ko.xz:
kernel/drivers/virtio/virtio.ko.xz:
kernel/fs/ext4/ext4.ko.xz:
"""
    assert [Path(path).name for path in load_order(modules_dep)] == [
        *("virtio.ko.xz", "9pnet.ko.xz", "9pnet_virtio.ko.xz"),
        *("netfs.ko.xz", "9p.ko.xz"),
    ]


def test_cpio_entry_is_newc() -> None:
    archive = Cpio()
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.add("f", stat.S_IFREG | 0o644, b"hello")
    data = archive.finish()
    assert data[:6] == b"070701"
    fields = [int(data[6 + 8 * n : 14 + 8 * n], 16) for n in range(13)]
    assert fields[1] == 0o20600 and fields[9:11] == [5, 1] and fields[11] == 12
    assert data[110:124] == b"dev/console\0\0\0"
    # The second entry: its header and name end at a multiple of four, as its data does.
    assert data[124:130] == b"070701" and data[234:236] == b"f\0"
    assert data[236:244] == b"hello\0\0\0"
    assert data[244 + 110 :].startswith(b"TRAILER!!!\0")


def test_initramfs_holds_modules_uncompressed(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text("overlay.ko.xz:\n9p.ko:\n")
    (tmp_path / "overlay.ko.xz").write_bytes(lzma.compress(b"the overlay module"))
    (tmp_path / "9p.ko").write_bytes(b"the 9p module")
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"\x7fELF static")
    archive = initramfs.initramfs(tmp_path, busybox)
    assert b"modules/00-9p.ko\0" in archive and b"the 9p module" in archive
    assert b"modules/01-overlay.ko\0" in archive and b"the overlay module" in archive


def test_dynamic_busybox_is_refused(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text("")
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"\x7fELF /lib64/ld-linux-x86-64.so.2")
    with pytest.raises(BedError, match="busybox is not static: make system-deps"):
        initramfs.initramfs(tmp_path, busybox)


def test_unknown_compression_is_refused(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text("9p.ko.new:\n")
    (tmp_path / "9p.ko.new").touch()
    busybox = tmp_path / "busybox"
    busybox.touch()
    with pytest.raises(BedError, match=r"9p\.ko\.new: compressed"):
        initramfs.initramfs(tmp_path, busybox)


def test_command_line_is_the_machine_that_was_asked_for(tmp_path: Path) -> None:
    kernel = unpacked(tmp_path / "6.12", f"boot/vmlinuz-{RELEASE}")
    machine = Machine(cpus=16, memory=3000, options="maxcpus=8 quiet")
    line = command_line("qemu", kernel, machine, Path("/run/x"), output=7, results=8)
    assert line[0] == "qemu"
    options = dict(pairwise(line))
    assert options["-smp"] == "16"
    assert options["-m"] == "3000"
    assert options["-kernel"] == str(kernel.image)
    assert options["-append"].endswith(" vm.run=/run/x maxcpus=8 quiet")
    assert options["-serial"] == "file:/run/x/console"
    # The machine's root can only be read, and no hardware acceleration makes runs differ.
    assert "readonly=on" in options["-fsdev"]
    assert options["-accel"].startswith("tcg")
    assert {"socket,id=output,fd=7", "socket,id=results,fd=8"} <= set(line)


def test_missing_program_names_what_provides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "find_program", lambda name: None if name == "busybox" else name)
    with pytest.raises(BedError, match=r"^needs busybox: make system-deps$"):
        vm.programs()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], VM]:
    """VMs whose QEMU is a script for bash: $1 is the console's file, $2 the fd for results."""
    kernel = unpacked(tmp_path / "6.12", f"boot/vmlinuz-{RELEASE}")
    (kernel.modules / "modules.dep").write_text("")
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"static")
    paths = {"qemu-system-x86_64": "qemu", "busybox": str(busybox)}
    monkeypatch.setattr(vm, "programs", lambda: paths)

    def start(script: str) -> VM:
        def command_line(*args: Any) -> list[str]:
            _, _, _, run, _, results = args
            return ["bash", "-c", script, "qemu", str(run / "console"), str(results)]

        monkeypatch.setattr(vm, "command_line", command_line)
        return VM(kernel, "true")

    return start


def test_a_kernel_that_trips_over_its_patching_is_booted_again(
    stand_in: Callable[[str], VM], tmp_path: Path
) -> None:
    boots = tmp_path / "boots"
    # As many lines follow as a kernel's registers and stacks take.
    trips = f"echo boot >>{boots}; (echo '[ 1.4] Oops: int3: 0000 [#1] SMP'; seq 200) >$1;"
    with stand_in(f"{trips} [ $(wc -l <{boots}) = 3 ] && printf 'booted 1.5\nexit 7\n' >&$2") as vm:
        assert (vm.wait(60), vm.boot_time) == (7, 1.5)
    boots.unlink()
    with stand_in(trips) as vm, pytest.raises(Stopped, match="3 times") as stopped:
        vm.wait(60)
    assert stopped.type is Stopped
    assert boots.read_text() == "boot\n" * 3


@pytest.mark.parametrize(
    ("end", "kind", "boots"),
    [
        ("echo 'Oops: general protection fault' >$1", Stopped, 1),
        ("(echo 'BUG: kernel NULL pointer'; echo Oops: int3: 0000) >$1", Stopped, 1),
        ("echo Oops: int3: 0000 >$1; echo booted 1 >&$2", Tripped, 1),
        ("[ $(wc -l <$3) = 2 ] || echo Oops: int3: 0000 >$1", Stopped, 2),
    ],
    ids=["fault", "other fault first", "after the command began", "then without a word"],
)
def test_a_guest_that_ends_otherwise_is_not_booted_again(
    end: str, kind: type[Stopped], boots: int, stand_in: Callable[[str], VM], tmp_path: Path
) -> None:
    count = tmp_path / "boots"
    with (
        stand_in(f"set -- $1 $2 {count}; echo boot >>$3; {end}") as vm,
        pytest.raises(Stopped) as stopped,
    ):
        vm.wait(60)
    assert stopped.type is kind
    assert count.read_text() == "boot\n" * boots


def test_missing_bed_is_one_line_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def kernel(version: str) -> Kernel:
        raise BedError(f"no {version} here")

    monkeypatch.setattr(bed_command, "kernel", kernel)
    assert bed_command.main(["--kernel", "6.12", "--", "true"]) == 2
    assert capsys.readouterr().err == "error: no 6.12 here\n"
