"""virtio-blk's features and config space (virtio 1.3, sections 5.2.3 and 5.2.4), backends."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.held import nothing_left
from vduse.backends.errors import BackendError
from vduse.backends.spec import open_backend
from vduse.control.features import BlkFeature, DeviceId, Feature
from vduse.devices.blk import (
    BlkDevice,
    config_space,
    data_path_limits,
    offered_features,
)
from vduse.devices.blk_config import BlkConfig, pack_capacity
from vduse.devices.features import check_features

u8, u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
CONFIGS = st.builds(
    BlkConfig,
    *(u64, u32, u32, u16, u8, u8, u32, u8, u8, u16, u32, u8, u16, u32, u32, u32, u32, u32, u8),
)

PROBE = r"""
#include <linux/virtio_blk.h>
#include <stddef.h>
#include <stdio.h>
#define AT(x) printf(#x " %zu\n", offsetof(struct virtio_blk_config, x))
int main(void) {
    AT(capacity); AT(size_max); AT(seg_max); AT(geometry.cylinders); AT(geometry.heads);
    AT(geometry.sectors); AT(blk_size); AT(physical_block_exp); AT(alignment_offset);
    AT(min_io_size); AT(opt_io_size); AT(wce); AT(num_queues); AT(max_discard_sectors);
    AT(max_discard_seg); AT(discard_sector_alignment); AT(max_write_zeroes_sectors);
    AT(max_write_zeroes_seg); AT(write_zeroes_may_unmap);
    return 0;
}
"""


def offsets() -> dict[str, int]:
    """Where each field's lowest byte lies in the packed struct."""
    found = {}
    for name in (field.name for field in fields(BlkConfig)):
        zero = BlkConfig(0, blk_size=0)
        marked = BlkConfig(**{"capacity": 0, "blk_size": 0, name: 1})
        found[name] = next(
            at for at, (a, b) in enumerate(zip(zero.pack(), marked.pack(), strict=True)) if a != b
        )
    return found


def test_config_space_offsets_are_those_of_the_installed_header(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None or not Path("/usr/include/linux/virtio_blk.h").exists():
        pytest.skip("needs a C compiler and linux/virtio_blk.h")
    (tmp_path / "probe.c").write_text(PROBE)
    subprocess.run([compiler, "-o", tmp_path / "probe", tmp_path / "probe.c"], check=True)
    output = subprocess.run([tmp_path / "probe"], check=True, capture_output=True, text=True).stdout
    seen = {name.split(".")[-1]: int(at) for name, at in map(str.split, output.splitlines())}
    seen["writeback"] = seen.pop("wce")
    assert offsets() == seen


@given(CONFIGS)
def test_config_space_round_trip(config: BlkConfig) -> None:
    assert BlkConfig.unpack(config.pack()) == config


def test_config_space_of_wrong_length() -> None:
    assert BlkConfig.SIZE == 60
    with pytest.raises(ValueError, match="59 bytes, expected 60 or more"):
        BlkConfig.unpack(bytes(59))
    assert BlkConfig.unpack(BlkConfig(7).pack() + bytes(36)).capacity == 7


def offer(**options: Any) -> int:
    """Features offered, all but the options named at their plainest."""
    plain: dict[str, Any] = {"read_only": False, "can_discard": False, "queues": 1, "packed": False}
    return offered_features(**(plain | options))


@pytest.mark.parametrize(
    ("options", "bit"),
    [
        ({"read_only": True}, BlkFeature.RO),
        ({"can_discard": True}, BlkFeature.DISCARD),
        ({"queues": 2}, BlkFeature.MQ),
        ({"packed": True}, Feature.RING_PACKED),
    ],
)
def test_5_2_3_feature_comes_with_its_option(options: dict[str, bool | int], bit: int) -> None:
    assert offer(**options) & bit
    assert not offer() & bit


def test_5_2_3_read_only_offers_no_writes() -> None:
    features = offer(read_only=True, can_discard=True)
    assert not features & (BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES)


def test_config_wce_is_never_offered() -> None:
    every = offer(read_only=False, can_discard=True, queues=16, packed=True)
    assert not every & BlkFeature.CONFIG_WCE


@pytest.mark.parametrize(
    ("chosen", "refusal"),
    [
        (Feature.VERSION_1 | Feature.ACCESS_PLATFORM, None),
        (Feature.ACCESS_PLATFORM, "required: VERSION_1"),
        (Feature.VERSION_1, "required: ACCESS_PLATFORM"),
        (
            Feature.VERSION_1 | Feature.ACCESS_PLATFORM | BlkFeature.MQ | 1 << 60,
            "not offered: MQ, bit 60",
        ),
    ],
)
def test_2_2_2_driver_s_choice(chosen: int, refusal: str | None) -> None:
    assert check_features(offer(), chosen, DeviceId.BLOCK) == refusal


def test_config_space_of_a_4k_disk() -> None:
    features = offer(can_discard=True)
    config = config_space(
        size=(1 << 20) + 512, block_size=4096, features=features, queues=4, queue_size=128
    )
    assert config.capacity == 2048, "whole blocks, in sectors of 512"
    assert (config.blk_size, config.physical_block_exp, config.min_io_size) == (4096, 0, 1)
    assert (config.seg_max, config.num_queues) == (126, 4)
    assert config.discard_sector_alignment == 8
    assert config.write_zeroes_may_unmap == 1
    limits = data_path_limits(config, read_only=True)
    assert limits.pop("read_only") == 1
    assert limits["capacity"] == 2048
    assert all(limits[name] == getattr(config, name) for name in limits)


def test_config_space_of_a_512_disk_names_4k_as_physical() -> None:
    config = config_space(size=1 << 20, block_size=512, features=offer(), queues=1, queue_size=1024)
    assert (config.physical_block_exp, config.min_io_size) == (3, 8)
    assert config.seg_max == 254
    assert (config.max_discard_sectors, config.max_discard_seg) == (0, 0)
    assert config.max_write_zeroes_sectors > 0
    assert config.write_zeroes_may_unmap == 0


def test_capacity_is_the_first_field() -> None:
    assert BlkConfig(12345).pack()[:8] == pack_capacity(12345)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"queues": 0}, "queues: 0 is not between 1 and 65535"),
        ({"queue_size": 100}, "queue_size: 100 is not a power of two"),
        ({"queue_size": 2}, "queue_size: 2 is not a power of two between 4 and 32768"),
        ({"serial": "x" * 21}, "is not at most 20 ASCII characters"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], why: str) -> None:
    backend = open_backend("null", size=1 << 20)
    with pytest.raises(ValueError, match=why):
        BlkDevice("disk0", backend, **options)
    backend.close()


@pytest.mark.parametrize("spec", ["null", "memory"])
def test_sized_backends(spec: str) -> None:
    backend = open_backend(spec, size=1 << 20)
    assert backend.size == 1 << 20
    backend.close()


@pytest.mark.parametrize("prefix", ["", "file:"])
def test_file_backend_by_path(tmp_path: Path, prefix: str) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(8192))
    backend = open_backend(f"{prefix}{image}", read_only=True)
    assert (backend.size, backend.read_only) == (8192, True)
    backend.close()


@pytest.mark.parametrize(
    ("spec", "size", "direct", "why"),
    [
        ("null", None, False, "null: needs a size"),
        ("memory", 0, False, "no multiple of 512"),
        ("memory", 513, False, "a size of 513 bytes is no multiple of 512"),
        ("null", 512, True, "null: direct is for files"),
        ("file:", None, False, "file: needs a path"),
        ("missing.img", None, False, "missing.img: no such file; create it: truncate"),
        ("odd.img", None, False, "odd.img has 1000 bytes: .*multiple of 512"),
        ("empty.img", None, False, "empty.img has 0 bytes: .*truncate"),
        ("whole.img", 4096, False, "a file has its own size"),
        ("missing.img", 4096, False, "missing.img: no such file; create it: truncate -s 4096"),
        ("memroy", 4096, False, "memroy: no such file, did you mean 'memory'"),
        ("memory,size=1G", None, False, "memory takes no keys and needs a size"),
        (".", None, False, r"\.: is a directory"),
    ],
)
def test_backend_mistakes_say_what_to_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spec: str,
    size: int | None,
    direct: bool,
    why: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd.img").write_bytes(bytes(1000))
    Path("empty.img").write_bytes(b"")
    Path("whole.img").write_bytes(bytes(4096))
    with nothing_left(), pytest.raises(BackendError, match=why):
        open_backend(spec, size=size, direct=direct)


def test_a_path_alone_is_no_qcow2_image(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    image.write_bytes(b"QFI\xfb" + bytes(4092))
    for read_only in (False, True):
        with nothing_left(), pytest.raises(BackendError) as refused:
            open_backend(str(image), read_only=read_only)
        assert str(refused.value) == (
            f"{image}: a qcow2 image: type qcow2:{image} for its disk, file:{image} for its bytes"
        )
    backend = open_backend(f"file:{image}")
    assert backend.size == 4096
    backend.close()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # it is not waited for
    with pytest.raises(BackendError):
        open_backend(str(fifo), read_only=True)


def test_image_locked_by_another_opener(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    first = open_backend(str(image))
    with pytest.raises(BackendError, match="in use by another program"):
        open_backend(str(image))
    first.close()
    open_backend(str(image)).close()
