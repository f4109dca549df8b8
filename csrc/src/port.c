/*
 * port.c - the worker's own end of its channel and page.
 *
 * Guarantees
 *   - a task is claimed in the page before its arguments are looked at;
 *   - an outcome is whole in the ring, and published, before any byte of it
 *     goes to the pipe (a record longer than half the ring: after its last
 *     byte has gone); so a death never loses a finished result;
 *   - a pool that sleeps is told of a frame's end, or, in a PROMPT frame, of
 *     each outcome, by writing all there is; one that is awake looks into the
 *     ring itself (slot.c), and then nothing is written.
 * Invariants
 *   - page->sent <= end <= page->sent + FM_RING; page->out_end == end.
 *   - the time of a frame is accounted for before its last outcome is seen.
 * Threads: one.  All calls may block on the pipe: the pool always reads
 * (INV-6).
 */
#include "internal.h"

#define INPUT (64u * 1024u)

struct fm_port {
    int task_fd, result_fd, page_fd;
    uint32_t generation;
    fm_page *page;
    uint64_t end;
    uint64_t number, last;   /* the task that runs, the frame's last one */
    bool direct;             /* the room handed out is in the ring itself */
    bool prompt;             /* each outcome of this frame is wanted at once */
    bool counted;            /* this frame's time is accounted for */
    int64_t frame_start;
    int64_t load_start; /* of the function that is being loaded */
    size_t pos, filled;      /* unread input is in[pos, filled) */
    size_t consumed;         /* of it: the frame handed out last */
    uint8_t *long_body;      /* being received, or NULL */
    size_t long_got;
    struct fm_frame long_frame;
    /* From here on nothing is zeroed: untouched pages cost nothing. */
    alignas(FM_ALIGN) uint8_t in[INPUT];
    uint8_t scratch[FM_RING / 2];
};

int fm_port_open(fm_port **out, int task_fd, int result_fd, int page_fd)
{
    fm_port *port = fm__malloc(sizeof *port);
    int rc = port ? fm__guard_start() : -ENOMEM;
    if (port)
        memset(port, 0, offsetof(struct fm_port, in));
    if (rc == 0)
        rc = fm_page_map(page_fd, &port->page);
    if (rc == 0 && lseek(page_fd, (off_t)fm_page_crash_offset(), SEEK_SET) < 0)
        rc = -errno;
    if (rc < 0) {
        if (port)
            fm_page_unmap(port->page);
        free(port);
        fm__sys_close(task_fd);
        fm__sys_close(result_fd);
        fm__sys_close(page_fd);
        return rc;
    }
    port->task_fd = task_fd;
    port->result_fd = result_fd;
    port->page_fd = page_fd;
    /* A child that a task forks must not hold the worker's ends. */
    fm__guard_fd(task_fd);
    fm__guard_fd(result_fd);
    port->generation = fm_fork_generation();
    atomic_store_explicit(&port->page->pid, getpid(), memory_order_release);
    port->last = UINT64_MAX - 1; /* until fm_port_begin() */
    *out = port;
    return 0;
}

static void close_guarded(int fd)
{
    fm__unguard_fd(fd);
    fm__sys_close(fd);
}

void fm_port_close(fm_port *port)
{
    if (!port)
        return;
    if (!fm_port_forked(port)) {
        close_guarded(port->task_fd);
        close_guarded(port->result_fd);
        fm__sys_close(port->page_fd);
        fm_page_unmap(port->page);
    }
    fm_body_free(port->long_body);
    free(port);
}

int fm_port_crash_fd(const fm_port *port)
{
    return port->page_fd;
}

uint32_t *fm_port_mark(fm_port *port)
{
    return &port->page->mark;
}

fm_said *fm_port_said(fm_port *port)
{
    return &port->page->said;
}

const uint32_t *fm_port_told(const fm_port *port)
{
    return (const uint32_t *)&port->page->told;
}

int fm_port_forked(const fm_port *port)
{
    return port->generation != fm_fork_generation();
}

/* ----------------------------------------------------------------- input */

/* Make room for a frame of `size` bytes from pos on, read once. */
static int read_more(fm_port *port, size_t size)
{
    if (port->pos == port->filled) {
        port->pos = port->filled = 0;
    } else if (port->pos + size > INPUT) {
        memmove(port->in, port->in + port->pos, port->filled - port->pos);
        port->filled -= port->pos;
        port->pos = 0;
    }
    ssize_t n = fm__sys_read_wait(port->task_fd, port->in + port->filled,
                                  INPUT - port->filled);
    if (n <= 0)
        return n == 0 ? FM_EEOF : (int)n;
    port->filled += (size_t)n;
    return 0;
}

/* Receive the rest of a body that has memory of its own. */
static int read_long(fm_port *port, struct fm_frame *frame,
                     const uint8_t **body, uint8_t **owned)
{
    while (port->long_got < port->long_frame.length) {
        ssize_t n = fm__sys_read_wait(
            port->task_fd, port->long_body + port->long_got,
            (size_t)(port->long_frame.length - port->long_got));
        if (n <= 0)
            return n == 0 ? FM_EEOF : (int)n;
        port->long_got += (size_t)n;
    }
    *frame = port->long_frame;
    *body = *owned = port->long_body;
    port->long_body = NULL;
    return 0;
}

static int begin_long(fm_port *port, const struct fm_frame *frame)
{
    size_t have = port->filled - port->pos - sizeof *frame;
    have = FM__MIN(have, (size_t)frame->length);
    port->long_body = fm_body_new((size_t)frame->length);
    if (!port->long_body)
        return -ENOMEM;
    port->long_frame = *frame;
    port->long_got = have;
    memcpy(port->long_body, port->in + port->pos + sizeof *frame, have);
    port->pos += sizeof *frame + have;
    return 0;
}

int fm_port_next(fm_port *port, struct fm_frame *frame, const uint8_t **body,
                 uint8_t **owned)
{
    port->pos += port->consumed;
    port->consumed = 0;
    *owned = NULL;
    for (;;) {
        size_t have = port->filled - port->pos, want = sizeof *frame;
        int rc;
        if (port->long_body) {
            rc = read_long(port, frame, body, owned);
            if (rc == 0)
                port->frame_start = fm_now();
            return rc;
        }
        if (have >= sizeof *frame) {
            memcpy(frame, port->in + port->pos, sizeof *frame);
            rc = fm_frame_check(frame);
            if (rc < 0)
                return rc;
            if (frame->length > INPUT - sizeof *frame) {
                rc = begin_long(port, frame);
                if (rc < 0)
                    return rc;
                continue;
            }
            want += (size_t)frame->length;
            if (have >= want) {
                *body = port->in + port->pos + sizeof *frame;
                port->consumed = want;
                port->frame_start = fm_now();
                return 0;
            }
        }
        rc = read_more(port, want);
        if (rc < 0)
            return rc;
    }
}

int fm_port_buffered(const fm_port *port)
{
    return port->filled - port->pos > port->consumed;
}

/* ----------------------------------------------------------------- tasks */

void fm_port_begin(fm_port *port, const struct fm_frame *frame)
{
    port->last = frame->serial + frame->count - 1;
    port->number = UINT64_MAX;
    port->prompt = frame->flags & FM_RUN_PROMPT;
    port->counted = false;
    atomic_store_explicit(&port->page->excused,
                          frame->flags & FM_RUN_EXCUSED,
                          memory_order_relaxed);
    atomic_store_explicit(&port->page->frame_start, port->frame_start,
                          memory_order_relaxed);
}

int fm_port_is_last(const fm_port *port)
{
    return port->number == port->last;
}

int fm_port_start(fm_port *port, uint64_t number, int timed)
{
    uint8_t sent = FM_CLAIM_SENT;
    port->number = number;
    if (timed) /* before the claim: who sees STARTED sees the time */
        atomic_store_explicit(&port->page->t_start, fm_now(),
                              memory_order_relaxed);
    if (!atomic_compare_exchange_strong(&port->page->claims[number % FM_CLAIMS],
                                        &sent, FM_CLAIM_STARTED)) {
        atomic_store_explicit(&port->page->seen, number + 1,
                              memory_order_release);
        return 0;
    }
    atomic_store_explicit(&port->page->started, number + 1,
                          memory_order_release);
    atomic_store_explicit(&port->page->seen, number + 1, memory_order_release);
    return 1;
}

void fm_port_loading(fm_port *port, int loading)
{
    int64_t now = fm_now();
    atomic_store_explicit(&port->page->t_start,
                          now + (loading ? FM__LOADING_NS : 0),
                          memory_order_relaxed);
    if (loading) {
        port->load_start = now;
        return;
    }
    port->frame_start += now - port->load_start;
    atomic_store_explicit(&port->page->frame_start, port->frame_start,
                          memory_order_relaxed);
}

/* Write the stream's bytes [from, port->end), which are ours to send. */
static int write_ring(fm_port *port, uint64_t from)
{
    while (from < port->end) {
        size_t pos = from % FM_RING;
        size_t n = (size_t)(port->end - from);
        size_t first = FM__MIN(n, FM_RING - pos);
        struct iovec iov[2] = {
            {port->page->ring + pos, first},
            {port->page->ring, n - first},
        };
        ssize_t done =
            fm__sys_writev(port->result_fd, iov, n > first ? 2 : 1);
        if (done < 0)
            return (int)done;
        from += (uint64_t)done;
    }
    return 0;
}

/* 1: all has been written, and was ours to write; 0: the pool took it. */
static int flush(fm_port *port)
{
    uint64_t from = atomic_load(&port->page->sent);
    while (from < port->end) {
        if (atomic_compare_exchange_strong(&port->page->sent, &from,
                                           port->end)) {
            int rc = write_ring(port, from);
            return rc < 0 ? rc : 1;
        }
    }
    return 0;
}

int fm_port_flush(fm_port *port)
{
    int rc = flush(port);
    return rc < 0 ? rc : 0;
}

int fm_port_tell(fm_port *port)
{
    uint64_t sent =
        atomic_load_explicit(&port->page->sent, memory_order_relaxed);
    /* Sequentially consistent, before `want` is read (slot.c). */
    atomic_store(&port->page->out_end, port->end);
    uint32_t want = atomic_load(&port->page->want);
    if (want == FM__WANT_NOTHING && port->end - sent < FM_RING / 2)
        return 0;
    int rc = flush(port);
    /* Only what we have answered with a write: if the pool took all, or asks
     * anew, having been awake meanwhile, it still wants to be told. */
    if (rc == 1 && want > FM__WANT_NOTHING)
        atomic_compare_exchange_strong(&port->page->want, &want,
                                       FM__WANT_NOTHING);
    return rc < 0 ? rc : 0;
}

uint8_t *fm_port_room(fm_port *port, size_t n, int *rc)
{
    assert(n <= sizeof port->scratch);
    *rc = 0;
    if (port->end + n - atomic_load(&port->page->sent) > FM_RING &&
        (*rc = fm_port_flush(port)) < 0)
        return NULL;
    size_t pos = port->end % FM_RING;
    port->direct = pos + n <= FM_RING;
    return port->direct ? port->page->ring + pos : port->scratch;
}

/* Add the time since it was last added; a frame's begins with it. */
static void account(fm_port *port)
{
    int64_t busy =
        atomic_load_explicit(&port->page->busy_ns, memory_order_relaxed);
    int64_t now = fm_now();
    /* In this order: who looks in between misses the frame, and does not
     * count it twice. */
    atomic_store_explicit(&port->page->frame_start, 0, memory_order_relaxed);
    atomic_store_explicit(&port->page->busy_ns, busy + now - port->frame_start,
                          memory_order_release);
    port->frame_start = now;
    port->counted = true;
}

static int publish(fm_port *port, size_t n, int is_outcome)
{
    if (is_outcome && port->number == port->last)
        account(port);
    port->end += n;
    atomic_store_explicit(&port->page->out_end, port->end,
                          memory_order_release);
    if (is_outcome) {
        uint64_t done =
            atomic_load_explicit(&port->page->done, memory_order_relaxed);
        atomic_store_explicit(&port->page->done, done + 1,
                              memory_order_relaxed);
    }
    if (port->prompt)
        return fm_port_tell(port);
    uint64_t sent =
        atomic_load_explicit(&port->page->sent, memory_order_relaxed);
    return port->end - sent >= FM_RING / 2 ? fm_port_flush(port) : 0;
}

int fm_port_commit(fm_port *port, size_t n, int is_outcome)
{
    if (!port->direct)
        fm__page_store(port->page, port->end, port->scratch, n);
    return publish(port, n, is_outcome);
}

int fm_port_put_number(fm_port *port, uint8_t tag, const void *number)
{
    int rc;
    uint8_t *p = fm_port_room(port, 9, &rc);
    if (!p)
        return rc;
    p[0] = tag;
    memcpy(p + 1, number, 8);
    return fm_port_commit(port, 9, 1);
}

/* Write parts straight to the pipe. */
static int write_parts(fm_port *port, const struct fm_part *parts, size_t n)
{
    size_t i = 0, offset = 0;
    while (i < n) {
        struct iovec iov[64];
        int count = 0;
        for (size_t j = i; j < n && count < (int)ARRAY_LEN(iov); j++) {
            size_t skip = j == i ? offset : 0;
            iov[count].iov_base = (char *)(uintptr_t)parts[j].base + skip;
            iov[count++].iov_len = parts[j].size - skip;
        }
        ssize_t done = fm__sys_writev(port->result_fd, iov, count);
        if (done < 0)
            return (int)done;
        for (size_t left = (size_t)done; i < n; i++, offset = 0) {
            if (left < parts[i].size - offset) {
                offset += left;
                break;
            }
            left -= parts[i].size - offset;
        }
    }
    return 0;
}

int fm_port_put(fm_port *port, const struct fm_part *parts, size_t n,
                int is_outcome)
{
    size_t total = 0;
    int rc;
    for (size_t i = 0; i < n; i++)
        total += parts[i].size;
    if (total <= sizeof port->scratch) {
        uint8_t *p = fm_port_room(port, total, &rc);
        if (!p)
            return rc;
        for (size_t i = 0; i < n; p += parts[i++].size)
            if (parts[i].size)
                memcpy(p, parts[i].base, parts[i].size);
        return fm_port_commit(port, total, is_outcome);
    }
    rc = fm_port_flush(port);
    if (rc == 0)
        rc = write_parts(port, parts, n);
    if (rc < 0)
        return rc;
    /* `sent` first: the pool must not look for these bytes in the ring. */
    atomic_store(&port->page->sent, port->end + total);
    return publish(port, total, is_outcome);
}

int fm_port_finish(fm_port *port)
{
    if (!port->counted)
        account(port); /* its last tasks were recalled */
    return fm_port_tell(port);
}

void fm_port_retire(fm_port *port)
{
    atomic_store(&port->page->retired, 1);
}

uint32_t *fm_port_owner(fm_port *port)
{
    return (uint32_t *)&port->page->owner;
}

void fm_port_rss(fm_port *port, uint64_t kb)
{
    atomic_store_explicit(&port->page->rss_kb, kb, memory_order_relaxed);
}
