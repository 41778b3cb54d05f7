"""What methods share that learn from what they sample: rollouts, their rewards and advantages, and steps over them."""
