"""Sets that stand beside the distilled one in every evaluation."""
