"""Models of roles other than the policy, and the shared base."""
