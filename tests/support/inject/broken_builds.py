"""Deliberate defects of recovery, to see that a soak's check finds each: KDCL_TEST_BROKEN names one."""


def skipped_step() -> None:
    """A rollback goes on one step after its checkpoint."""
    from kdcl_dist.config.rounds import RunSchedule

    first = RunSchedule.first
    RunSchedule.first = lambda schedule, step: first(schedule, step + 1 if step else 0)


def lost_part() -> None:
    """One student does not take its state from the checkpoint."""
    from kdcl_dist.student.student import Student

    load = Student.load_state_dict

    def loaded(student, state):
        if student.spec.name != "mlp":
            load(student, state)

    Student.load_state_dict = loaded


def old_message() -> None:
    """The first logits of a student in a generation are those of its last message of the one before."""
    from kdcl_dist.exchange.message import Message

    write_rows, last = Message.write_rows, {}

    def written(message, ids, logits, labels=None):
        generation = int(message.header["generation"])
        old = last.get(generation - 1)
        if generation in last or old is None or old.shape != logits.shape:
            old = logits
        last[generation] = logits.detach().clone()
        write_rows(message, ids, old, labels)

    Message.write_rows = written
