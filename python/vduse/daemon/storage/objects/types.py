"""The types there are."""

from __future__ import annotations

from vduse.daemon.storage.objects.options import ObjectOptions
from vduse.daemon.storage.objects.secret import SecretOptions
from vduse.daemon.storage.objects.throttle_group import ThrottleGroupOptions
from vduse.daemon.storage.objects.tls_creds import TlsCredsX509Options

TYPES: tuple[type[ObjectOptions], ...] = (
    ThrottleGroupOptions,
    SecretOptions,
    TlsCredsX509Options,
)
