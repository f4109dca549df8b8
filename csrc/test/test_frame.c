/* includes: frame.c */
/* test_frame.c - records, frames and messages, whole, torn and forged. */
#include "harness.h"

/* What the faked calls do: at most `chunk` bytes a call. */
static size_t chunk = SIZE_MAX;
static int fake_errno, fake_calls, fake_at; /* fail the fake_at-th call */

static ssize_t fake_send_fds(int fd, const void *data, size_t n,
                             const int *fds, int nfds)
{
    if (++fake_calls == fake_at)
        return -fake_errno;
    return fm__sys_send_fds(fd, data, FM__MIN(n, chunk), fds, nfds);
}

static ssize_t fake_recv_fds(int fd, void *data, size_t n, int *fds,
                             int *nfds)
{
    if (++fake_calls == fake_at) {
        *nfds = 0;
        return -fake_errno;
    }
    return fm__sys_recv_fds(fd, data, FM__MIN(n, chunk), fds, nfds);
}

#define fm__sys_send_fds fake_send_fds
#define fm__sys_recv_fds fake_recv_fds
#include "../src/frame.c"
#undef fm__sys_send_fds
#undef fm__sys_recv_fds

static struct fm_long long_head(int what, uint32_t buffers, uint64_t length)
{
    return (struct fm_long){.tag = FM_TAG_LONG,
                            .what = (uint8_t)what,
                            .buffers = buffers,
                            .length = length};
}

static int64_t size_of_long(struct fm_long head)
{
    return fm_record_size((const uint8_t *)&head, sizeof head);
}

/* --------------------------------------------------------------- records */

TEST(every_scalar_record_has_its_size)
{
    static const struct {
        uint8_t bytes[4];
        int64_t size;
    } table[] = {
        {{FM_TAG_NONE}, 1},         {{FM_TAG_TRUE}, 1},
        {{FM_TAG_FALSE}, 1},        {{FM_TAG_INT}, 9},
        {{FM_TAG_FLOAT}, 9},        {{FM_TAG_STR, 0}, 2},
        {{FM_TAG_STR, 255}, 257},   {{FM_TAG_BYTES, 7}, 9},
        {{FM_TAG_TUPLE, 0, 0}, 4},  {{FM_TAG_LIST, 1, 2}, 4 + 513},
        {{FM_TAG_DICT, 255, 255}, 4 + 65535},
        {{FM_TAG_SET, 5, 0}, 9},    {{FM_TAG_SHARED}, 33},
    };
    for (size_t i = 0; i < ARRAY_LEN(table); i++)
        CHECK_EQ(fm_record_size(table[i].bytes, 4), table[i].size);
}

TEST(a_prefix_too_short_to_tell_is_zero)
{
    uint8_t two[2] = {FM_TAG_STR, 3}, three[3] = {FM_TAG_DICT, 1, 0};
    struct fm_long head = long_head(FM_WHAT_PICKLE, 0, 5);
    CHECK_EQ(fm_record_size(NULL, 0), 0);
    CHECK_EQ(fm_record_size(two, 1), 0);
    CHECK_EQ(fm_record_size(two, 2), 5);
    CHECK_EQ(fm_record_size(three, 1), 0);
    CHECK_EQ(fm_record_size(three, 2), 0);
    CHECK_EQ(fm_record_size(three, 3), 5);
    for (size_t n = 0; n < sizeof head; n++)
        CHECK_EQ(fm_record_size((const uint8_t *)&head, n), 0);
    CHECK_EQ(size_of_long(head), 21);
}

TEST(a_prefix_is_never_read_past_its_end)
{
    /* Memory of exactly n bytes, so that ASan sees one more. */
    for (int tag = 0; tag < 256; tag++) {
        for (size_t n = 1; n <= sizeof(struct fm_long); n++) {
            uint8_t *p = malloc(n);
            memset(p, 0, n);
            p[0] = (uint8_t)tag;
            if (n > 1)
                p[1] = FM_WHAT_BYTES;
            int64_t size = fm_record_size(p, n);
            CHECK(size >= 0 || size == FM_EPROTO);
            free(p);
        }
    }
}

TEST(unknown_tags_are_refused)
{
    for (int tag = 0; tag < 256; tag++) {
        uint8_t p[16] = {(uint8_t)tag, 1};
        bool known = (tag >= FM_TAG_NONE && tag <= FM_TAG_SHARED) ||
                     tag == FM_TAG_LONG;
        CHECK(known == (fm_record_size(p, sizeof p) > 0));
        if (!known)
            CHECK_EQ(fm_record_size(p, sizeof p), FM_EPROTO);
    }
}

TEST(a_long_record_is_checked_before_anybody_trusts_it)
{
    CHECK_EQ(size_of_long(long_head(FM_WHAT_PICKLE, 0, 0)), 16);
    CHECK_EQ(size_of_long(long_head(FM_WHAT_NOMEM, 0, 1)), 17);
    CHECK_EQ(size_of_long(long_head(0, 0, 0)), FM_EPROTO);
    CHECK_EQ(size_of_long(long_head(FM_WHAT_COUNT, 0, 0)), FM_EPROTO);
    CHECK_EQ(size_of_long(long_head(255, 0, 0)), FM_EPROTO);
    CHECK_EQ(size_of_long(long_head(FM_WHAT_BYTES, 0, FM_MAX_LENGTH)),
             16 + (int64_t)FM_MAX_LENGTH);
    CHECK_EQ(size_of_long(long_head(FM_WHAT_BYTES, 0, FM_MAX_LENGTH + 1)),
             FM_ETOOBIG);
    CHECK_EQ(size_of_long(long_head(FM_WHAT_BYTES, 0, UINT64_MAX)),
             FM_ETOOBIG);
    CHECK_EQ(size_of_long(long_head(FM_WHAT_PICKLE, 2, 15)), FM_EPROTO);
    CHECK_EQ(size_of_long(long_head(FM_WHAT_PICKLE, 2, 16)), 32);
    CHECK_EQ(size_of_long(long_head(FM_WHAT_PICKLE, UINT32_MAX, 1 << 20)),
             FM_EPROTO);
    struct fm_long head = long_head(FM_WHAT_PICKLE, 0, 1);
    head.flags = 2;
    CHECK_EQ(size_of_long(head), FM_EPROTO);
}

TEST(noise_is_a_record_of_bounded_size_or_an_error)
{
    uint64_t state = 2;
    for (int i = 0; i < 200000; i++) {
        uint64_t words[4];
        size_t n = noise(&state) % sizeof words;
        for (size_t k = 0; k < ARRAY_LEN(words); k++)
            words[k] = noise(&state);
        uint8_t *p = (uint8_t *)words;
        if (i & 1)
            p[0] = FM_TAG_LONG;
        if (i & 2)
            p[2] = p[3] = p[14] = p[15] = 0;
        int64_t size = fm_record_size(p, n), more = fm_record_size(p, 32);
        CHECK(size == FM_EPROTO || size == FM_ETOOBIG ||
              (size >= 0 && size <= 16 + (int64_t)FM_MAX_LENGTH));
        /* More bytes never change what was known. */
        CHECK(size == 0 || size == more);
    }
}

/* ---------------------------------------------------------------- frames */

TEST(frames_are_checked)
{
    const struct fm_frame good = {.magic = FM_MAGIC,
                                  .kind = FM_KIND_RUN,
                                  .count = FM_CLAIMS,
                                  .length = FM_MAX_LENGTH};
    struct fm_frame f = good;
    CHECK_EQ(fm_frame_check(&f), 0);
    f.magic ^= 1;
    CHECK_EQ(fm_frame_check(&f), FM_EPROTO);
    f = good;
    f.kind = 0;
    CHECK_EQ(fm_frame_check(&f), FM_EPROTO);
    f.kind = FM_KIND_COUNT;
    CHECK_EQ(fm_frame_check(&f), FM_EPROTO);
    f = good;
    f.length++;
    CHECK_EQ(fm_frame_check(&f), FM_ETOOBIG);
    f = good;
    f.count++;
    CHECK_EQ(fm_frame_check(&f), FM_EPROTO);
    for (int kind = 1; kind < FM_KIND_COUNT; kind++) {
        f = (struct fm_frame){.magic = FM_MAGIC, .kind = (uint16_t)kind};
        CHECK_EQ(fm_frame_check(&f), 0);
    }
}

TEST(every_error_has_a_text)
{
#define FM_X(name, number, text) CHECK(strcmp(fm_error_text(name), text) == 0);
    FM_ERROR_MAP(FM_X)
#undef FM_X
    CHECK(strlen(fm_error_text(-ENOMEM)) > 0);
    CHECK(strlen(fm_error_text(0)) > 0);
    CHECK(strlen(fm_error_text(-1000000)) > 0);
}

/* -------------------------------------------------------------- messages */

static const struct fm_message born = {.magic = FM_MAGIC,
                                       .kind = FM_REPORT_BORN,
                                       .slot = 3,
                                       .generation = 4,
                                       .pid = 5,
                                       .status = -6,
                                       .rss_kb = UINT64_MAX};

/* Which end of which pipe a descriptor is, by inode. */
static ino_t inode(int fd)
{
    struct stat st;
    CHECK_EQ(fstat(fd, &st), 0);
    return st.st_ino;
}

static void close_all(const int *fds, int n)
{
    for (int i = 0; i < n; i++)
        close(fds[i]);
}

TEST(a_message_carries_its_descriptors)
{
    int s[2], p[4], fds[FM_MESSAGE_FDS], nfds = 99;
    struct fm_message m;
    CHECK_EQ(fm_sys_socketpair(s), 0);
    CHECK_EQ(fm_sys_pipe(p), 0);
    CHECK_EQ(fm_sys_pipe(p + 2), 0);
    for (int n = 0; n <= FM_MESSAGE_FDS; n++) {
        CHECK_EQ(fm_message_send(s[0], &born, p, n), 0);
        CHECK_EQ(fm_message_recv(s[1], &m, fds, &nfds), 1);
        CHECK_EQ(nfds, n);
        CHECK(memcmp(&m, &born, sizeof m) == 0);
        for (int i = 0; i < n; i++) {
            CHECK(fds[i] > 2 && inode(fds[i]) == inode(p[i]));
            CHECK(fcntl(fds[i], F_GETFD) & FD_CLOEXEC);
        }
        close_all(fds, n);
    }
    CHECK_EQ(fm_message_send(s[0], &born, p, FM_MESSAGE_FDS + 1), -EINVAL);
    CHECK_EQ(fm_message_send(s[0], &born, p, -1), -EINVAL);
    close_all(p, 4);
    close_all(s, 2);
}

TEST(messages_stay_apart)
{
    /* Several wait in the socket: each with its own descriptors. */
    int s[2], p[2], fds[FM_MESSAGE_FDS], nfds;
    CHECK_EQ(fm_sys_socketpair(s), 0);
    CHECK_EQ(fm_sys_pipe(p), 0);
    for (uint32_t i = 0; i < 40; i++) {
        struct fm_message m = born;
        m.slot = i;
        CHECK_EQ(fm_message_send(s[0], &m, p + i % 2, i % 4 == 3 ? 0 : 1), 0);
    }
    for (uint32_t i = 0; i < 40; i++) {
        struct fm_message m;
        CHECK_EQ(fm_message_recv(s[1], &m, fds, &nfds), 1);
        CHECK_EQ(m.slot, i);
        CHECK_EQ(nfds, i % 4 == 3 ? 0 : 1);
        if (nfds)
            CHECK(inode(fds[0]) == inode(p[i % 2]));
        close_all(fds, nfds);
    }
    close_all(p, 2);
    close_all(s, 2);
}

TEST(a_message_may_come_byte_by_byte)
{
    int s[2], p[4], fds[FM_MESSAGE_FDS], nfds;
    CHECK_EQ(fm_sys_socketpair(s), 0);
    CHECK_EQ(fm_sys_pipe(p), 0);
    CHECK_EQ(fm_sys_pipe(p + 2), 0);
    for (chunk = 1; chunk <= sizeof(struct fm_message); chunk++) {
        struct fm_message m;
        CHECK_EQ(fm_message_send(s[0], &born, p, 4), 0);
        CHECK_EQ(fm_message_recv(s[1], &m, fds, &nfds), 1);
        CHECK_EQ(nfds, 4);
        CHECK(memcmp(&m, &born, sizeof m) == 0);
        for (int i = 0; i < 4; i++)
            CHECK(inode(fds[i]) == inode(p[i]));
        close_all(fds, nfds);
    }
    close_all(p, 4);
    close_all(s, 2);
}

TEST(a_split_message_is_waited_for_on_a_non_blocking_socket)
{
    int s[2], fds[FM_MESSAGE_FDS], nfds;
    CHECK_EQ(fm_sys_socketpair(s), 0);
    CHECK_EQ(fm_sys_nonblock(s[1], 1), 0);
    struct fm_message m;
    CHECK_EQ(fm_message_recv(s[1], &m, fds, &nfds), 0);
    for (size_t cut = 1; cut < sizeof born; cut += 5) {
        const char *p = (const char *)&born;
        CHECK_EQ(send(s[0], p, cut, 0), cut);
        pid_t pid = fork();
        if (pid == 0) {
            poll(NULL, 0, 2);
            CHECK_EQ(send(s[0], p + cut, sizeof born - cut, 0),
                     sizeof born - cut);
            _exit(0);
        }
        CHECK_EQ(fm_message_recv(s[1], &m, fds, &nfds), 1);
        CHECK(memcmp(&m, &born, sizeof m) == 0);
        CHECK_CHILD(pid);
    }
    close_all(s, 2);
}

TEST(the_end_of_the_socket_is_told)
{
    int s[2], fds[FM_MESSAGE_FDS], nfds;
    struct fm_message m;
    CHECK_EQ(fm_sys_socketpair(s), 0);
    CHECK_EQ(fm_message_send(s[0], &born, NULL, 0), 0);
    close(s[0]);
    CHECK_EQ(fm_message_recv(s[1], &m, fds, &nfds), 1);
    CHECK_EQ(fm_message_recv(s[1], &m, fds, &nfds), FM_EEOF);
    CHECK(fm_message_send(s[1], &born, NULL, 0) == -EPIPE);
    close(s[1]);
}

TEST(the_end_in_mid_message_leaks_no_descriptor)
{
    int s[2], p[2], fds[FM_MESSAGE_FDS], nfds = 0;
    struct fm_message m;
    CHECK_EQ(fm_sys_pipe(p), 0);
    CHECK_EQ(fm_sys_socketpair(s), 0);
    CHECK_EQ(fm__sys_send_fds(s[0], &born, 7, p, 2), 7);
    close(s[0]);
    int before = count_fds();
    CHECK_EQ(fm_message_recv(s[1], &m, fds, &nfds), FM_EEOF);
    CHECK_EQ(count_fds(), before);
    close(s[1]);

    /* An error of the socket in mid-message, and then nothing: the same. */
    CHECK_EQ(fm_sys_socketpair(s), 0);
    CHECK_EQ(fm__sys_send_fds(s[0], &born, 7, p, 2), 7);
    before = count_fds();
    fake_errno = ENOBUFS;
    fake_at = fake_calls + 2;
    CHECK_EQ(fm_message_recv(s[1], &m, fds, &nfds), FM_EPROTO);
    CHECK_EQ(count_fds(), before);
    close_all(s, 2);
    close_all(p, 2);
}

TEST(forged_messages_are_refused_and_leak_nothing)
{
    int s[2], p[2], fds[FM_MESSAGE_FDS], nfds;
    CHECK_EQ(fm_sys_socketpair(s), 0);
    CHECK_EQ(fm_sys_pipe(p), 0);
    int before = count_fds();
    for (int i = 0; i < 3; i++) {
        struct fm_message m = born, got;
        if (i == 0)
            m.magic++;
        else
            m.kind = i == 1 ? 0 : FM_REPORT_COUNT;
        CHECK_EQ(fm_message_send(s[0], &m, p, 2), 0);
        CHECK_EQ(fm_message_recv(s[1], &got, fds, &nfds), FM_EPROTO);
        CHECK_EQ(nfds, 0);
        CHECK_EQ(count_fds(), before);
    }
    close_all(p, 2);
    close_all(s, 2);
}

TEST(descriptors_that_do_not_fit_leak_nothing)
{
    NEEDS_THE_KERNEL();
    /* EMFILE on arrival: the kernel drops some; none may stay behind. */
    int s[2], p[4], fds[FM_MESSAGE_FDS], nfds = 0;
    struct fm_message m;
    struct rlimit limit, tight;
    CHECK_EQ(fm_sys_socketpair(s), 0);
    CHECK_EQ(fm_sys_pipe(p), 0);
    CHECK_EQ(fm_sys_pipe(p + 2), 0);
    int before = count_fds();
    CHECK_EQ(fm_message_send(s[0], &born, p, 4), 0);
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
    tight = limit;
    int probe = dup(0);
    close(probe);
    tight.rlim_cur = (rlim_t)probe + 2;
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &tight), 0);
    int rc = fm_message_recv(s[1], &m, fds, &nfds);
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    CHECK(rc == 1 || rc == -EMFILE);
    CHECK_EQ(nfds, 0);
    CHECK_EQ(count_fds(), before);
    close_all(p, 4);
    close_all(s, 2);
}
