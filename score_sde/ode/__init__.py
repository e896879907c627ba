"""The probability flow: its coordinates, its clock, and the integrators that follow it."""
