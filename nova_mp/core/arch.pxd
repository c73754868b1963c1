# Declarations of arch.h: atomics, cache lines, CRC32C, futexes, thread liveness.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "arch.h" nogil:
    enum:
        NV_DEBUG_BUILD
        NV_FLUSH_NONE
    void nv_check(int ok, const char* what, long value) noexcept
    void nv_assert(int ok, const char* what, long value) noexcept
    bint nv_likely(bint x) noexcept
    bint nv_unlikely(bint x) noexcept
    uint64_t nv_load64(const uint64_t* p) noexcept
    uint32_t nv_load32(const uint32_t* p) noexcept
    void nv_store64(uint64_t* p, uint64_t v) noexcept
    void nv_store32(uint32_t* p, uint32_t v) noexcept
    uint64_t nv_xchg64(uint64_t* p, uint64_t v) noexcept
    uint32_t nv_xchg32(uint32_t* p, uint32_t v) noexcept
    uint64_t nv_add64(uint64_t* p, uint64_t v) noexcept
    bint nv_cas32(uint32_t* p, uint32_t old, uint32_t v) noexcept
    void nv_fence_full() noexcept
    void nv_fence_acquire() noexcept
    void nv_fence_release() noexcept
    void nv_pause() noexcept
    int nv_ctz64(uint64_t v) noexcept
    int nv_popcount64(uint64_t v) noexcept
    void nv_prefetch(const void* p) noexcept
    uint64_t nv_file_time_ns() noexcept
    uint64_t nv_monotonic_ns() noexcept
    uint64_t nv_ticks() noexcept
    void nv_spin_ns(uint64_t ns) noexcept
    int nv_best_flush() noexcept
    void nv_flush_lines(const uint8_t* p, uint64_t n, int how) noexcept
    void nv_store_fence() noexcept
    void nv_copy_nt(uint8_t* dst, const uint8_t* src, uint64_t n) noexcept
    uint32_t nv_crc32c(uint32_t crc, const void* p, uint64_t n) noexcept
    uint64_t nv_name_hash(const char* name, uint64_t n) noexcept
    int nv_futex_wait(uint32_t* word, uint32_t seen, uint64_t ns) noexcept
    void nv_futex_wake(uint32_t* word, int count) noexcept
    uint32_t nv_gettid() noexcept
    uint64_t NV_UNKNOWN
    uint64_t nv_thread_start_time(uint32_t pid, uint32_t tid) noexcept
    void nv_kill_self() noexcept
    void* nv_tls_get(uint64_t key) noexcept
    void nv_tls_set(uint64_t key, void* ctx) noexcept
