"""Health and rules of many tags at once: the kernel, and its plain reference beside it."""
