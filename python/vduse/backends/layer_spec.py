"""The command line's spelling of layers: ``NAME,key=value,...``."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, cast

from vduse import _native
from vduse.backends import layers
from vduse.backends.errors import BackendError
from vduse.backends.options import parse_options, split_options
from vduse.control.spelling import did_you_mean
from vduse.control.units import parse_duration, parse_number, parse_share, parse_size

_OPS = tuple(op.replace("_", "-") for op in layers.OPS)
_Apply: TypeAlias = Callable[..., _native.Backend]


@dataclass(frozen=True, slots=True)
class _Layer:
    apply: _Apply
    keys: Mapping[str, Callable[[str], Any]]
    #: Whether what lies beneath is never written.
    spares_below: bool = False


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer as it was spelled, ready to be put on a backend."""

    text: str
    #: Whether what lies beneath is never written: it may be opened read-only.
    spares_below: bool
    _apply: _Apply
    _options: dict[str, Any]

    def on(self, backend: _native.Backend) -> _native.Backend:
        """The layer on ``backend``. BackendError."""
        try:
            return self._apply(backend, **self._options)
        except ValueError as error:
            raise BackendError(f"{self.text}: {str(error).replace('_', '-')}") from None


def parse_layer(text: str) -> LayerSpec:
    """What ``text`` spells. BackendError: one line that says what to do."""
    name, options = split_options(text)
    layer = _LAYERS.get(name)
    if layer is None:
        hint = did_you_mean(name, _LAYERS) or f"; there are {', '.join(_LAYERS)}"
        raise BackendError(f"no such layer '{name}'{hint}")
    values = parse_options(name, options, layer.keys)
    arguments = {key.replace("-", "_"): value for key, value in values.items()}
    return LayerSpec(text, layer.spares_below, layer.apply, arguments)


def _number(text: str) -> int:
    number = parse_number(text)
    if number is None or number >= 1 << 64:
        raise ValueError(f"'{text}' is not a whole number below 2^64")
    return number


def _pause(text: str) -> layers.Pause:
    least, dots, most = text.partition("..")
    return (parse_duration(least), parse_duration(most)) if dots else parse_duration(least)


def _delay(
    backend: _native.Backend, *, all: layers.Pause = 0, seed: int = 0, **pauses: layers.Pause
) -> _native.Backend:
    if not (all or pauses):
        raise ValueError("give a time, as in delay,read=10ms")
    return layers.delay(backend, seed=seed, **(dict.fromkeys(layers.OPS, all) | pauses))


def _ops(text: str) -> tuple[layers.Op, ...]:
    for word in text.split("+"):
        if word not in _OPS:
            hint = did_you_mean(word, _OPS) or f"; there are {', '.join(_OPS)}, joined by +"
            raise ValueError(f"no such operation '{word}'{hint}")
    return cast("tuple[layers.Op, ...]", tuple(text.replace("-", "_").split("+")))


def _errno(text: str) -> int:
    numbers = {name: number for number, name in errno.errorcode.items()}
    number = parse_number(text) or numbers.get(text.upper())
    if number is None:
        hint = did_you_mean(text.upper(), numbers) or ", for example EIO or EOPNOTSUPP"
        raise ValueError(f"no such error '{text}'{hint}")
    return number


def _error(backend: _native.Backend, *, seed: int = 0, **rule: Any) -> _native.Backend:
    faults = layers.Faults(seed=seed)
    faults.add(**rule)
    return layers.error(backend, faults)


def _throttle(
    backend: _native.Backend,
    *,
    iops: int | None = None,
    bps: int | None = None,
    **limits: int,
) -> _native.Backend:
    short = {"iops_total": iops, "bps_total": bps}
    given = {name: value for name, value in short.items() if value is not None}
    if twice := given.keys() & limits.keys():
        name = min(twice).replace("_", "-")
        raise ValueError(f"{name.removesuffix('-total')} is short for {name}: give one of them")
    if not (given or limits):
        raise ValueError("give a limit, as in throttle,iops=1000")
    return layers.throttle(backend, layers.Throttle(layers.Limits(**given, **limits)))


def _limit_parser(name: str) -> Callable[[str], int]:
    return parse_size if name.startswith("bps") or name == "iops-size" else _number


_LIMITS = ["iops", "bps", *(field.name.replace("_", "-") for field in fields(layers.Limits))]

_LAYERS = {
    "read-only": _Layer(layers.read_only, {}, spares_below=True),
    "delay": _Layer(_delay, {"all": _pause, **dict.fromkeys(_OPS, _pause), "seed": _number}),
    "error": _Layer(
        _error,
        {
            "errno": _errno,
            "ops": _ops,
            "offset": parse_size,
            "length": parse_size,
            "rate": parse_share,
            "after": _number,
            "count": _number,
            "seed": _number,
        },
    ),
    "throttle": _Layer(_throttle, {name: _limit_parser(name) for name in _LIMITS}),
    "overlay": _Layer(layers.overlay, {}, spares_below=True),
}
