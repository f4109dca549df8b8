/*
 * channel.c - the pool's end of a worker: frames out, records in.
 *
 * Guarantees: never blocks; a frame is written whole and in order however
 * short the writes are; a record is handed out whole however it was split.
 * A record longer than the input buffer is read straight into the memory
 * that the receiver will own: one copy, in the kernel.
 * Invariants: in[in_pos, in_end) is the unread input; `received` counts every
 * byte of the result stream that came, by the pipe or straight from the slot's
 * ring (which is read on from there after a death).
 * Threads: the pool's mutex is held around every call.
 */
#include "internal.h"

/* Buffers of frames gathered into one write, and the size of one. */
#define GATHER 32
#define OUT_ROOM 4096

struct fm__bytes *fm__bytes_new(uint8_t *data, size_t size)
{
    struct fm__bytes *bytes = fm__malloc(sizeof *bytes);
    if (bytes) {
        atomic_init(&bytes->refs, 1);
        bytes->size = size;
        bytes->data = data;
    }
    return bytes;
}

void fm__bytes_ref(struct fm__bytes *bytes)
{
    atomic_fetch_add_explicit(&bytes->refs, 1, memory_order_relaxed);
}

void fm__bytes_unref(struct fm__bytes *bytes)
{
    if (bytes && atomic_fetch_sub(&bytes->refs, 1) == 1) {
        fm_body_free(bytes->data);
        free(bytes);
    }
}

int fm__channel_init(struct fm__channel *channel, int task_fd, int hold_fd,
                     int result_fd)
{
    memset(channel, 0, offsetof(struct fm__channel, in));
    channel->task_fd = task_fd;
    channel->hold_fd = hold_fd;
    channel->result_fd = result_fd;
    fm__guard_fd(task_fd);
    fm__guard_fd(hold_fd);
    fm__guard_fd(result_fd);
    int rc = fm_sys_nonblock(task_fd, 1);
    return rc < 0 ? rc : fm_sys_nonblock(result_fd, 1);
}

static void close_guarded(int *fd)
{
    if (*fd < 0)
        return;
    fm__unguard_fd(*fd);
    fm__sys_close(*fd);
    *fd = -1;
}

static void drop_head(struct fm__channel *channel)
{
    struct fm__out *out = channel->out_head;
    channel->out_head = out->next;
    if (!channel->out_head)
        channel->out_last = NULL;
    fm__bytes_unref(out->body);
    if (channel->out_spare)
        free(out);
    else
        channel->out_spare = out;
}

void fm__channel_fini(struct fm__channel *channel)
{
    close_guarded(&channel->task_fd);
    close_guarded(&channel->hold_fd);
    close_guarded(&channel->result_fd);
    while (channel->out_head)
        drop_head(channel);
    free(channel->out_spare);
    channel->out_spare = NULL;
    fm_body_free(channel->big.block);
    channel->big.block = NULL;
}

void fm__channel_shut(struct fm__channel *channel)
{
    close_guarded(&channel->task_fd);
    close_guarded(&channel->hold_fd);
}

/* ------------------------------------------------------------------- out */

/* Where n more bytes may be appended; NULL without memory. */
static struct fm__out *room_for(struct fm__channel *channel, size_t n)
{
    struct fm__out *out = channel->out_last;
    if (out && !out->body && OUT_ROOM - out->used >= n)
        return out;
    out = channel->out_spare;
    channel->out_spare = NULL;
    if (!out)
        out = fm__malloc(sizeof *out + OUT_ROOM);
    if (!out)
        return NULL;
    out->next = NULL;
    out->body = NULL;
    out->used = 0;
    if (channel->out_last)
        channel->out_last->next = out;
    else
        channel->out_head = out;
    channel->out_last = out;
    return out;
}

int fm__channel_put_small(struct fm__channel *channel,
                          const struct fm_frame *frame, const void *body)
{
    size_t size = (size_t)frame->length;
    assert(size <= FM__COPIED);
    struct fm__out *out = room_for(channel, sizeof *frame + size);
    if (!out)
        return -ENOMEM;
    memcpy(out->data + out->used, frame, sizeof *frame);
    if (size)
        memcpy(out->data + out->used + sizeof *frame, body, size);
    out->used += sizeof *frame + size;
    return 0;
}

int fm__channel_put(struct fm__channel *channel, const struct fm_frame *frame,
                    struct fm__bytes *body)
{
    if (!body || body->size <= FM__COPIED)
        return fm__channel_put_small(channel, frame, body ? body->data : NULL);
    struct fm__out *out = room_for(channel, sizeof *frame);
    if (!out)
        return -ENOMEM;
    memcpy(out->data + out->used, frame, sizeof *frame);
    out->used += sizeof *frame;
    out->body = body;
    fm__bytes_ref(body);
    return 0;
}

bool fm__channel_pending(const struct fm__channel *channel)
{
    return channel->out_head != NULL;
}

/* Gather queued frames, the first from out_sent on. */
static int gather(struct fm__channel *channel, struct iovec *iov)
{
    int n = 0;
    size_t skip = channel->out_sent;
    for (struct fm__out *o = channel->out_head; o && n + 2 <= 2 * GATHER;
         o = o->next) {
        size_t head = o->used;
        if (skip < head)
            iov[n++] = (struct iovec){o->data + skip, head - skip};
        skip = skip > head ? skip - head : 0;
        if (o->body && o->body->size > skip)
            iov[n++] =
                (struct iovec){o->body->data + skip, o->body->size - skip};
        skip = 0;
    }
    return n;
}

int fm__channel_flush(struct fm__channel *channel)
{
    while (channel->out_head) {
        struct iovec iov[2 * GATHER];
        if (channel->task_fd < 0)
            return -EPIPE;
        ssize_t done =
            fm__sys_writev(channel->task_fd, iov, gather(channel, iov));
        if (done == -EAGAIN)
            return 1;
        if (done < 0)
            return (int)done;
        channel->out_sent += (size_t)done;
        while (channel->out_head) {
            struct fm__out *o = channel->out_head;
            size_t size = o->used + (o->body ? o->body->size : 0);
            if (channel->out_sent < size)
                break;
            channel->out_sent -= size;
            drop_head(channel);
        }
    }
    return 0;
}

/* -------------------------------------------------------------------- in */

/* Read on into a long record; skipped bytes go nowhere. */
static int64_t fill_long(struct fm__channel *channel)
{
    struct fm__incoming *big = &channel->big;
    uint64_t left = big->size - big->got;
    ssize_t n;
    if (big->block)
        n = fm__sys_read(channel->result_fd,
                         big->block + FM__RECORD_OFFSET + big->got,
                         (size_t)left);
    else
        n = fm__sys_read(channel->result_fd, channel->in,
                         (size_t)FM__MIN(left, FM__INPUT));
    if (n > 0) {
        big->got += (uint64_t)n;
        channel->received += (uint64_t)n;
    }
    return n;
}

static void compact(struct fm__channel *channel)
{
    size_t left = channel->in_end - channel->in_pos;
    if (left && channel->in_pos)
        memmove(channel->in, channel->in + channel->in_pos, left);
    channel->in_pos = 0;
    channel->in_end = left;
}

int64_t fm__channel_fill(struct fm__channel *channel)
{
    int64_t n;
    if (channel->result_fd < 0)
        return FM_EEOF;
    if (channel->in_long) {
        n = fill_long(channel);
    } else {
        compact(channel);
        n = fm__sys_read(channel->result_fd, channel->in + channel->in_end,
                         FM__INPUT - channel->in_end);
        if (n > 0) {
            channel->in_end += (size_t)n;
            channel->received += (uint64_t)n;
        }
    }
    if (n == -EAGAIN)
        return 0;
    return n == 0 ? FM_EEOF : n;
}

size_t fm__channel_peek(struct fm__channel *channel, fm_page *page)
{
    if (channel->in_long)
        return 0; /* the rest of it comes by the pipe */
    compact(channel);
    size_t n =
        fm__page_take(page, channel->received, channel->in + channel->in_end,
                      FM__INPUT - channel->in_end);
    channel->in_end += n;
    channel->received += n;
    return n;
}

size_t fm__channel_feed(struct fm__channel *channel, const uint8_t *data,
                        size_t n)
{
    if (channel->in_long)
        return 0; /* a long record under way never lies in the ring */
    compact(channel);
    n = FM__MIN(n, FM__INPUT - channel->in_end);
    memcpy(channel->in + channel->in_end, data, n);
    channel->in_end += n;
    return n;
}

/* A record that does not fit the buffer: give it memory of its own. */
static void begin_long(struct fm__channel *channel, uint64_t size)
{
    struct fm__incoming *big = &channel->big;
    const uint8_t *p = channel->in + channel->in_pos;
    memcpy(&big->head, p, sizeof big->head);
    big->block = size > SIZE_MAX - FM_ALIGN
                     ? NULL
                     : fm_body_new((size_t)size + FM_ALIGN);
    big->size = size;
    big->got = channel->in_end - channel->in_pos;
    if (big->block)
        memcpy(big->block + FM__RECORD_OFFSET, p, (size_t)big->got);
    channel->in_pos = channel->in_end = 0;
    channel->in_long = true;
}

static int finish_long(struct fm__channel *channel, struct fm__record *out)
{
    struct fm__incoming *big = &channel->big;
    if (big->got < big->size)
        return 0;
    if (big->block)
        *out = (struct fm__record){.data = big->block + FM__RECORD_OFFSET,
                                   .size = big->size,
                                   .owned = big->block};
    else
        *out = (struct fm__record){.data = (const uint8_t *)&big->head,
                                   .size = sizeof big->head,
                                   .lost = true};
    big->block = NULL;
    channel->in_long = false;
    return 1;
}

int fm__channel_next(struct fm__channel *channel, struct fm__record *out)
{
    if (channel->in_long)
        return finish_long(channel, out);
    const uint8_t *p = channel->in + channel->in_pos;
    size_t have = channel->in_end - channel->in_pos;
    int64_t size = fm_record_size(p, have);
    if (size < 0)
        return (int)size;
    if (size == 0)
        return 0;
    if ((uint64_t)size > FM__INPUT) {
        begin_long(channel, (uint64_t)size);
        return finish_long(channel, out);
    }
    if ((uint64_t)size > have)
        return 0;
    *out = (struct fm__record){.data = p, .size = (uint64_t)size};
    channel->in_pos += (size_t)size;
    return 1;
}

uint32_t fm__channel_run(struct fm__channel *channel, uint32_t most,
                         const uint8_t **data, size_t *size)
{
    /* Sizes of the short records by tag; 2, 4: more follows. */
    static const uint8_t sizes[FM_TAG_LONG + 1] = {
        [FM_TAG_NONE] = 1,  [FM_TAG_TRUE] = 1, [FM_TAG_FALSE] = 1,
        [FM_TAG_INT] = 9,   [FM_TAG_FLOAT] = 9, [FM_TAG_STR] = 2,
        [FM_TAG_BYTES] = 2, [FM_TAG_TUPLE] = 4, [FM_TAG_LIST] = 4,
        [FM_TAG_DICT] = 4,  [FM_TAG_SET] = 4};
    const uint8_t *start = channel->in + channel->in_pos, *p = start;
    const uint8_t *end = channel->in + channel->in_end;
    uint32_t n = 0;
    if (channel->in_long)
        return 0;
    while (n < most && end - p >= 9 && *p == FM_TAG_INT) { /* long runs */
        p += 9;
        n++;
    }
    while (n < most && p < end && *p < FM_TAG_LONG && sizes[*p]) {
        size_t left = (size_t)(end - p), length = sizes[*p];
        if (left < length)
            break;
        length += length == 2 ? p[1] : length == 4 ? p[1] | p[2] << 8 : 0;
        if (left < length)
            break;
        p += length;
        n++;
    }
    *data = start;
    *size = (size_t)(p - start);
    channel->in_pos += *size;
    return n;
}
