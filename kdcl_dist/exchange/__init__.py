"""The exchange of logits and soft targets each step: messages, their layout, the process group, replicas."""
