"""A cache of keys and values whose rows are copied, once their prompt is read, and leave when their answer has ended.

transformers' own layers grow by concatenation, which copies all that is there for every token. Those of attention are
exchanged for layers with room in front of them; every other kind keeps its state in a few small tensors and is selected
from as it is. Shapes: ``R`` rows, ``H`` heads, ``T`` positions, ``D`` size of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class RoomyLayer(DynamicLayer):
    """Keys and values that are written into room that is already there."""

    keys: Tensor
    values: Tensor

    def __init__(self, layer: Any, rows_R: Tensor, room: int) -> None:
        """Take the rows of a layer that has read the prompts, each as often as `rows_R` names it.

        Args:
            layer: of transformers, initialised.
            rows_R: which of its rows become ours.
            room: positions that will follow.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device = layer.dtype, layer.device
        self.is_initialized = True
        self._start, self._end = 0, layer.keys.shape[-2]
        self._keys, self._values = (_with_room(states, rows_R, room) for states in (layer.keys, layer.values))
        self._show()

    def _show(self) -> None:
        self.keys = self._keys[:, :, self._start : self._end]
        self.values = self._values[:, :, self._start : self._end]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new positions and return all."""
        here, self._end = self._end, self._end + key_states.shape[-2]
        self._keys[:, :, here : self._end] = key_states
        self._values[:, :, here : self._end] = value_states
        self._show()
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Keep these rows, no more than there are, in this order."""
        size = len(beam_idx)
        moved = (beam_idx != beam_idx.new_tensor(range(size))).nonzero()[:, 0]
        for states in (self._keys, self._values):
            used = states[:, :, self._start : self._end]
            used[moved] = used[beam_idx[moved]]
        self._keys, self._values = self._keys[:size], self._values[:size]
        self._show()


class RoomySlidingLayer(RoomyLayer):
    """The same where attention reaches back `sliding_window` positions: what lies behind is no longer shown."""

    is_sliding = True

    def __init__(self, layer: Any, rows_R: Tensor, room: int) -> None:
        super().__init__(layer, rows_R, room)
        self.sliding_window, self.cumulative_length = layer.sliding_window, layer.cumulative_length

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new positions and return them with those before that the first of them can see."""
        self.cumulative_length += key_states.shape[-2]
        shown = super().update(key_states, value_states)
        self._start = max(self._start, self._end - self.sliding_window + 1)
        self._show()
        return shown

    get_mask_sizes = DynamicSlidingWindowLayer.get_mask_sizes
    get_seq_length = DynamicSlidingWindowLayer.get_seq_length
    get_max_length = DynamicSlidingWindowLayer.get_max_length


ROOMY: dict[Any, type[RoomyLayer]] = {DynamicLayer: RoomyLayer, DynamicSlidingWindowLayer: RoomySlidingLayer}


def _with_room(states_RHTD: Tensor, rows_R: Tensor, room: int) -> Tensor:
    rows, heads, size, width = states_RHTD.shape
    roomy = states_RHTD.new_empty((len(rows_R), heads, size + room, width))
    roomy[:, :, :size] = states_RHTD if len(rows_R) == rows else states_RHTD[rows_R]
    return roomy


def spread_rows(cache: Any, rows_R: Tensor, room: int) -> None:
    """Let every row of a cache stand as often as `rows_R` names it (each at least once, in order), with room to grow.

    Args:
        cache: transformers', after the prompts were read.
        rows_R: for each new row, which row it comes from.
        room: positions that will follow.
    """
    for place, layer in enumerate(cache.layers):
        # Exact classes: what derives from them may hold more than keys and values.
        roomy = ROOMY.get(type(layer))
        if roomy is not None and layer.is_initialized:
            cache.layers[place] = roomy(layer, rows_R, room)
        else:
            layer.reorder_cache(rows_R)


def keep_rows(cache: Any, rows_R: Tensor) -> None:
    """Keep these rows of a cache, in this order."""
    cache.reorder_cache(rows_R)
