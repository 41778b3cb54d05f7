"""DiLoCo: islands train apart and exchange pseudo-gradients."""
