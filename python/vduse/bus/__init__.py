"""The vDPA bus, its drivers, and what a program does with them."""
