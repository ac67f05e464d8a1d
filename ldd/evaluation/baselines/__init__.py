"""Sets to which every evaluation compares the distilled one."""
