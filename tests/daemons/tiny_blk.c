// tiny_blk NAME FILE: a virtio-blk device on /dev/vduse whose disk is a mapped file.
//
// Written on Linux's uapi headers alone, after linux/vduse.h and virtio 1.3: it knows nothing of
// this project, and is small, as the first daemon somebody writes is. One thread, two split
// virtqueues. Requests are done one by one and in order, so that a successor of a killed program
// goes on from the used index. For little-endian machines.
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vduse.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_ring.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

enum { QUEUES = 2, QUEUE_SIZE = 128, MAPPINGS = 256, DEVICE = QUEUES, SIGNALS };

static const uint64_t NEEDED = 1ULL << VIRTIO_F_VERSION_1 | 1ULL << VIRTIO_F_ACCESS_PLATFORM;
static const uint64_t OFFERED = 1ULL << VIRTIO_F_VERSION_1 | 1ULL << VIRTIO_F_ACCESS_PLATFORM |
	1ULL << VIRTIO_BLK_F_FLUSH | 1ULL << VIRTIO_BLK_F_SEG_MAX | 1ULL << VIRTIO_BLK_F_MQ;

static struct mapping {
	uint64_t start, last;
	char *base;
	bool readable, writable;
} mappings[MAPPINGS];
static int mapped;

static struct queue {
	int kick;
	enum { OFF, ON, STOPPED } state;
	bool owes_irq;
	uint16_t num, next;
	uint64_t desc, avail, used;
} queues[QUEUES];

static const char *name;
static char *disk;
static uint64_t disk_size;
static int disk_fd, device;
static bool live;  // DRIVER_OK, agreed to by this program

// The memory at an IOVA, `room` bytes of it in one piece; NULL: nothing there, or not for this use.
static char *at(uint64_t iova, bool write, uint64_t *room)
{
	struct mapping *m = mappings;
	while (m < mappings + mapped && (iova < m->start || iova > m->last))
		m++;
	if (m == mappings + mapped) {
		struct vduse_iotlb_entry entry = { .start = iova, .last = iova };
		int fd = mapped < MAPPINGS ? ioctl(device, VDUSE_IOTLB_GET_FD, &entry) : -1;
		if (fd < 0)
			return NULL;
		*m = (struct mapping){ .start = entry.start, .last = entry.last };
		m->readable = entry.perm & VDUSE_ACCESS_RO;
		m->writable = entry.perm & VDUSE_ACCESS_WO;
		int protection = (m->readable ? PROT_READ : 0) | (m->writable ? PROT_WRITE : 0);
		m->base = mmap(NULL, m->last - m->start + 1, protection, MAP_SHARED, fd, entry.offset);
		close(fd);
		if (m->base == MAP_FAILED)
			return NULL;
		mapped++;
	}
	*room = m->last - iova + 1;
	return (write ? m->writable : m->readable) ? m->base + (iova - m->start) : NULL;
}

// All of a ring; NULL: not in one piece.
static void *ring(uint64_t iova, uint64_t size, bool write)
{
	uint64_t room;
	char *found = at(iova, write, &room);
	return found && room >= size ? found : NULL;
}

static void unmap(uint64_t start, uint64_t last)
{
	for (int i = mapped - 1; i >= 0; i--)
		if (mappings[i].start <= last && mappings[i].last >= start) {
			munmap(mappings[i].base, mappings[i].last - mappings[i].start + 1);
			mappings[i] = mappings[--mapped];
		}
}

// A chain's device-readable or device-writable bytes.
struct stream {
	int count;
	uint64_t size;
	struct { uint64_t iova, size; } part[QUEUE_SIZE];
};

// Copies `size` bytes between a stream, from byte `skip` on, and a buffer of ours.
static bool copy(const struct stream *s, uint64_t skip, char *buffer, uint64_t size, bool to_driver)
{
	for (int i = 0; i < s->count && size; i++) {
		uint64_t iova = s->part[i].iova, left = s->part[i].size;
		uint64_t over = skip < left ? skip : left;
		skip -= over, iova += over, left -= over;
		while (left && size) {
			uint64_t piece;
			char *memory = at(iova, to_driver, &piece);
			if (!memory)
				return false;
			piece = piece < left ? piece : left;
			piece = piece < size ? piece : size;
			memcpy(to_driver ? memory : buffer, to_driver ? buffer : memory, piece);
			iova += piece, left -= piece, buffer += piece, size -= piece;
		}
	}
	return !size;
}

// Does the request; its status (virtio 1.3, 5.2.6), and in *written how much data it has given.
static uint8_t perform(const struct stream *in, const struct stream *out, uint64_t *written)
{
	struct virtio_blk_outhdr header;
	char id[VIRTIO_BLK_ID_BYTES] = "tiny_blk";
	if (!copy(in, 0, (char *)&header, sizeof(header), false))
		return VIRTIO_BLK_S_IOERR;
	uint64_t incoming = in->size - sizeof(header), room = out->size - 1;
	uint64_t size = header.type == VIRTIO_BLK_T_IN ? room : incoming;
	bool fits = size % 512 == 0 && header.sector <= disk_size / 512 &&
		size <= disk_size - header.sector * 512;
	switch (header.type) {
	case VIRTIO_BLK_T_IN:
		if (!fits || !copy(out, 0, disk + header.sector * 512, size, true))
			return VIRTIO_BLK_S_IOERR;
		*written = size;
		return VIRTIO_BLK_S_OK;
	case VIRTIO_BLK_T_OUT:
		if (!fits || !copy(in, sizeof(header), disk + header.sector * 512, size, false))
			return VIRTIO_BLK_S_IOERR;
		return VIRTIO_BLK_S_OK;
	case VIRTIO_BLK_T_FLUSH:
		return fdatasync(disk_fd) ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
	case VIRTIO_BLK_T_GET_ID:
		size = room < sizeof(id) ? room : sizeof(id);
		if (!copy(out, 0, id, size, true))
			return VIRTIO_BLK_S_IOERR;
		*written = size;
		return VIRTIO_BLK_S_OK;
	}
	return VIRTIO_BLK_S_UNSUPP;
}

// One chain, done; the bytes written into it, or -1: no chain that a driver may make.
static int64_t serve(const struct vring_desc *table, uint16_t num, uint16_t head)
{
	struct stream in = { 0 }, out = { 0 };
	for (uint32_t i = head, steps = 0;; steps++) {
		if (i >= num || steps == num)
			return -1;
		struct vring_desc desc = table[i];
		struct stream *s = desc.flags & VRING_DESC_F_WRITE ? &out : &in;
		if (desc.flags & VRING_DESC_F_INDIRECT || (s == &in && out.count))
			return -1;
		s->part[s->count].iova = desc.addr;
		s->part[s->count++].size = desc.len;
		s->size += desc.len;
		if (!(desc.flags & VRING_DESC_F_NEXT))
			break;
		i = desc.next;
	}
	if (in.size < sizeof(struct virtio_blk_outhdr) || !out.size)
		return -1;
	uint64_t written = 0;
	uint8_t status = perform(&in, &out, &written);
	return copy(&out, out.size - 1, (char *)&status, 1, true) ? (int64_t)written + 1 : -1;
}

static void kick(struct queue *q)
{
	if (eventfd_write(q->kick, 1))
		err(1, "%s: kick", name);
}

static void stop(uint32_t index, const char *why)
{
	warnx("%s: virtqueue %u stops until the next reset: %s", name, index, why);
	queues[index].state = STOPPED;
}

// An irq where one is due. It is EINVAL until our OK to DRIVER_OK is known: tried again then, by a
// kick of our own.
static void interrupt(uint32_t index, const struct vring_avail *avail)
{
	struct queue *q = &queues[index];
	if (q->owes_irq && !(avail->flags & VRING_AVAIL_F_NO_INTERRUPT) &&
	    ioctl(device, VDUSE_VQ_INJECT_IRQ, &index)) {
		if (errno != EINVAL)
			err(1, "%s: irq of virtqueue %u", name, index);
		if (live)
			return kick(q);
	}
	q->owes_irq = false;
}

// Does everything that the driver has made available.
static void run(uint32_t index)
{
	struct queue *q = &queues[index];
	struct vring_desc *table = ring(q->desc, 16ULL * q->num, false);
	struct vring_avail *avail = ring(q->avail, 4 + 2ULL * q->num, false);
	struct vring_used *used = ring(q->used, 4 + 8ULL * q->num, true);
	if (!table || !avail || !used)
		return stop(index, "its rings are not mapped");
	for (;;) {
		uint16_t waiting = __atomic_load_n(&avail->idx, __ATOMIC_SEQ_CST) - q->next;
		if (waiting > q->num)
			return stop(index, "more is available than it has descriptors");
		if (!waiting)
			return interrupt(index, avail);
		uint16_t head = avail->ring[q->next % q->num];
		int64_t length = serve(table, q->num, head);
		if (length < 0)
			return stop(index, "this chain is no request");
		used->ring[q->next % q->num] = (struct vring_used_elem){ head, length };
		__atomic_store_n(&used->idx, ++q->next, __ATOMIC_SEQ_CST);
		q->owes_irq = true;
	}
}

// Begins a virtqueue that the driver has enabled; a predecessor's goes on behind what was used.
static void begin(uint32_t index, bool predecessor)
{
	struct queue *q = &queues[index];
	struct vduse_vq_info info = { .index = index };
	if (q->state != OFF || ioctl(device, VDUSE_VQ_GET_INFO, &info) || !info.ready)
		return;
	if (!info.num || info.num > QUEUE_SIZE)
		return stop(index, "not its size");
	q->state = ON;
	q->owes_irq = predecessor;
	q->num = info.num;
	q->next = info.split.avail_index;
	q->desc = info.desc_addr;
	q->avail = info.driver_addr;
	q->used = info.device_addr;
	struct vring_used *used = ring(q->used, 4, true);
	if (predecessor && used)
		q->next = used->idx;
	kick(q);  // what came before; not now, when a message may wait for its answer
}

// Takes kicks from now on, of virtqueues that are enabled later, too, and begins those that are.
static void start(bool predecessor)
{
	for (uint32_t i = 0; i < QUEUES; i++) {
		struct vduse_vq_eventfd setup = { i, queues[i].kick };
		if (ioctl(device, VDUSE_VQ_SETUP_KICKFD, &setup))
			err(1, "%s: kick eventfd of virtqueue %u", name, i);
		begin(i, predecessor);
	}
}

static uint32_t set_status(uint8_t status)
{
	uint64_t features = 0;
	if (ioctl(device, VDUSE_DEV_GET_FEATURES, &features))
		err(1, "%s: features", name);
	if (status == 0) {
		for (int i = 0; i < QUEUES; i++)
			queues[i].state = OFF;
		live = false;
		unmap(0, UINT64_MAX);
	} else if (status & VIRTIO_CONFIG_S_FEATURES_OK) {
		if (features & ~OFFERED || ~features & NEEDED)
			return VDUSE_REQ_RESULT_FAILED;
		live = status & VIRTIO_CONFIG_S_DRIVER_OK;
		if (live)
			start(false);
	}
	return VDUSE_REQ_RESULT_OK;
}

// Answers the next message; false: there is none.
static bool answer(void)
{
	struct vduse_dev_request request;
	ssize_t got = read(device, &request, sizeof(request));
	if (got < 0 && errno == EAGAIN)
		return false;
	if (got != sizeof(request))
		errx(1, "%s: the device is gone", name);
	struct vduse_dev_response response = { .request_id = request.request_id };
	uint32_t index = request.vq_state.index;
	if (request.type == VDUSE_SET_STATUS) {
		response.result = set_status(request.s.status);
	} else if (request.type == VDUSE_UPDATE_IOTLB) {
		unmap(request.iova.start, request.iova.last);
	} else if (request.type == VDUSE_GET_VQ_STATE && index < QUEUES) {
		response.vq_state.index = index;
		response.vq_state.split.avail_index = queues[index].next;
	} else {
		response.result = VDUSE_REQ_RESULT_FAILED;
	}
	if (write(device, &response, sizeof(response)) != sizeof(response) && errno != ENOENT)
		err(1, "%s: answer", name);
	return true;
}

// Opens the device; true: a predecessor's, which is as it has left it.
static bool create(int control)
{
	struct virtio_blk_config space = {
		.capacity = disk_size / 512, .seg_max = QUEUE_SIZE - 2, .num_queues = QUEUES,
	};
	struct vduse_dev_config *config = calloc(1, sizeof(*config) + sizeof(space));
	char path[sizeof("/dev/vduse/") + VDUSE_NAME_MAX];
	uint64_t version = 0;
	snprintf(config->name, sizeof(config->name), "%s", name);
	snprintf(path, sizeof(path), "/dev/vduse/%s", config->name);
	config->device_id = VIRTIO_ID_BLOCK;
	config->features = OFFERED;
	config->vq_num = QUEUES;
	config->vq_align = 4096;
	config->config_size = sizeof(space);
	memcpy(config->config, &space, sizeof(space));
	if (ioctl(control, VDUSE_SET_API_VERSION, &version))
		err(1, "API version 0");
	bool exists = ioctl(control, VDUSE_CREATE_DEV, config) != 0;
	if (exists && errno != EEXIST)
		err(1, "%s: create", name);
	device = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (device < 0)
		err(1, "%s", path);
	for (uint32_t i = 0; i < QUEUES; i++) {
		struct vduse_vq_config setup = { .index = i, .max_size = QUEUE_SIZE };
		if (ioctl(device, VDUSE_VQ_SETUP, &setup))
			err(1, "%s: virtqueue %u", name, i);
	}
	free(config);
	return exists;
}

static void watch(int epoll, int fd, uint32_t what)
{
	struct epoll_event event = { EPOLLIN, { .u32 = what } };
	if (fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		err(1, "epoll");
}

int main(int argc, char **argv)
{
	struct stat file;
	if (argc != 3)
		errx(2, "usage: tiny_blk NAME FILE");
	name = argv[1];
	disk_fd = open(argv[2], O_RDWR | O_CLOEXEC);
	if (disk_fd < 0 || fstat(disk_fd, &file))
		err(1, "%s", argv[2]);
	disk_size = file.st_size / 512 * 512;
	disk = mmap(NULL, disk_size, PROT_READ | PROT_WRITE, MAP_SHARED, disk_fd, 0);
	if (disk == MAP_FAILED)
		err(1, "%s", argv[2]);
	int control = open("/dev/vduse/control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		err(1, "/dev/vduse/control");
	sigset_t ends;
	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGINT);
	sigprocmask(SIG_BLOCK, &ends, NULL);
	bool exists = create(control);
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	watch(epoll, device, DEVICE);
	watch(epoll, signalfd(-1, &ends, SFD_CLOEXEC), SIGNALS);
	for (int i = 0; i < QUEUES; i++)
		watch(epoll, queues[i].kick = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), i);
	if (exists)
		start(true);
	for (;;) {
		struct epoll_event event;
		eventfd_t kicks;
		if (epoll_wait(epoll, &event, 1, -1) != 1)
			continue;  // a signal
		if (event.data.u32 == SIGNALS)
			break;
		if (event.data.u32 == DEVICE) {
			if (event.events & ~EPOLLIN)
				errx(1, "%s: the device was given up", name);
			while (answer())
				;
			continue;
		}
		struct queue *q = &queues[event.data.u32];
		if (eventfd_read(q->kick, &kicks))
			continue;
		begin(event.data.u32, false);
		if (q->state == ON)
			run(event.data.u32);
	}
	close(device);
	char destroyed[VDUSE_NAME_MAX] = "";
	snprintf(destroyed, sizeof(destroyed), "%s", name);
	// One that a driver has stays, for a successor.
	if (ioctl(control, VDUSE_DESTROY_DEV, destroyed) && errno != EBUSY)
		err(1, "%s: destroy", name);
	return 0;
}
