"""How long it takes to exchange arrays over a link.

All peers have the same link to the others and exchange in a ring, each with its two neighbours (Thakur et al., 2005,
sections 4.1 and 4.4). A sum is passed around twice, in parts; what each gets from all others once, whole. Every passing
on takes half a round trip more than its bytes, and bytes go in packets with headers of Ethernet, IPv4 and TCP. A ring
that leaves a machine is as slow as the links between machines.

TCP keeps the link full, as one does that fills the queue before it (Reno, RFC 5681). One that sends at the rate that it
has measured (BBR, Cardwell et al., 2017) was up to a third slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetooth_hooks.protocols import Traffic

PAYLOAD, HEADERS = 1448, 66
"""Bytes of data in a full packet of Ethernet, and of its headers with TCP's time stamp."""


@dataclass(frozen=True)
class Link:
    """Between two peers.

    Attributes:
        rate: bits per second that a peer sends, headers included.
        round_trip: seconds there and back.
    """

    rate: float
    round_trip: float


@dataclass(frozen=True)
class Machines:
    """Ranks on machines, in order.

    Attributes:
        ranks: on each.
        between, within: the links of a rank to those of other machines, and of its own.
    """

    ranks: int
    between: Link
    within: Link

    def link(self, traffic: Traffic) -> Link:
        """That an exchange goes over."""
        return self.between if self.ranks % (traffic.span or traffic.peers) else self.within


@dataclass(frozen=True)
class Sent:
    """What one peer sends in a run.

    Attributes:
        exchanges: how often it exchanges.
        given: bytes of what it gives to its collective, all exchanges together.
        wire: bytes that it puts on the link, since parts are passed on; headers do not count.
        seconds: that all exchanges take, if nothing is computed meanwhile.
    """

    exchanges: int
    given: int
    wire: int
    seconds: float


def sent(traffic: Traffic, link: Link, steps: int) -> Sent:
    """What a peer sends in a run of so many steps; the last exchange comes with the last step."""
    exchanges = -(-steps // traffic.every)
    hops = (2 if traffic.summed else 1) * (traffic.peers - 1)
    given = (exchanges - 1) * traffic.sent + (traffic.sent if traffic.last is None else traffic.last)
    wire = hops * given / (traffic.peers if traffic.summed else 1)
    seconds = wire * (1 + HEADERS / PAYLOAD) * 8 / link.rate + exchanges * traffic.calls * hops * link.round_trip / 2
    return Sent(exchanges, given, round(wire), seconds)


def together(parts: Sequence[Sent]) -> Sent:
    """What a peer sends in several exchanges, one after the other."""
    exchanges = max(of.exchanges for of in parts)
    given, wire = sum(of.given for of in parts), sum(of.wire for of in parts)
    return Sent(exchanges, given, wire, sum(of.seconds for of in parts))
