"""How logits and soft targets travel each step: messages, their layout and the process group."""
