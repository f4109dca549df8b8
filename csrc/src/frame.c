/*
 * frame.c - the formats on the wire: records, frames, messages.
 *
 * Guarantees: no bytes from outside are trusted: a size is checked before
 * anybody allocates or skips by it.  The byte layouts are in forkmill.h,
 * beside their structs.
 * Threads: any; nothing is kept.
 */
#include "internal.h"

static int64_t long_size(const uint8_t *p, size_t n)
{
    struct fm_long head;
    if (n < sizeof head)
        return 0;
    memcpy(&head, p, sizeof head);
    if (head.what == 0 || head.what >= FM_WHAT_COUNT ||
        (head.flags & ~FM_LONG_ARENA))
        return FM_EPROTO;
    if (head.length > FM_MAX_LENGTH)
        return FM_ETOOBIG;
    uint64_t table = (uint64_t)head.buffers * sizeof(uint64_t);
    if (head.flags & FM_LONG_ARENA)
        table = 2 * table + sizeof(struct fm_segment);
    if (table > head.length)
        return FM_EPROTO;
    return (int64_t)(sizeof head + head.length);
}

int64_t fm_record_size(const uint8_t *p, size_t n)
{
    if (n == 0)
        return 0;
    switch (p[0]) {
    case FM_TAG_NONE:
    case FM_TAG_TRUE:
    case FM_TAG_FALSE:
        return 1;
    case FM_TAG_INT:
    case FM_TAG_FLOAT:
        return 9;
    case FM_TAG_STR:
    case FM_TAG_BYTES:
        return n < 2 ? 0 : 2 + p[1];
    case FM_TAG_SHARED:
        return 1 + FM_SHARED;
    case FM_TAG_TUPLE:
    case FM_TAG_LIST:
    case FM_TAG_DICT:
    case FM_TAG_SET:
        return n < 3 ? 0 : 4 + (p[1] | p[2] << 8);
    case FM_TAG_LONG:
        return long_size(p, n);
    default:
        return FM_EPROTO;
    }
}

int fm_frame_check(const struct fm_frame *frame)
{
    if (frame->magic != FM_MAGIC || frame->kind == 0 ||
        frame->kind >= FM_KIND_COUNT)
        return FM_EPROTO;
    if (frame->length > FM_MAX_LENGTH)
        return FM_ETOOBIG;
    if (frame->kind == FM_KIND_RUN && frame->count > FM_CLAIMS)
        return FM_EPROTO;
    return 0;
}

#define BEGUN_NS 100000000 /* to send the rest of a message */

int fm_message_send(int fd, const struct fm_message *message, const int *fds,
                    int nfds)
{
    const uint8_t *p = (const uint8_t *)message;
    size_t left = sizeof *message;
    int64_t until = 0;
    if (nfds < 0 || nfds > FM_MESSAGE_FDS)
        return -EINVAL;
    while (left > 0) {
        ssize_t n = fm__sys_send_fds(fd, p, left, fds, nfds);
        if (n < 0 && left < sizeof *message && fm__sys_passes(n)) {
            /* What has begun must not begin again. */
            if (until == 0)
                until = fm_now() + BEGUN_NS;
            if (fm_now() >= until)
                return FM_EEOF; /* the stream is of no use any more */
            fm__pause(1000000);
            continue;
        }
        if (n < 0)
            return (int)n;
        p += n;
        left -= (size_t)n;
        nfds = 0; /* they went with the first byte */
    }
    return 0;
}

/* Give up a message that is not whole: its descriptors have no owner. */
static int drop_message(int rc, const int *fds, int *nfds)
{
    while (*nfds > 0)
        fm__sys_close(fds[--*nfds]);
    return rc;
}

#define PATIENCE_NS 1000000000 /* with a message that has begun */

/* Whatever interrupts: it is readable, or the time is over. */
static bool wait_more(int fd, int64_t until)
{
    int ready = 0;
    for (int64_t rest; ready <= 0 && (rest = until - fm_now()) > 0;)
        ready = fm_sys_wait_readable(&fd, 1, rest);
    return ready > 0;
}

int fm__message_take(int fd, struct fm__partial *in,
                     struct fm_message *message, int *fds, int *nfds)
{
    *nfds = 0;
    while (in->got < sizeof in->bytes) {
        int more = 0, extra[FM_MESSAGE_FDS];
        ssize_t n = fm__sys_recv_fds(fd, in->bytes + in->got,
                                     sizeof in->bytes - in->got,
                                     in->got ? extra : in->fds,
                                     in->got ? &more : &in->nfds);
        if (fm__sys_passes(n)) /* without memory it is still there */
            return 0;
        if (n <= 0) {
            fm__partial_fini(in);
            return n == 0 ? FM_EEOF : (int)n;
        }
        drop_message(0, extra, &more);
        in->got += (size_t)n;
    }
    memcpy(message, in->bytes, sizeof *message);
    memcpy(fds, in->fds, sizeof in->fds);
    *nfds = in->nfds;
    in->got = 0;
    in->nfds = 0;
    if (message->magic != FM_MAGIC || message->kind == 0 ||
        message->kind >= FM_REPORT_COUNT)
        return drop_message(FM_EPROTO, fds, nfds);
    return 1;
}

void fm__partial_fini(struct fm__partial *in)
{
    drop_message(0, in->fds, &in->nfds);
    in->got = 0;
}

/*
 * The socket is a stream, but both ends send whole messages of one small
 * size, so a short read means that the rest is on its way: it is waited for,
 * which costs nothing in practice and keeps the reader free of state.  An
 * end that stops in mid-message for a second is not one of ours.  (The pool
 * may not wait with its mutex in hand: it keeps a struct fm__partial.)
 */
int fm_message_recv(int fd, struct fm_message *message, int *fds, int *nfds)
{
    struct fm__partial in = {.got = 0};
    int64_t until = 0;
    for (;;) {
        int rc = fm__message_take(fd, &in, message, fds, nfds);
        if (rc != 0 || in.got == 0)
            return rc;
        if (until == 0)
            until = fm_now() + PATIENCE_NS;
        if (!wait_more(fd, until)) {
            fm__partial_fini(&in);
            return FM_EPROTO;
        }
    }
}
