"""The structs of vduse.control.abi against linux/vduse.h and the spec's sizes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vduse.control import abi

HEADER = Path("/usr/include/linux/vduse.h")

#: Sizes of Linux 6.12 and 7.2 (docs of both: the same), bytes.
SIZES = {
    abi.DevConfig: 336,
    abi.IotlbEntry: 32,
    abi.IotlbEntryV2: 80,
    abi.DevSetConfig: 8,
    abi.VqConfig: 32,
    abi.VqInfo: 48,
    abi.VqEventfd: 8,
    abi.IovaUmem: 48,
    abi.IovaInfo: 48,
    abi.DevRequest: 152,
    abi.DevResponse: 152,
}

u8 = st.integers(0, 2**8 - 1)
u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
s32 = st.integers(-(2**31), 2**31 - 1)
names = st.text(st.characters(codec="ascii", min_codepoint=1), max_size=255)

entries = st.builds(abi.IotlbEntry, u64, u64, u64, u8)
STRUCTS = st.one_of(
    st.builds(
        abi.DevConfig,
        names,
        u32,
        u32,
        u64,
        u32,
        u32,
        st.binary(max_size=64),
        u32,
        u32,
        st.binary(min_size=44, max_size=44),
    ),
    entries,
    st.builds(abi.IotlbEntryV2, entries, u32, st.binary(min_size=44, max_size=44)),
    st.builds(abi.DevSetConfig, u32, st.binary(max_size=64)),
    st.builds(abi.VqConfig, u32, u16, u32, st.binary(min_size=22, max_size=22)),
    st.builds(
        abi.VqInfo, u32, u32, u64, u64, u64, st.binary(min_size=8, max_size=8), st.booleans()
    ),
    st.builds(abi.VqEventfd, u32, s32),
    st.builds(abi.IovaUmem, u64, u64, u64, u32, st.binary(min_size=20, max_size=20)),
    st.builds(abi.IovaInfo, u64, u64, u64, u32, st.binary(min_size=20, max_size=20)),
    st.builds(
        abi.DevRequest,
        u32,
        st.one_of(
            st.builds(abi.GetVqState, u32),
            st.builds(abi.SetStatus, u8),
            st.builds(abi.UpdateIotlb, u64, u64, u32),
            st.builds(abi.SetVqGroupAsid, u32, u32),
            st.builds(abi.UpdateCallfd, u32),
            st.builds(
                abi.UnknownMessage,
                st.integers(4, 0x80000000),
                st.binary(min_size=128, max_size=128),
            ),
        ),
    ),
    st.builds(
        abi.DevResponse,
        u32,
        u32,
        u32,
        st.binary(min_size=8, max_size=8),
        st.binary(min_size=16, max_size=16),
    ),
)


@pytest.mark.parametrize(("struct", "size"), SIZES.items(), ids=lambda v: getattr(v, "__name__", v))
def test_struct_sizes(struct: type[abi.Struct], size: int) -> None:
    assert size == struct.SIZE


def test_ioctl_numbers_seen_on_both_kernels() -> None:
    assert int(abi.Ioctl.CREATE_DEV) == 0x41508102
    assert int(abi.Ioctl.DESTROY_DEV) == 0x41008103


@given(STRUCTS)
def test_unpack_reverses_pack(value: abi.VqInfo) -> None:
    assert type(value).unpack(value.pack()) == value


@given(STRUCTS, st.binary(min_size=1, max_size=9))
def test_wrong_length_is_refused(value: abi.VqInfo, extra: bytes) -> None:
    with pytest.raises(ValueError, match="bytes, expected"):
        type(value).unpack(value.pack() + extra)
    with pytest.raises(ValueError, match="bytes, expected"):
        type(value).unpack(value.pack()[:-1])


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"disk\0garbage", "disk"),
        (b"short", "short"),
        (b"\0" * 256, ""),
        (b"x" * 256, "x" * 255),
    ],
)
def test_name_is_read_to_its_nul_and_cut_at_255(data: bytes, name: str) -> None:
    assert abi.unpack_name(data) == name


@pytest.mark.parametrize("name", ["x" * 256, "a\0b"])
def test_name_that_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="device name"):
        abi.pack_name(name)


@given(st.tuples(u16))
def test_split_state_round_trip(position: tuple[int, ...]) -> None:
    assert abi.decode_vq_state(abi.encode_vq_state(position), packed=False) == position


def test_packed_state_is_masked() -> None:
    raw = abi.encode_vq_state((0xFFFF, 3, 0x8001, 2))
    assert abi.decode_vq_state(raw, packed=True) == (0x7FFF, 1, 1, 0)


PROBE = r"""
#include <linux/ioctl.h>
#include <linux/vduse.h>
#include <stdio.h>
#include <string.h>
#define NR(x) printf("%s %u\n", #x, (unsigned)VDUSE_##x)
static void dump(const char *name, const void *p, unsigned n) {
    printf("%s ", name);
    for (unsigned i = 0; i < n; i++) printf("%02x", ((const unsigned char *)p)[i]);
    printf("\n");
}
int main(void) {
    NR(GET_API_VERSION); NR(SET_API_VERSION); NR(CREATE_DEV); NR(DESTROY_DEV);
    NR(IOTLB_GET_FD); NR(DEV_GET_FEATURES); NR(DEV_SET_CONFIG); NR(DEV_INJECT_CONFIG_IRQ);
    NR(VQ_SETUP); NR(VQ_GET_INFO); NR(VQ_SETUP_KICKFD); NR(VQ_INJECT_IRQ);
    NR(IOTLB_REG_UMEM); NR(IOTLB_DEREG_UMEM); NR(IOTLB_GET_INFO);
    struct vduse_dev_config config = {.name = "n", .vendor_id = 1, .device_id = 2,
        .features = 3, .vq_num = 4, .vq_align = 5, .config_size = 0};
    dump("DevConfig", &config, sizeof config);
    struct vduse_iotlb_entry entry = {.offset = 1, .start = 2, .last = 3, .perm = 3};
    dump("IotlbEntry", &entry, sizeof entry);
    struct vduse_vq_config vq = {.index = 1, .max_size = 2};
    dump("VqConfig", &vq, sizeof vq);
    struct vduse_vq_info split = {.index = 1, .num = 2, .desc_addr = 3, .driver_addr = 4,
        .device_addr = 5, .split = {.avail_index = 6}, .ready = 1};
    dump("VqInfoSplit", &split, sizeof split);
    struct vduse_vq_info packed = {.index = 1, .packed = {.last_avail_counter = 1,
        .last_avail_idx = 7, .last_used_counter = 0, .last_used_idx = 9}};
    dump("VqInfoPacked", &packed, sizeof packed);
    struct vduse_vq_eventfd eventfd = {.index = 1, .fd = -1};
    dump("VqEventfd", &eventfd, sizeof eventfd);
    struct vduse_iova_umem umem = {.uaddr = 1, .iova = 2, .size = 3};
    dump("IovaUmem", &umem, sizeof umem);
    struct vduse_iova_info info = {.start = 1, .last = 2, .capability = 1};
    dump("IovaInfo", &info, sizeof info);
    struct vduse_dev_request status = {.type = VDUSE_SET_STATUS, .request_id = 9, .s = {15}};
    dump("SetStatus", &status, sizeof status);
    struct vduse_dev_request iova = {.type = VDUSE_UPDATE_IOTLB, .iova = {1, ~0ULL}};
    dump("UpdateIotlb", &iova, sizeof iova);
    struct vduse_dev_request get = {.type = VDUSE_GET_VQ_STATE, .vq_state = {.index = 3}};
    dump("GetVqState", &get, sizeof get);
    struct vduse_dev_response response = {.request_id = 4, .result = VDUSE_REQ_RESULT_FAILED,
        .vq_state = {.index = 3, .split = {.avail_index = 77}}};
    dump("DevResponse", &response, sizeof response);
    return 0;
}
"""

EXPECTED = {
    "DevConfig": abi.DevConfig("n", 1, 2, 3, 4, 5).pack(),
    "IotlbEntry": abi.IotlbEntry(1, 2, 3, abi.ACCESS_RW).pack(),
    "VqConfig": abi.VqConfig(1, 2).pack(),
    "VqInfoSplit": abi.VqInfo(1, 2, 3, 4, 5, abi.encode_vq_state((6,)), True).pack(),
    "VqInfoPacked": abi.VqInfo(1, state=abi.encode_vq_state((7, 1, 9, 0))).pack(),
    "VqEventfd": abi.VqEventfd(1, abi.EVENTFD_DEASSIGN).pack(),
    "IovaUmem": abi.IovaUmem(1, 2, 3).pack(),
    "IovaInfo": abi.IovaInfo(1, 2, abi.IOVA_CAP_UMEM).pack(),
    "SetStatus": abi.DevRequest(9, abi.SetStatus(15)).pack(),
    "UpdateIotlb": abi.DevRequest(0, abi.UpdateIotlb(1, 2**64 - 1)).pack(),
    "GetVqState": abi.DevRequest(0, abi.GetVqState(3)).pack(),
    "DevResponse": abi.DevResponse(
        4, abi.RequestResult.FAILED, 3, abi.encode_vq_state((77,))
    ).pack(),
}


def test_bytes_are_those_of_the_installed_header(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None or not HEADER.exists():
        pytest.skip("needs a C compiler and linux/vduse.h")
    source = tmp_path / "probe.c"
    source.write_text(PROBE)
    subprocess.run([compiler, "-o", tmp_path / "probe", source], check=True)
    output = subprocess.run([tmp_path / "probe"], check=True, capture_output=True, text=True).stdout
    seen = dict(line.split() for line in output.splitlines())
    ioctls = {call.name: str(call.value) for call in abi.Ioctl if call.name != "IOTLB_GET_FD2"}
    assert seen == ioctls | {name: data.hex() for name, data in EXPECTED.items()}
