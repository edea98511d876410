"""An entropy device (virtio 1.3, section 5.4), and a driver that reads from it."""

import os

from vduse.bus.virtio_rng import VirtioRng
from vduse.channel.embedded import EmbeddedControl
from vduse.control.features import DeviceId
from vduse.devices.virtio import VirtioDevice
from vduse.framework import Framework


class Rng(VirtioDevice):
    DEVICE_ID = DeviceId.RNG

    def submit(self, queue, batch):
        for chain in batch:
            chain.write(os.urandom(chain.writable_length))
            chain.complete()


if __name__ == "__main__":
    device = Rng("rng0")
    with Framework(device_ids=[DeviceId.RNG]) as framework:
        control = EmbeddedControl(framework.control())
        device.start(control)
        framework.dev_add("rng0")
        print(framework.driver("rng0", VirtioRng).read(16).hex())
        framework.dev_del("rng0")
        device.close()
        control.close()
