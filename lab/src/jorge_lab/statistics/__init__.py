"""From records to answers: when a run reaches its target, who is faster by the test over seeds, how seconds repeat."""
