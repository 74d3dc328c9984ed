"""accelerate keeps its state for the process: the next run or test starts without it."""

from accelerate.state import AcceleratorState, GradientState, PartialState


def reset_accelerate() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
