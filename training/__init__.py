"""How a Triune model is trained: arguments, data, tasks, the one loop, run state. Arriving part by part."""
