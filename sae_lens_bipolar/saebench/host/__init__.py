"""Running SAEBench safely: its faults worked around, its surroundings restored."""
