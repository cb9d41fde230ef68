"""The rows of files in the coordinator's answer."""

from __future__ import annotations

from pathlib import Path

import torch
from stored_files import write_logits

from kdcl_dist.coordinator.aligned_logits import Aligned
from kdcl_dist.coordinator.stored_members import StoredMembers
from kdcl_dist.data.stored_logits import StoredLogits
from kdcl_dist.exchange.message import Message, MessageLayout


def test_logits_that_half_precision_has_not_stay_finite(data: dict[str, str], tmp_path: Path) -> None:
    file = StoredLogits(write_logits(tmp_path / "t.arrow", data["train"], 0))
    ids, logits = torch.arange(2), torch.tensor([[1e6, 1.0], [-1e6, 2.0]])
    answer = Message(MessageLayout(2, 2, torch.float16))
    StoredMembers(["t"], {0: file}).write_rows(Aligned(ids, ids, logits[None]), answer)
    assert answer.contribution().logits.tolist() == [[65504, 1], [-65504, 2]]
