"""Features that the driver may and may not choose."""

from __future__ import annotations

from vduse.check import rules
from vduse.check.errors import Missed
from vduse.check.scenario import Scenario
from vduse.check.stage import Stage
from vduse.control.features import Feature, feature_names

_LEAST = Feature.VERSION_1 | Feature.ACCESS_PLATFORM
#: Bits that a driver may know and choose by mistake, and one that nobody knows.
_STRANGE = (Feature.RING_PACKED, Feature.IN_ORDER, Feature.NOTIFICATION_DATA, 1 << 60)


def _run(stage: Stage) -> None:
    if not stage.offers(_LEAST):
        raise Missed("VERSION_1 and ACCESS_PLATFORM are not offered")
    stage.ledger.reach(rules.FEATURES_SUBSET)
    least = int(_LEAST) & stage.offered
    if not stage.agree(least):
        stage.ledger.fail(
            rules.FEATURES_SUBSET,
            f"refused: {', '.join(feature_names(least, 0))}\n{stage.watch.tail(4)}",
        )
    stage.ledger.reach(rules.FEATURES_UNOFFERED)
    for bit in _STRANGE:
        if not stage.offers(bit) and stage.agree(stage.offered | int(bit)):
            name = feature_names(int(bit), 0)[0]
            stage.ledger.fail(
                rules.FEATURES_UNOFFERED,
                f"OK to FEATURES_OK with {name}, which is not offered\n{stage.watch.tail(4)}",
            )
    stage.reset()


SCENARIO = Scenario(
    name="negotiation",
    title="chooses features, offered and not",
    rules=(rules.FEATURES_SUBSET, rules.FEATURES_UNOFFERED),
    blame=rules.FEATURES_UNOFFERED,
    run=_run,
    blk=False,
)
