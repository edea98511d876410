"""What the checks of the kernel's way read of the host; tests give them one of their own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vduse.channel.kernel import KernelControl
from vduse.vdpa.drivers import VdpaBus

_CAP_NET_ADMIN = 12
_WHOLE_HOST = ["0", "0", "4294967295"]


@dataclass(frozen=True)
class Host:
    """The file system below ``root``, and the kernel's release."""

    root: Path = Path("/")
    release: str = os.uname().release

    @property
    def nodes(self) -> Path:
        """Where VDUSE's nodes are."""
        return self.root / "dev/vduse"

    @property
    def bus(self) -> VdpaBus:
        """The vDPA bus."""
        return VdpaBus(self.root / "sys")

    def read(self, path: str) -> str:
        """A file's text, stripped; empty where it cannot be read."""
        try:
            return (self.root / path).read_text().strip()
        except OSError:
            return ""

    def is_installed(self, module: str) -> bool:
        """Whether the running kernel has the module, loaded or not, or built in."""
        for index in ("modules.dep", "modules.builtin"):
            for line in self.read(f"lib/modules/{self.release}/{index}").splitlines():
                stem = Path(line.split(":")[0]).name.split(".ko")[0]
                if stem.replace("-", "_") == module:
                    return True
        return False

    def devices(self) -> list[str]:
        """Names of the VDUSE devices that there are."""
        found = (self.root / "sys/class/vduse").glob("*")
        return sorted(entry.name for entry in found if entry.name != "control")

    def api_version(self) -> int:
        """The newest one of the kernel. OSError as KernelControl says it."""
        control = KernelControl(str(self.nodes))
        try:
            return control.get_api_version()
        finally:
            control.close()

    def may_manage_the_bus(self) -> bool:
        """CAP_NET_ADMIN, in the host's own user namespace: netlink asks for that."""
        for line in self.read("proc/self/status").splitlines():
            name, _, value = line.partition(":")
            if name == "CapEff" and int(value, 16) >> _CAP_NET_ADMIN & 1:
                return self.read("proc/self/uid_map").split() == _WHOLE_HOST
        return False
