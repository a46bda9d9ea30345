"""From records to answers: when a run reaches its target, and who is ahead by the test over seeds."""
