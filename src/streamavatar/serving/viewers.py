"""Everyone who watches one session: the user's own peer and viewers that only receive, all with the same ticks."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamavatar.errors import UserError
from streamavatar.serving.clock import MediaClock
from streamavatar.serving.lanes import Int16
from streamavatar.serving.rtc import OpusTicks, Peer

USER = "user"
"""The id of the user's own peer."""


class Viewers:
    """Peers by id. Nothing is encoded while nobody is there.

    Args:
        clock: gives the time stamps.
        microphone: gets what the user's peer sends, int16 mono samples and their rate.
        on_change: called with an id, `connected` or `closed`, and a reason.
        ice_servers, silent_seconds: as `Peer` takes them.
        most: viewers besides the user.
    """

    def __init__(
        self,
        clock: MediaClock,
        *,
        microphone: Callable[[Int16, int], None],
        on_change: Callable[[str, str, str], None],
        ice_servers: Sequence[Mapping[str, Any]],
        silent_seconds: float,
        most: int,
    ) -> None:
        self._clock, self._microphone, self._on_change = clock, microphone, on_change
        self._ice_servers, self._silent_seconds, self._most = ice_servers, silent_seconds, most
        self._opus: OpusTicks | None = None
        self._peers: dict[str, Peer] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = False
        self._dropped = 0

    # who is there ----------------------------------------------------------------------------------

    @property
    def user(self) -> Peer | None:
        return self._peers.get(USER)

    @property
    def count(self) -> int:
        """Peers that are connected."""
        return sum(peer.state == "connected" for peer in self._peers.values())

    @property
    def dropped(self) -> int:
        """Ticks that viewers lost, summed over all of them."""
        return self._dropped + sum(peer.dropped for peer in self._peers.values())

    async def offer(self, sdp: str) -> str:
        """Connect the user's peer in place of an earlier one; the answer's SDP. Raises UserError."""
        peer = self._peer(self._microphone)
        answer = await self._answer(peer, sdp)
        self._leave(USER, "another connection took its place")
        self._peers[USER] = peer
        return answer

    async def add_candidate(self, candidate: Mapping[str, Any] | None) -> None:
        """A trickled candidate of the user's peer. Raises UserError."""
        if self.user is None:
            raise UserError("there is no connection that a candidate could belong to: send the offer first")
        await self.user.add_candidate(candidate)

    async def watch(self, sdp: str) -> tuple[str, str]:
        """Add a viewer; its id and the answer's SDP. Raises UserError."""
        if len(self._peers.keys() - {USER}) >= self._most:
            raise UserError(f"this session has {self._most} viewers already: remove one first")
        viewer = secrets.token_urlsafe(9)
        peer = self._peers[viewer] = self._peer(None)  # it counts from now on, also while it is being answered
        try:
            return viewer, await self._answer(peer, sdp)
        except UserError:
            self._peers.pop(viewer, None)
            raise

    async def drop(self, viewer: str) -> bool:
        """Remove a viewer; False if there is none of that id."""
        task = self._leave(viewer, "the viewer left") if viewer != USER else None
        if task:
            await task
        return task is not None

    async def close(self, reason: str) -> None:
        """Close everything."""
        self._closed = True
        for name in list(self._peers):
            self._leave(name, reason)
        await asyncio.gather(*self._leaving)
        self._opus = None  # its threads end with it, not when the garbage is collected

    def _peer(self, microphone: Callable[[Int16, int], None] | None) -> Peer:
        return Peer(
            self._ice_servers,
            microphone=microphone,
            on_change=self._changed,
            silent_seconds=self._silent_seconds,
        )

    async def _answer(self, peer: Peer, sdp: str) -> str:
        answer = await peer.answer(sdp)
        if self._closed:
            await peer.close("the session ended")
            raise UserError("the session has ended: begin another")
        return answer

    def _leave(self, name: str, reason: str) -> asyncio.Task[None] | None:
        """Forget a peer at once; the task that closes it in its own time, None if there is no such peer."""
        peer = self._peers.pop(name, None)
        if peer is None:
            return None
        self._dropped += peer.dropped
        task = asyncio.create_task(peer.close(reason))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return task

    def _changed(self, peer: Peer) -> None:
        name = next((name for name, known in self._peers.items() if known is peer), None)
        if name is None:
            return
        if peer.state == "closed":
            self._leave(name, peer.reason)
        self._on_change(name, peer.state, peer.reason)

    # what they get ---------------------------------------------------------------------------------

    def put(self, slot: int, now: float, picture: NDArray[np.uint8], samples: Int16) -> None:
        """One tick for everybody."""
        packets: list[bytes] = []
        if any(peer.hears for peer in self._peers.values()):
            self._opus = self._opus or OpusTicks()
            packets = self._opus.encode(samples)
        for peer in self._peers.values():
            peer.put(self._clock, slot, now, picture, packets)

    def send(self, text: str) -> None:
        """An event for everybody who has the channel."""
        for peer in self._peers.values():
            peer.send(text)
