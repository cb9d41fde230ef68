"""How the coordinator, or an assistant of it, gathers and answers the messages of a training round."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import Round
from kdcl_dist.config.student import Worker
from kdcl_dist.coordinator.aggregator import Aggregator, Answer
from kdcl_dist.coordinator.aligned_logits import Arrivals
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.message import Message

__all__ = ["answer_round", "gather_rows"]


def gather_rows(
    exchange: Exchange, recipe: Recipe, workers: Sequence[Worker]
) -> tuple[Sequence[Message], Arrivals]:
    """Gather the messages of a training round; rows, still unchecked, are sorted while others are awaited.

    Args:
        exchange: the group.
        recipe: of the run.
        workers: that take part.

    Raises:
        KdclError: as of `Exchange.gather`.
    """
    arrivals = Arrivals(len(recipe.students))

    def arrived(number: int) -> None:
        """Begin with a worker's rows, if they are all of its student's and of one step."""
        student = workers[number].student
        if recipe.distillation.window == 1 and recipe.students[student].replicas == 1:
            arrivals.add(student, exchange.messages[number].contribution())

    return exchange.gather(arrived=arrived), arrivals


def answer_round(
    aggregator: Aggregator,
    messages: Sequence[Message],
    round: Round,
    outgoing: Message,
    arrivals: Arrivals,
) -> Answer:
    """Form the soft target of a round's messages, and write it into the message that answers them.

    With a method of peers the answer has the logits of the members that send no messages.

    Args:
        aggregator: forms it.
        messages: of the present workers.
        round: of TRAIN.
        outgoing: takes the rows.
        arrivals: of some of the messages; those of whom another coordinator has bad numbers are added.

    Raises:
        KdclError: as of `Aggregator.answer`.
    """
    arrivals.bad |= aggregator.flagged(messages)
    parts = aggregator.parts(messages)
    answer = aggregator.answer(parts, round.step, round.epoch, round.part, arrivals)
    if answer.target is not None:
        # In half precision a tiny probability's logarithm would be infinite.
        lowest = torch.finfo(outgoing.layout.dtype).min
        outgoing.write_rows(answer.target.ids, answer.target.log_probabilities.clamp(min=lowest))
    elif aggregator.recipe.answers_rows and answer.known is not None:
        aggregator.stored.write_rows(answer.known, outgoing)
    return answer
