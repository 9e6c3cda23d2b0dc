"""The arguments of a forward that say where a batch's tokens are: a padded batch's mask, or a packed one's offsets."""

from __future__ import annotations

import torch
from torch import Tensor

from ..nn import Packing

_GIVE_OFFSETS = (
    "a packed batch has to bring the offsets of its sequences, cu_seq_lens_q and max_length_q "
    "(DataCollatorWithFlattening(return_flash_attn_kwargs=True), or PackedCollator); one sequence, an attention_mask "
    "of ones"
)
#: Arguments of a forward that bring a packed batch's offsets.
OFFSETS = ("cu_seq_lens_q", "max_length_q", "cu_seq_lens_k", "max_length_k")


def refuse_tracing(attention_mask: Tensor | None) -> None:
    """Raises RuntimeError while a graph is recorded that would hold for this batch's padding alone.

    torch.export takes a packed batch, and one without a mask; traces and ONNX graphs take no converted model.
    """
    exporting = torch.compiler.is_exporting()
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]  # torch documents it
    if tracing or (exporting and torch.onnx.is_in_onnx_export()):
        raise RuntimeError(
            "a converted model cannot be traced or exported to ONNX: a trace would keep what is padding in its "
            "example, and ONNX lacks the ops. Call earlybert_kernels.restore(model) first"
        )
    if exporting and attention_mask is not None:
        raise RuntimeError(
            "torch.export of a converted model takes no attention_mask: shapes in the graph would depend on its "
            "values. Call earlybert_kernels.restore(model) first, or export it with a packed batch (cu_seq_lens_q)"
        )


def read_offsets(
    shape: tuple[int, int],
    position_ids: Tensor | None,
    attention_mask: Tensor | None,
    *,
    seq_idx: Tensor | None = None,
    **offsets: Tensor | int | None,
) -> dict[str, Tensor | int]:
    """The offsets of a flattened batch that came without them, as transformers' `DataCollatorWithFlattening` makes it.

    Such a batch is one row without mask whose positions begin again with every sequence. Reading them makes the host
    wait once for the device that they are on; a batch with offsets is not looked at, nor are positions that rise.

    Args:
        shape: `(B, S)` of the batch.
        position_ids: int `(T,)` or `(1, T)`, or None.
        attention_mask: one of ones says that the row is one sequence, whatever its positions.
        seq_idx: which sequence a token is of, as the collator can give it; positions or offsets have to say the same.
        offsets: what the batch has of `cu_seq_lens_q` and the like.

    Returns:
        `cu_seq_lens_q`, int32 `(sequences + 1,)` on the device of the positions, and `max_length_q`, an int; nothing
        when the batch has offsets already, or is a padded one.

    Raises:
        ValueError: the sequences cannot be told from the positions, or these cannot be read (while a model is
            exported or captured in a CUDA graph, and on the meta device).
    """
    if attention_mask is not None or shape[0] != 1 or any(given is not None for given in offsets.values()):
        return {}
    if position_ids is None:
        if seq_idx is not None:
            raise ValueError(f"the batch has seq_idx and no position_ids: {_GIVE_OFFSETS}")
        return {}
    if shape[1] < 2 or position_ids.numel() != shape[1]:
        return {}
    capturing = position_ids.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if capturing or position_ids.is_meta or torch.compiler.is_exporting():
        raise ValueError(f"position_ids of one row cannot be read here, to see where sequences begin: {_GIVE_OFFSETS}")
    positions = position_ids.detach().reshape(-1).cpu()
    starts = (positions[1:] <= positions[:-1]).nonzero().squeeze(1) + 1
    if not starts.numel():
        return {}
    if starts.numel() == len(positions) - 1 or (positions[starts] != positions[0]).any():  # no two tokens of one
        raise ValueError(
            "position_ids of the row neither rise throughout nor begin again where they began, so that they do not "
            f"say where its sequences are: {_GIVE_OFFSETS}"
        )
    ends = torch.cat([starts.new_zeros(1), starts, starts.new_tensor([shape[1]])]).int()
    return {"cu_seq_lens_q": ends.to(position_ids.device, non_blocking=True), "max_length_q": int(ends.diff().max())}


def find_packing(
    shape: tuple[int, int],
    device: torch.device,
    attention_mask: Tensor | None = None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_k: int | None = None,
) -> Packing:
    """Where the tokens of a batch are, by what a model's forward was given.

    Args:
        shape: `(B, S)`, or `(1, T)` of a packed batch.
        device: the batch's.
        attention_mask: `(B, S)`, non-zero at real tokens; None when all are, or the batch is packed. One that has
            stayed on the CPU, beside a batch on a GPU, spares the host a wait.
        cu_seq_lens_q: int32 `(sequences + 1,)`, which make a batch a packed one: the first token of each sequence,
            and T. These names are those of transformers' `DataCollatorWithFlattening`.
        max_length_q: no sequence is longer; a number on the host.
        cu_seq_lens_k, max_length_k: the same again, as transformers' collators give them; they need not be given.

    Raises:
        ValueError: the arguments do not fit the batch or each other.
        TypeError: `cu_seq_lens_q` is not int32, or `max_length_q` not an int.
    """
    if cu_seq_lens_q is None:
        if any(given is not None for given in (max_length_q, cu_seq_lens_k, max_length_k)):
            raise ValueError("a packed batch needs cu_seq_lens_q, the offsets of its sequences")
        if attention_mask is not None and tuple(attention_mask.shape) != shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; a converted model takes the padding mask "
                f"of the batch, {shape}, and no other"
            )
        return Packing.from_mask(attention_mask, *shape, device)
    if attention_mask is not None:
        raise ValueError(
            "attention_mask and cu_seq_lens_q were both given: a batch is either padded, with a mask, or packed, "
            "with offsets, and then holds no padding"
        )
    if shape[0] != 1:
        raise ValueError(f"a packed batch is one row of tokens, (1, T); this one, with cu_seq_lens_q, is {shape}")
    _check_offsets(cu_seq_lens_q, shape[1], device)
    if not isinstance(max_length_q, int | torch.SymInt):
        raise TypeError(
            f"max_length_q is {max_length_q!r}: a packed batch needs the length of its longest sequence as an int, "
            "which the device need not be asked for"
        )
    # Inductor's code for two ints that have been found equal names one that it does not define (torch 2.11 to 2.13).
    if not torch.compiler.is_compiling() and max_length_k not in (None, max_length_q):
        raise ValueError(f"max_length_k is {max_length_k}, expected max_length_q, {max_length_q}, or nothing")
    if cu_seq_lens_k is not None and not _equal(cu_seq_lens_k, cu_seq_lens_q):
        raise ValueError("cu_seq_lens_k differs from cu_seq_lens_q: in an encoder a token attends to its own sequence")
    packing = Packing.from_offsets(cu_seq_lens_q, max_length_q, shape[1])
    return packing._replace(has_empty=bool((cu_seq_lens_q.diff() == 0).any())) if _can_read(cu_seq_lens_q) else packing


def _check_offsets(offsets: Tensor, tokens: int, device: torch.device) -> None:
    if offsets.dtype != torch.int32:
        raise TypeError(f"cu_seq_lens_q is {offsets.dtype}, expected torch.int32")
    if offsets.dim() != 1 or offsets.shape[0] < 2:
        raise ValueError(f"cu_seq_lens_q has shape {tuple(offsets.shape)}, expected (sequences + 1,)")
    if offsets.device != device:
        raise ValueError(f"cu_seq_lens_q is on {offsets.device} and the batch on {device}")
    if _can_read(offsets) and (offsets[0] != 0 or offsets[-1] != tokens):
        raise ValueError(
            f"cu_seq_lens_q runs from {int(offsets[0])} to {int(offsets[-1])}, expected 0 to the batch's {tokens} "
            "tokens"
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return not _can_read(a) or not _can_read(b) or torch.equal(a, b)


def _can_read(x: Tensor) -> bool:
    """Whether the host can look at values without waiting for a device."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
