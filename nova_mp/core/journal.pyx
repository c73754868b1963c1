"""The redo journal of a CPU."""

from nova_mp.core.arch cimport nv_assert, nv_crc32c
from nova_mp.core.dram cimport cpu_at, nv_cpu
from nova_mp.core.layout cimport (BLOCK_BYTES, JOURNALS_NR, JOURNAL_WORDS, nv_journal,
                                  nv_journal_record)
from nova_mp.core.pmem cimport fail_point, pm_copy, pm_fence, pm_flush, pm_persist, pm_store64
from nova_mp.core.sync cimport RANK_JOURNAL, lock_drop, lock_take


cdef void words_add(nv_words* w, uint64_t off, uint64_t value) noexcept nogil:
    nv_assert(w.n < 16, "transaction too large", w.n)
    w.off[w.n] = off
    w.value[w.n] = value
    w.n += 1


cdef uint64_t commit_word(const void* records, uint64_t n) noexcept nogil:
    cdef uint32_t crc = nv_crc32c(0xFFFFFFFF, records, n * sizeof(nv_journal_record))
    return <uint64_t>(~crc) << 32 | n


cdef void apply_and_clear(nv_ctx* c, uint64_t journal_off, uint64_t n) noexcept nogil:
    cdef nv_journal_record* r = <nv_journal_record*>(c.pm + journal_off + 16)
    cdef uint64_t i
    for i in range(n):
        pm_store64(c, r[i].word_off, r[i].value)
        pm_flush(c, r[i].word_off, 8)
    pm_fence(c)
    fail_point(c, "journal.applied")
    pm_store64(c, journal_off, 0)
    pm_persist(c, journal_off, 8)


cdef void journal_commit(nv_ctx* c, nv_words* w) noexcept nogil:
    # THE commit point of an operation on several logs. Everything that the words refer to has been
    # flushed by the caller.
    cdef nv_cpu* cpu = cpu_at(c, c.cpu)
    cdef uint64_t journal_off = (JOURNALS_NR + <uint64_t>c.cpu) * BLOCK_BYTES
    cdef nv_journal_record record
    cdef uint32_t i
    cdef int nowait = c.nowait
    c.nowait = 0
    lock_take(c, &cpu.journal_lock, RANK_JOURNAL)
    c.nowait = nowait
    for i in range(w.n):
        record.word_off = w.off[i]
        record.value = w.value[i]
        pm_copy(c, journal_off + 16 + i * sizeof(record), &record, sizeof(record))
    pm_flush(c, journal_off + 16, w.n * sizeof(record))
    pm_fence(c)
    fail_point(c, "journal.before_commit")
    pm_store64(c, journal_off, commit_word(c.pm + journal_off + 16, w.n))
    pm_persist(c, journal_off, 8)
    fail_point(c, "journal.committed")
    apply_and_clear(c, journal_off, w.n)
    lock_drop(c, &cpu.journal_lock)


cdef int journal_recover(nv_ctx* c, uint32_t cpu) noexcept nogil:
    # Applies a committed journal, drops a torn one. 1 if there was one to apply; -1 if it points
    # outside the arena.
    cdef uint64_t journal_off = (JOURNALS_NR + <uint64_t>cpu) * BLOCK_BYTES
    cdef nv_journal* j = <nv_journal*>(c.pm + journal_off)
    cdef nv_journal_record* r = <nv_journal_record*>(c.pm + journal_off + 16)
    cdef uint64_t n = <uint32_t>j.commit
    cdef uint64_t i
    if j.commit == 0:
        return 0
    if n > JOURNAL_WORDS or j.commit != commit_word(r, n):
        pm_store64(c, journal_off, 0)
        pm_persist(c, journal_off, 8)
        return 0
    for i in range(n):
        if r[i].word_off & 7 or r[i].word_off + 8 > c.a.pm_bytes:
            return -1
    apply_and_clear(c, journal_off, n)
    return 1
