"""The API of the managers: what people and tools may ask, checked in full, decided by pure functions, and brought to the
leader from whichever manager was asked."""
