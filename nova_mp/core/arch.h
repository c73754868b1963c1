/* Memory and processor primitives: the only C of the project.
 *
 * Atomics, cache-line write-back, non-temporal copies, CRC32C, futexes and thread liveness. All
 * functions are static inline, so each extension module has its own copy and calls cost nothing.
 * On processors other than x86-64 every primitive falls back to portable C.
 */
#ifndef NOVA_MP_ARCH_H
#define NOVA_MP_ARCH_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#define NV_X86 1
#endif

/* ---- assertions: they stay on in optimised builds where they are cheap ---- */

__attribute__((noreturn, cold, noinline, unused)) static void nv_panic(const char *what, long value)
{
    fprintf(stderr, "nova_mp: invariant broken: %s (%ld)\n", what, value);
    fflush(stderr);
    abort();
}

static inline void nv_check(int ok, const char *what, long value)
{
    if (__builtin_expect(!ok, 0))
        nv_panic(what, value);
}

#ifdef NV_DEBUG
#define NV_DEBUG_BUILD 1
#define nv_assert(ok, what, value) nv_check((ok), (what), (long)(value))
#else
#define NV_DEBUG_BUILD 0
#define nv_assert(ok, what, value) (0 ? nv_check((ok), (what), (long)(value)) : (void)0)
#endif

#define nv_likely(x) __builtin_expect(!!(x), 1)
#define nv_unlikely(x) __builtin_expect(!!(x), 0)

/* ---- atomics ---- */

static inline uint64_t nv_load64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint32_t nv_load32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void nv_store64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void nv_store32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline uint64_t nv_xchg64(uint64_t *p, uint64_t v)
{
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);
}
static inline uint32_t nv_xchg32(uint32_t *p, uint32_t v)
{
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);
}
static inline uint64_t nv_add64(uint64_t *p, uint64_t v)
{
    return __atomic_add_fetch(p, v, __ATOMIC_SEQ_CST);
}
static inline int nv_cas32(uint32_t *p, uint32_t old, uint32_t v)
{
    return __atomic_compare_exchange_n(p, &old, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE);
}
static inline void nv_fence_full(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void nv_fence_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
static inline void nv_fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }

static inline void nv_pause(void)
{
#ifdef NV_X86
    _mm_pause();
#endif
}

static inline int nv_ctz64(uint64_t v) { return __builtin_ctzll(v); }
static inline int nv_popcount64(uint64_t v) { return __builtin_popcountll(v); }
static inline void nv_prefetch(const void *p) { __builtin_prefetch(p); }

/* ---- time ---- */

static inline uint64_t nv_clock_ns(int clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}
/* File times come from the coarse clock, as in the kernel: 5 ns instead of 20. */
static inline uint64_t nv_file_time_ns(void) { return nv_clock_ns(CLOCK_REALTIME_COARSE); }
static inline uint64_t nv_monotonic_ns(void) { return nv_clock_ns(CLOCK_MONOTONIC); }
static inline void nv_spin_ns(uint64_t ns)
{
    uint64_t end = nv_monotonic_ns() + ns;
    while (nv_monotonic_ns() < end)
        nv_pause();
}

/* ---- cache lines and non-temporal copies ---- */

enum { NV_FLUSH_NONE = 0, NV_FLUSH_CLFLUSH = 1, NV_FLUSH_CLFLUSHOPT = 2, NV_FLUSH_CLWB = 3 };

static inline int nv_best_flush(void)
{
#ifdef NV_X86
    unsigned a, b, c, d;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        if (b & (1u << 24))
            return NV_FLUSH_CLWB;
        if (b & (1u << 23))
            return NV_FLUSH_CLFLUSHOPT;
    }
    return NV_FLUSH_CLFLUSH;
#else
    return NV_FLUSH_NONE;
#endif
}

static inline void nv_flush_lines(const uint8_t *p, uint64_t n, int how)
{
#ifdef NV_X86
    const uint8_t *line = (const uint8_t *)((uintptr_t)p & ~(uintptr_t)63);
    for (; line < p + n; line += 64) {
        volatile char *at = (volatile char *)line;
        if (how == NV_FLUSH_CLWB)
            __asm__ volatile("clwb %0" : "+m"(*at));
        else if (how == NV_FLUSH_CLFLUSHOPT)
            __asm__ volatile("clflushopt %0" : "+m"(*at));
        else
            __asm__ volatile("clflush %0" : "+m"(*at));
    }
#else
    (void)p; (void)n; (void)how;
    nv_fence_full();
#endif
}

static inline void nv_store_fence(void)
{
#ifdef NV_X86
    _mm_sfence();
#else
    nv_fence_full();
#endif
}

/* Copies with streaming stores where the destination is aligned, ordinary ones at the edges. */
static inline void nv_copy_nt(uint8_t *dst, const uint8_t *src, uint64_t n)
{
#ifdef NV_X86
    uint64_t head = (uint64_t)(-(uintptr_t)dst & 15);
    if (n < 64 + head) {
        memcpy(dst, src, n);
        return;
    }
    memcpy(dst, src, head);
    dst += head; src += head; n -= head;
    for (; n >= 64; dst += 64, src += 64, n -= 64) {
        __m128i a = _mm_loadu_si128((const __m128i *)src);
        __m128i b = _mm_loadu_si128((const __m128i *)(src + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(src + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(src + 48));
        _mm_stream_si128((__m128i *)dst, a);
        _mm_stream_si128((__m128i *)(dst + 16), b);
        _mm_stream_si128((__m128i *)(dst + 32), c);
        _mm_stream_si128((__m128i *)(dst + 48), d);
    }
    memcpy(dst, src, n);
    _mm_sfence();
#else
    memcpy(dst, src, n);
#endif
}

/* Ticks of a clock that costs a few nanoseconds to read; only compared with one another. */
static inline uint64_t nv_ticks(void)
{
#ifdef NV_X86
    return __rdtsc();
#else
    return nv_monotonic_ns();
#endif
}

/* ---- CRC32C (Castagnoli) ---- */

static inline uint32_t nv_crc32c_soft(uint32_t crc, const uint8_t *p, uint64_t n)
{
    static uint32_t table[256];
    if (table[1] == 0) {
        for (uint32_t i = 255;; i--) { /* entry 1 last, so that a racing reader sees all or none */
            uint32_t v = i;
            for (int k = 0; k < 8; k++)
                v = (v >> 1) ^ ((v & 1) ? 0x82F63B78u : 0);
            __atomic_store_n(&table[i], v, __ATOMIC_RELEASE);
            if (i == 0)
                break;
        }
    }
    while (n--)
        crc = (crc >> 8) ^ table[(crc ^ *p++) & 255];
    return crc;
}

#ifdef NV_X86
__attribute__((target("sse4.2")))
static inline uint32_t nv_crc32c_hard(uint32_t crc, const uint8_t *p, uint64_t n)
{
    uint64_t c = crc, w;
    for (; n >= 8; n -= 8, p += 8) {
        memcpy(&w, p, 8);
        c = _mm_crc32_u64(c, w);
    }
    crc = (uint32_t)c;
    while (n--)
        crc = _mm_crc32_u8(crc, *p++);
    return crc;
}
#endif

/* Unfinished CRC: start with ~0, chain over pieces, invert at the end. */
static inline uint32_t nv_crc32c(uint32_t crc, const void *p, uint64_t n)
{
#ifdef NV_X86
    if (nv_likely(__builtin_cpu_supports("sse4.2")))
        return nv_crc32c_hard(crc, (const uint8_t *)p, n);
#endif
    return nv_crc32c_soft(crc, (const uint8_t *)p, n);
}

/* 64-bit hash of a name: two CRCs of different seeds, mixed so that every bit depends on all. */
static inline uint64_t nv_name_hash(const char *name, uint64_t n)
{
    uint64_t h = nv_crc32c(0x9E3779B9u, name, n);
    h |= (uint64_t)nv_crc32c(0x85EBCA6Bu + (uint32_t)n, name, n) << 32;
    h *= 0xFF51AFD7ED558CCDull;
    h ^= h >> 32;
    h *= 0xC4CEB9FE1A85EC53ull;
    return h ^ (h >> 29);
}

/* ---- futexes ---- */

/* Returns 0 when woken or changed, -ETIMEDOUT when `ns` passed, -EINTR after a signal. */
static inline int nv_futex_wait(uint32_t *word, uint32_t seen, uint64_t ns)
{
    struct timespec t = { (time_t)(ns / 1000000000ull), (long)(ns % 1000000000ull) };
    if (syscall(SYS_futex, word, FUTEX_WAIT, seen, &t, NULL, 0) == 0 || errno == EAGAIN)
        return 0;
    return -errno;
}

static inline void nv_futex_wake(uint32_t *word, int count)
{
    syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
}

/* ---- processes and threads ---- */

static inline uint32_t nv_gettid(void) { return (uint32_t)syscall(SYS_gettid); }

#define NV_UNKNOWN UINT64_MAX

/* Start time (clock ticks since boot) of a thread; 0 if it does not run any more, NV_UNKNOWN if
 * that cannot be told, as without a free descriptor. A zombie has stopped for good, so it counts as
 * gone, unless it is a process's first thread and others of it run. /proc rather than kill(pid, 0):
 * that would not tell a process from a later one with the same number. */
static inline uint64_t nv_thread_start_time(uint32_t pid, uint32_t tid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%u/task/%u/stat", pid, tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT || errno == ESRCH ? 0 : NV_UNKNOWN;
    ssize_t n = read(fd, text, sizeof text - 1);
    int gone = n < 0 && errno == ESRCH;
    close(fd);
    if (n <= 0)
        return gone ? 0 : NV_UNKNOWN;
    text[n] = 0;
    char *p = strrchr(text, ')');
    if (p == NULL || p[1] == 0)
        return NV_UNKNOWN;
    p += 2; /* field 3 */
    char state = *p;
    uint64_t threads = 0;
    for (int field = 3; field < 22 && p != NULL; field++) {
        p = strchr(p, ' ');
        if (p != NULL)
            p++;
        if (field == 19 && p != NULL)
            threads = strtoull(p, NULL, 10);
    }
    if (state == 'X' || state == 'x' || (state == 'Z' && !(pid == tid && threads > 1)))
        return 0;
    return p == NULL ? NV_UNKNOWN : strtoull(p, NULL, 10);
}

static inline void nv_kill_self(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

/* The calling thread's context of the arena it used last (see fs.pyx). */
static __thread void *nv_tls_ctx;
static __thread uint64_t nv_tls_key;
static inline void *nv_tls_get(uint64_t key) { return nv_tls_key == key ? nv_tls_ctx : NULL; }
static inline void nv_tls_set(uint64_t key, void *ctx) { nv_tls_key = key; nv_tls_ctx = ctx; }

#endif
