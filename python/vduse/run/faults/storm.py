"""Many messages that change nothing."""

from __future__ import annotations

import threading

from vduse.run.faults.kind import Kind, Option, Values, count
from vduse.run.faults.target import NotNow, Target


class Storm:
    """UPDATE_IOTLB of everything and SET_STATUS with the status that there is, in turns, each as
    soon as the one before is answered. Both are legal at any time: a vhost_vdpa client makes any
    number of them."""

    def __init__(self, values: Values) -> None:
        self._messages = int(values["messages"])

    def strike(self, target: Target, stop: threading.Event) -> str:
        target.check_live()
        for sent in range(self._messages):
            if stop.is_set():
                return f"{sent} messages of {self._messages}"
            if sent % 2 == 0:
                target.vdpa.update_iotlb()
            elif not target.vdpa.send_status_again():
                raise NotNow(f"{target.name} was reset")
        return f"{self._messages} messages"


KIND = Kind(
    name="storm",
    summary="hundreds of messages that change nothing: UPDATE_IOTLB, the same status again",
    clients="nothing, unless the daemon stops its requests or forgets them",
    make=Storm,
    options={"messages": Option(count, 500, "how many messages each time (500)")},
)
