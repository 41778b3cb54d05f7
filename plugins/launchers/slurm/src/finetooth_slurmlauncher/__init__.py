"""Ranks as tasks of a SLURM job."""
