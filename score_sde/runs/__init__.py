"""Trained runs: their directories, and one file for each thing that is done with one."""
