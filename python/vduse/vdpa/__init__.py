"""The kernel's vDPA bus: its management over generic netlink, its drivers by sysfs."""
