"""What of QEMU 10's storage daemon differs here, and what is absent: see support.py."""

from __future__ import annotations

_JOBS = "no block jobs: copying is what clients of exports do"
_IMAGES = "`qemu-img`'s: create, amend, rebase"
_THRESHOLD = "not watched: see what the storage below has left"
_SNAPSHOTS = "no snapshots: those of the storage below are used"
_VMS = "of virtual machines: there is none in this process"
_NET = "its protocol is not spoken"
_OLD = "other formats than raw and qcow2: convert with qemu-img"
_TEST = "QEMU's own tests: `vduse blk --layer` and `vduse run --fault` are for that"
_THREADS = "workers are shared by all devices, with no setting"
_CHARDEVS = "chardevs are made by --chardev, for monitors, and stay"
_LIMITS = "limits.* says the same"

#: By kind and name, how.
DIFFERENT: dict[tuple[str, str], str] = {
    (
        "option",
        "chardev",
    ): "`socket` of unix (mode 0600) and `fd=`, also by systemd's name; `server=on`",
    ("option", "daemonize"): "does not change to /",
    ("option", "version"): "`vduse --version`",
    ("option", "monitor"): "`mode=control` only",
    (
        "command",
        "blockdev-reopen",
    ): "files and their engines may change, too; an export goes on with the features it began with",
    ("command", "qom-get"): "the `limits` of throttle groups",
    ("command", "qom-set"): "the `limits` of throttle groups, live",
    ("command", "query-blockstats"): "operations, bytes and errors of a node's exports",
    (
        "event",
        "BLOCK_IO_ERROR",
    ): "`device` is an export's id, `action` report; the first of each errno in a minute",
    ("command", "query-qmp-schema"): "types have names; what events tell is not said",
    ("driver key", "file.aio"): "`native`: io_uring where the host permits it, else threads",
    ("driver key", "host_device.aio"): "`native`: io_uring where the host permits it, else threads",
    ("driver key", "blockdev.discard"): "`ignore`: DISCARD is not offered",
    ("driver key", "blockdev.detect-zeroes"): "`off` only",
    ("driver key", "blockdev.cache"): "`no-flush=off` only",
    ("driver key", "null-co.read-zeroes"): "`off` only",
    (
        "driver",
        "qcow2",
    ): "images that are encrypted, compressed with zstd or have subclusters: refused",
    ("driver key", "qcow2.file"): "the image has it for itself",
    ("driver key", "qcow2.backing"): "to be given where the image is not in a file within it",
    ("driver key", "nbd.server"): "`type=unix`, `path`; `type=inet`, `host` and a numeric `port`",
    ("driver key", "nbd.tls-hostname"): "on a Unix socket `localhost` if not given, and verified",
    ("export key", "export.writethrough"): "`off` only: drivers flush",
    ("export key", "vhost-user-blk.addr"): "`unix`, mode 0600; `fd`, also by name",
    ("export key", "vduse-blk.queue-size"): "up to 32768",
    ("object key", "throttle-group.limits"): "without `-max-length`",
    (
        "nbd-server key",
        "addr",
    ): "`unix`, mode 0600; `inet`, `host` and a numeric `port`; `fd`, also by name",
    ("nbd-server key", "max-connections"): "at most 128",
}

#: Kind, why, names.
ABSENT: tuple[tuple[str, str, str], ...] = (
    (
        "option",
        "no trace events; `--trace-json` records calls and messages of vduse-blk exports",
        "trace",
    ),
    (
        "command",
        _JOBS,
        """block-commit block-stream block-job-cancel block-job-change block-job-complete
        block-job-dismiss block-job-finalize block-job-pause block-job-resume block-job-set-speed
        blockdev-backup blockdev-mirror drive-backup drive-mirror job-cancel job-complete
        job-dismiss job-finalize job-pause job-resume query-block-jobs query-jobs""",
    ),
    ("command", _IMAGES, "blockdev-create x-blockdev-amend change-backing-file"),
    ("command", _THRESHOLD, "block-set-write-threshold"),
    (
        "command",
        _SNAPSHOTS,
        """blockdev-snapshot blockdev-snapshot-sync blockdev-snapshot-internal-sync
        blockdev-snapshot-delete-internal-sync transaction block-dirty-bitmap-add
        block-dirty-bitmap-clear block-dirty-bitmap-disable block-dirty-bitmap-enable
        block-dirty-bitmap-merge block-dirty-bitmap-remove x-debug-block-dirty-bitmap-sha256""",
    ),
    ("command", _VMS, "query-block blockdev-set-active x-blockdev-change"),
    ("command", _THREADS, "x-blockdev-set-iothread"),
    (
        "command",
        "deprecated: block-export-add, block-export-del",
        "nbd-server-add nbd-server-remove",
    ),
    ("command", "query-named-block-nodes names the nodes", "x-debug-query-block-graph"),
    (
        "command",
        _CHARDEVS,
        """chardev-add chardev-change chardev-remove chardev-send-break query-chardev
        query-chardev-backends ringbuf-read ringbuf-write""",
    ),
    ("command", "there is no tree of objects", "qom-list qom-list-properties qom-list-types"),
    (
        "event",
        _JOBS,
        """BLOCK_JOB_CANCELLED BLOCK_JOB_COMPLETED BLOCK_JOB_ERROR BLOCK_JOB_PENDING
        BLOCK_JOB_READY JOB_STATUS_CHANGE""",
    ),
    ("event", "requests fail, and BLOCK_IO_ERROR says so", "BLOCK_IMAGE_CORRUPTED"),
    ("event", _THRESHOLD, "BLOCK_WRITE_THRESHOLD"),
    ("event", "no driver quorum", "QUORUM_FAILURE QUORUM_REPORT_BAD"),
    ("event", _VMS, "VSERPORT_CHANGE"),
    ("driver", _TEST, "blkdebug blklogwrites blkreplay blkverify"),
    ("driver", _OLD, "bochs cloop dmg parallels qcow qed vdi vhdx vmdk vpc"),
    ("driver", _JOBS, "copy-before-write copy-on-read snapshot-access replication"),
    ("driver", _NET, "ftp ftps gluster http https iscsi nfs ssh"),
    ("driver", "compressed clusters are read, and none are written", "compress"),
    ("driver", "no encryption: dm-crypt beneath, or the guest's", "luks"),
    ("driver", "`qemu-img create` preallocates", "preallocate"),
    ("driver", "the storage below mirrors", "quorum"),
    ("driver", "the same as null-co", "null-aio"),
    ("driver", "the kernel's driver, by host_device, or file", "host_cdrom nvme vvfat"),
    ("driver key", _VMS, "blockdev.active file.pr-manager host_device.pr-manager"),
    ("driver key", "is of file and host_device here", "blockdev.force-share"),
    ("driver key", _SNAPSHOTS, "nbd.x-dirty-bitmap"),
    (
        "driver key",
        "engines choose",
        """file.aio-max-batch file.drop-cache file.x-check-cache-dropped host_device.aio-max-batch
        host_device.drop-cache host_device.x-check-cache-dropped""",
    ),
    ("driver key", "as the image names it", "qcow2.data-file"),
    (
        "driver key",
        "discards are passed on; caches have a fixed size; tables are checked when they are read",
        """qcow2.pass-discard-request qcow2.pass-discard-snapshot qcow2.pass-discard-other
        qcow2.discard-no-unref qcow2.lazy-refcounts qcow2.cache-size qcow2.l2-cache-size
        qcow2.l2-cache-entry-size qcow2.refcount-cache-size qcow2.cache-clean-interval
        qcow2.overlap-check""",
    ),
    ("driver key", "encrypted images are refused", "qcow2.encrypt rbd.encrypt"),
    ("export", "NBD and the kernel's VDUSE are the ways to this host", "fuse"),
    ("export key", _THREADS, "export.iothread export.fixed-iothread"),
    ("export key", _VMS, "export.allow-inactive"),
    ("export key", _SNAPSHOTS, "nbd.bitmaps nbd.allocation-depth"),
    ("object", _THREADS, "iothread main-loop"),
    (
        "object",
        _VMS,
        """acpi-generic-initiator acpi-generic-port can-bus can-host-socketcan colo-compare
        cryptodev-backend cryptodev-backend-builtin cryptodev-backend-lkcf cryptodev-vhost-user
        dbus-vmstate filter-buffer filter-dump filter-mirror filter-redirector filter-replay
        filter-rewriter input-barrier input-linux iommufd memory-backend-epc memory-backend-file
        memory-backend-memfd memory-backend-ram memory-backend-shm pef-guest pr-manager-helper qtest
        rng-builtin rng-egd rng-random s390-pv-guest sev-guest sev-snp-guest thread-context
        x-remote-object x-vfio-user-server""",
    ),
    (
        "object",
        "file modes say who may connect",
        "authz-list authz-listfile authz-pam authz-simple",
    ),
    ("object", "certificates only", "tls-creds-anon tls-creds-psk tls-cipher-suites"),
    ("object", "files, or data", "secret_keyring"),
    ("object key", "protect the file", "secret.keyid secret.iv tls-creds-x509.passwordid"),
    ("object key", "OpenSSL's", "tls-creds-x509.priority tls-creds-x509.sanity-check"),
    (
        "object key",
        _LIMITS,
        " ".join(
            [
                *(
                    f"throttle-group.x-{unit}-{ops}{end}"
                    for unit in ("iops", "bps")
                    for ops in ("total", "read", "write")
                    for end in ("", "-max", "-max-length")
                ),
                "throttle-group.x-iops-size",
            ]
        ),
    ),
    ("nbd-server key", "clients need a certificate of the authority's", "tls-authz"),
    ("nbd-server key", "10 seconds", "handshake-max-seconds"),
    (
        "chardev",
        "monitors are served at sockets",
        """braille dbus file hub memory msmouse mux null parallel pipe pty qemu-vdagent ringbuf
        serial spiceport spicevmc stdio testdev udp vc wctablet""",
    ),
)
