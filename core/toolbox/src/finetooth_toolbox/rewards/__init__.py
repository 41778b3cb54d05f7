"""What rewards share: processes that run functions which may raise, hang or use SIGALRM."""
