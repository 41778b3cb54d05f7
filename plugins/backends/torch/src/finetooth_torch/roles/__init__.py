"""Models other than the policy, and the base that they share."""
