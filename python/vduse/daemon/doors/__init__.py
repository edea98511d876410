"""The embedded framework's ways out of its process: sockets for those who use a device."""
