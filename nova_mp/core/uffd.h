/* Write protection of mapped pages: what the kernel is asked for.
 *
 * Two ways, chosen per process. userfaultfd protects from outside, even a stopped process, and also
 * catches stores that the kernel makes in a system call. Where it is not permitted, mprotect and a
 * SIGSEGV handler do the same for the process's own stores; a system call that stores into a
 * protected page then fails with EFAULT.
 *
 * Nothing here knows files or snapshots. Functions return 0 or -errno unless they say otherwise.
 */
#ifndef NOVA_MP_UFFD_H
#define NOVA_MP_UFFD_H

#include "arch.h"
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

enum { NV_PROTECT_NONE = 0, NV_PROTECT_UFFD = 1, NV_PROTECT_UFFD_USER = 2, NV_PROTECT_SIGNAL = 3 };

/* ---- areas of memory ---- */

/* A range of addresses that nothing may use yet; NULL without memory. */
static inline uint8_t *nv_reserve(uint64_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : (uint8_t *)p;
}

/* Puts a second view of shared memory at `to`. An old size of 0 asks mremap for just that, and
 * needs no descriptor of what is mapped. */
static inline int nv_alias(uint8_t *to, const uint8_t *from, uint64_t bytes, int writable)
{
    void *p = mremap((void *)from, 0, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    if (p == MAP_FAILED)
        return -errno;
    return writable || mprotect(to, bytes, PROT_READ) == 0 ? 0 : -errno;
}

/* Private zeros, or private memory to be filled. */
static inline int nv_private(uint8_t *to, uint64_t bytes, int writable)
{
    int prot = PROT_READ | (writable ? PROT_WRITE : 0);
    void *p = mmap(to, bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return p == MAP_FAILED ? -errno : 0;
}

/* Nothing there may be used any more, though somebody may still have its address. */
static inline void nv_forbid(uint8_t *at, uint64_t bytes)
{
    mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

static inline void nv_unmap(uint8_t *at, uint64_t bytes) { munmap(at, bytes); }
static inline int nv_access(uint8_t *at, uint64_t bytes, int writable)
{
    return mprotect(at, bytes, PROT_READ | (writable ? PROT_WRITE : 0)) == 0 ? 0 : -errno;
}

/* ---- userfaultfd ---- */

static inline int nv_uffd_new(int flags)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags), device;
    if (fd >= 0 || flags)
        return fd >= 0 ? fd : -errno;
    device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0)
        return -EPERM;
    fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    close(device);
    return fd >= 0 ? fd : -EPERM;
}

/* A descriptor that write-protects shared memory, and how far it reaches in `mode`; or -errno. */
static inline int nv_uffd_open(int *mode)
{
    int fd = nv_uffd_new(0);
    *mode = NV_PROTECT_UFFD;
    if (fd < 0) {
        fd = nv_uffd_new(UFFD_USER_MODE_ONLY);
        *mode = NV_PROTECT_UFFD_USER;
    }
    if (fd < 0)
        return fd;
    struct uffdio_api api = { .api = UFFD_API,
                              .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP
                                          | UFFD_FEATURE_WP_HUGETLBFS_SHMEM
                                          | UFFD_FEATURE_THREAD_ID };
    if (ioctl(fd, UFFDIO_API, &api) == 0)
        return fd;
    close(fd);
    return -ENOSYS;
}

static inline int nv_uffd_register(int fd, uint8_t *at, uint64_t bytes)
{
    struct uffdio_register r = { .range = { (uintptr_t)at, bytes },
                                 .mode = UFFDIO_REGISTER_MODE_WP };
    return ioctl(fd, UFFDIO_REGISTER, &r) == 0 ? 0 : -errno;
}

/* -ENOENT: not mapped (any more); whoever waits there finds out. -ESRCH: the process is gone. */
static inline int nv_uffd_protect(int fd, uint64_t at, uint64_t bytes, int on)
{
    struct uffdio_writeprotect w = { .range = { at, bytes },
                                     .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0 };
    for (;;) {
        if (ioctl(fd, UFFDIO_WRITEPROTECT, &w) == 0)
            return 0;
        if (errno == ENOENT && !on) {
            ioctl(fd, UFFDIO_WAKE, &w.range);
            return -ENOENT;
        }
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
    }
}

/* Lets stores to many pages of this process go on, and wakes who waits, by mapping them anew from
 * `source`. After the kernel took write protection off, the first store to each page would fault
 * once more for the page to become writable; pages of a new mapping come with a fault for 16 of
 * them, and are writable if that is not registered yet. -EFAULT: nothing is mapped there any more,
 * since what is mapped could not be registered. Any other error leaves all as it was. */
static inline int nv_uffd_renew(int fd, uint8_t *at, uint64_t bytes, const uint8_t *source)
{
    struct uffdio_range range = { (uintptr_t)at, bytes };
    int rc = nv_alias(at, source, bytes, 1);
    if (rc != 0)
        return rc;
    madvise(at, bytes, MADV_POPULATE_READ);
    if (nv_uffd_register(fd, at, bytes) != 0) {
        nv_forbid(at, bytes);
        rc = -EFAULT;
    }
    ioctl(fd, UFFDIO_WAKE, &range);
    return rc;
}

/* ---- protecting much memory ---- */

enum { NV_HELPERS = 3, NV_PART = 32 << 20 };

struct nv_protect_part {
    pthread_t thread;
    int fd, rc, started;
    uint64_t at, bytes;
};

static inline void *nv_protect_part_run(void *argument)
{
    struct nv_protect_part *part = argument;
    part->rc = nv_uffd_protect(part->fd, part->at, part->bytes, 1);
    return NULL;
}

static int nv_thread_start(pthread_t *thread, void *(*body)(void *), void *argument);

/* Protects a range, large ones with some threads at once: the kernel takes 25 to 40 ms for a GiB,
 * page by page, and lets several work on different parts of it. */
static inline int nv_uffd_protect_all(int fd, uint64_t at, uint64_t bytes)
{
    struct nv_protect_part parts[NV_HELPERS];
    long helpers = 0;
    uint64_t step;
    int rc, i;
    if (bytes >= 2 * NV_PART)
        helpers = sysconf(_SC_NPROCESSORS_ONLN) - 1;
    if (helpers > NV_HELPERS)
        helpers = NV_HELPERS;
    if (helpers > (long)(bytes / NV_PART) - 1)
        helpers = (long)(bytes / NV_PART) - 1;
    if (helpers < 1)
        return nv_uffd_protect(fd, at, bytes, 1);
    step = bytes / (uint64_t)(helpers + 1) & ~(uint64_t)((2 << 20) - 1);
    for (i = 0; i < helpers; i++) {
        parts[i] = (struct nv_protect_part){ .fd = fd, .at = at, .bytes = step };
        parts[i].started = nv_thread_start(&parts[i].thread, nv_protect_part_run, &parts[i]) == 0;
        if (!parts[i].started)
            nv_protect_part_run(&parts[i]);
        at += step;
        bytes -= step;
    }
    rc = nv_uffd_protect(fd, at, bytes, 1);
    for (i = 0; i < helpers; i++) {
        if (parts[i].started)
            pthread_join(parts[i].thread, NULL);
        if (parts[i].rc && (rc == 0 || rc == -ENOENT))
            rc = parts[i].rc;
    }
    return rc;
}

/* ---- faults ---- */

/* The next fault: its page's address, or 0 if there is none now. `tid` is who stored. */
static inline uint64_t nv_uffd_next(int fd, uint32_t *tid)
{
    struct uffd_msg m;
    while (read(fd, &m, sizeof m) == (ssize_t)sizeof m)
        if (m.event == UFFD_EVENT_PAGEFAULT) {
            *tid = m.arg.pagefault.feat.ptid;
            return m.arg.pagefault.address & ~(uint64_t)4095;
        }
    return 0;
}

/* A descriptor of another process, by number, through pidfd_open and pidfd_getfd; or -errno. */
static inline int nv_fd_of(uint32_t pid, int number)
{
    int process = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0), fd, error;
    if (process < 0)
        return -errno;
    fd = (int)syscall(SYS_pidfd_getfd, process, number, 0);
    error = errno;
    close(process);
    return fd >= 0 ? fd : -error;
}

/* Where Yama restricts who may take a process's descriptors, lets all of the same user do so, as
 * they may elsewhere. They can open the arena's segments as well. */
static inline void nv_allow_fd_of(void) { prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0); }

/* Sleeps until `fd` has faults or `stop` is written to, for at most `ms`; true if to stop. */
static inline int nv_uffd_wait(int fd, int stop, int ms)
{
    struct pollfd p[2] = { { .fd = stop, .events = POLLIN }, { .fd = fd, .events = POLLIN } };
    poll(p, fd >= 0 ? 2 : 1, ms);
    return (p[0].revents & POLLIN) != 0;
}

/* ---- SIGSEGV ---- */

enum { NV_AREAS = 1024, NV_FAULTS = 64 };

struct nv_fault {
    uint32_t state; /* 0 free, 1 being filled in, 2 posted, 3 resolved */
    uint32_t tid;
    uint64_t at;
};

/* What the handler finds a fault's owner by. `bell` is waited on by the thread that resolves. */
struct nv_area {
    uint64_t start, end; /* end 0: unused */
    uint32_t *bell;
    struct nv_fault *faults;
};

static inline void nv_ring(uint32_t *bell)
{
    __atomic_add_fetch(bell, 1, __ATOMIC_SEQ_CST);
    nv_futex_wake(bell, 64);
}

static inline struct nv_fault *nv_fault_post(struct nv_fault *faults, uint64_t at)
{
    for (int i = 0;; i = (i + 1) % NV_FAULTS)
        if (nv_cas32(&faults[i].state, 0, 1)) {
            faults[i].at = at & ~(uint64_t)4095;
            faults[i].tid = nv_gettid();
            nv_store32(&faults[i].state, 2);
            return &faults[i];
        }
}

/* For the thread that resolves: the next posted fault after `*at`, or NULL. */
static inline struct nv_fault *nv_fault_next(struct nv_fault *faults, int *at)
{
    for (; *at < NV_FAULTS; ++*at)
        if (nv_load32(&faults[*at].state) == 2)
            return &faults[(*at)++];
    return NULL;
}

static inline void nv_fault_done(struct nv_fault *fault)
{
    nv_store32(&fault->state, 3);
    nv_futex_wake(&fault->state, 64);
}

static struct nv_area nv_areas[NV_AREAS];
static struct sigaction nv_old_segv;

static void nv_on_segv(int number, siginfo_t *info, void *context)
{
    uint64_t at = (uint64_t)(uintptr_t)info->si_addr;
    int error = errno;
    if (info->si_code == SEGV_ACCERR)
        for (int i = 0; i < NV_AREAS; i++) {
            struct nv_area *a = &nv_areas[i];
            uint64_t end = nv_load64(&a->end);
            if (end == 0 || at < a->start || at >= end)
                continue;
            struct nv_fault *fault = nv_fault_post(a->faults, at);
            nv_ring(a->bell);
            while (nv_load32(&fault->state) == 2)
                nv_futex_wait(&fault->state, 2, 1000000000);
            nv_store32(&fault->state, 0);
            errno = error;
            return; /* the store is tried again */
        }
    errno = error;
    if (nv_old_segv.sa_flags & SA_SIGINFO) {
        nv_old_segv.sa_sigaction(number, info, context);
    } else if (nv_old_segv.sa_handler != SIG_DFL && nv_old_segv.sa_handler != SIG_IGN) {
        nv_old_segv.sa_handler(number);
    } else {
        sigaction(SIGSEGV, &nv_old_segv, NULL); /* the store is tried again, and kills */
    }
}

static inline int nv_segv_install(void)
{
    struct sigaction now;
    struct sigaction action = { .sa_sigaction = nv_on_segv, .sa_flags = SA_SIGINFO | SA_NODEFER };
    if (sigaction(SIGSEGV, NULL, &now) != 0)
        return -errno;
    if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == nv_on_segv)
        return 0;
    nv_old_segv = now;
    return sigaction(SIGSEGV, &action, NULL) == 0 ? 0 : -errno;
}

/* Under the GIL. -ENOMEM: too many areas. */
static inline int nv_area_add(uint8_t *at, uint64_t bytes, uint32_t *bell, struct nv_fault *faults)
{
    for (int i = 0; i < NV_AREAS; i++)
        if (nv_areas[i].end == 0) {
            nv_areas[i].start = (uintptr_t)at;
            nv_areas[i].bell = bell;
            nv_areas[i].faults = faults;
            nv_store64(&nv_areas[i].end, (uintptr_t)at + bytes);
            return 0;
        }
    return -ENOMEM;
}

static inline void nv_area_remove(uint8_t *at)
{
    for (int i = 0; i < NV_AREAS; i++)
        if (nv_areas[i].end != 0 && nv_areas[i].start == (uintptr_t)at)
            nv_store64(&nv_areas[i].end, 0);
}

/* In a forked child: what was protected is the parent's. */
static inline void nv_areas_forget(struct nv_fault *faults)
{
    for (int i = 0; i < NV_AREAS; i++)
        if (nv_areas[i].end != 0 && nv_areas[i].faults == faults)
            nv_store64(&nv_areas[i].end, 0);
}

/* ---- threads ---- */

/* A thread that takes no signals, and never runs Python. */
static int nv_thread_start(pthread_t *thread, void *(*body)(void *), void *argument)
{
    sigset_t all, before;
    int rc;
    sigfillset(&all);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(thread, NULL, body, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -rc;
}

/* The processor that a thread of this process runs on, or ran on last; -1 if it is gone. */
static inline int nv_cpu_of(uint32_t tid)
{
    char text[640], *at;
    int fd, n, field;
    snprintf(text, sizeof text, "/proc/self/task/%u/stat", tid);
    fd = open(text, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    n = (int)read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return -1;
    text[n] = 0;
    /* The second field, a name, may hold anything; the processor is the 39th. */
    at = strrchr(text, ')');
    for (field = 2; at != NULL && field < 39; field++)
        at = strchr(at + 1, ' ');
    return at != NULL ? atoi(at) : -1;
}

/* Keeps this thread on one of `cpus`, or, if that is not among them, on any of them. Where it is
 * kept now: that processor, or -1. */
static inline int nv_run_on(const cpu_set_t *cpus, int cpu)
{
    cpu_set_t one;
    if (cpu >= 0 && cpu < CPU_SETSIZE && CPU_ISSET(cpu, cpus)) {
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        if (sched_setaffinity(0, sizeof one, &one) == 0)
            return cpu;
    }
    sched_setaffinity(0, sizeof *cpus, cpus);
    return -1;
}

static inline void nv_my_cpus(cpu_set_t *cpus)
{
    if (sched_getaffinity(0, sizeof *cpus, cpus) != 0)
        CPU_ZERO(cpus);
}

/* No memory for what a snapshot must keep: the storing thread gets SIGBUS, with a word why. */
static inline void nv_refuse_store(uint32_t tid, int error)
{
    char text[160];
    int n = snprintf(text, sizeof text,
                     "nova_mp: no store into a mapped file while a snapshot needs it: %s\n",
                     strerror(error));
    if (n > 0 && write(2, text, (size_t)n) < 0)
        n = 0;
    syscall(SYS_tgkill, getpid(), tid, SIGBUS);
}

#endif
