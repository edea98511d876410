"""All faults there are, by name."""

from __future__ import annotations

from collections.abc import Mapping

from vduse.run.faults import kill, late_enable, move, rebind, remap, reset, silent, storm
from vduse.run.faults.kind import Kind

KINDS: Mapping[str, Kind] = {
    module.KIND.name: module.KIND
    for module in (late_enable, reset, remap, move, storm, rebind, silent, kill)
}
