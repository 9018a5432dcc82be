"""The parts that users configure. What two of them need goes down a floor."""
