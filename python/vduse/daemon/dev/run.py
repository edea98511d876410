"""`vduse dev`'s commands, on whichever bus."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from vduse.daemon.dev.commands import (
    AddOptions,
    BindOptions,
    DelOptions,
    DevOptions,
    ListOptions,
    ShowOptions,
    UnbindOptions,
)
from vduse.daemon.dev.face import Attributes, Changed, Details, Listing, VdpaFace


@dataclass(frozen=True)
class Shown:
    """Of ``vduse dev show``."""

    devices: tuple[Details, ...]


def run(options: DevOptions) -> Listing | Shown | Changed:
    """UserError."""
    with closing(open_face(options.qmp)) as face:
        return _run(face, options)


def open_face(qmp: str | None) -> VdpaFace:
    """The kernel's bus, or the one behind a QMP socket. UserError: it is not to be reached."""
    if qmp is None:
        from vduse.daemon.dev.kernel import KernelFace

        return KernelFace()
    from vduse.daemon.dev.qmp import QmpFace

    return QmpFace(qmp)


def _run(face: VdpaFace, options: DevOptions) -> Listing | Shown | Changed:
    match options:
        case ListOptions():
            return face.list()
        case ShowOptions():
            names = [options.name] if options.name else [d.name for d in face.list().devices]
            return Shown(tuple(map(face.show, names)))
        case AddOptions():
            given = Attributes(options.features, options.mac, options.mtu, options.max_vq_pairs)
            return face.add(options.name, options.management, given, options.driver)
        case DelOptions():
            return face.delete(options.name, force=options.force)
        case BindOptions():
            return face.bind(options.name, options.driver, force=options.force)
        case UnbindOptions():
            return face.unbind(options.name, force=options.force)
