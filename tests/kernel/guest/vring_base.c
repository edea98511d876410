/* Between crate virtio-driver and the kernel (LD_PRELOAD): the crate sets the base of every vring to
 * 0, which says wrap counters of 0 on a packed ring; there they start with 1 (virtio 1.3, section
 * 2.8.1), in bit 15 for the driver's and in bit 31 for the device's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/vhost.h>
#include <stdarg.h>

int ioctl(int fd, unsigned long request, ...)
{
	static int (*next)(int, unsigned long, void *);
	va_list arguments;
	va_start(arguments, request);
	void *argument = va_arg(arguments, void *);
	va_end(arguments);
	if (!next)
		next = (int (*)(int, unsigned long, void *))dlsym(RTLD_NEXT, "ioctl");
	if (request != VHOST_SET_VRING_BASE)
		return next(fd, request, argument);
	struct vhost_vring_state *asked = argument, state = *asked;
	state.num |= 1u << 15 | 1u << 31;
	return next(fd, request, &state);
}
