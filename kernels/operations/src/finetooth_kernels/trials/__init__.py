"""Trials of kernels: for the kit, and for a backend before it uses a kernel on a GPU."""

from finetooth_kernels.trials.calls import TRIALS, Trial, awkward, trials
from finetooth_kernels.trials.differences import TOLERANCE, Difference, first_difference, results

__all__ = ["TOLERANCE", "TRIALS", "Difference", "Trial", "awkward", "first_difference", "results", "trials"]
