/*
 * faked_io.h - reads and writes of at most `chunk` bytes; the fake_at-th call
 * fails with fake_errno once.  (fm__sys_* retry EINTR themselves, so a failing
 * call here is EAGAIN or final.)
 *
 * Who includes the file under test with fm__sys_writev named fake_writev.
 */
#ifndef FAKED_IO_H
#define FAKED_IO_H

#include "harness.h"

static size_t chunk = SIZE_MAX;
static int fake_errno, fake_calls, fake_at;

static bool fails(void)
{
    return ++fake_calls == fake_at;
}

static ssize_t fake_writev(int fd, const struct iovec *iov, int n)
{
    if (fails())
        return -fake_errno;
    if (chunk == SIZE_MAX)
        return fm__sys_writev(fd, iov, n);
    /* The first `chunk` bytes of all parts. */
    struct iovec clipped[64];
    size_t left = chunk;
    int k = 0;
    for (; k < n && left > 0; k++) {
        clipped[k] = iov[k];
        clipped[k].iov_len = FM__MIN(clipped[k].iov_len, left);
        left -= clipped[k].iov_len;
    }
    return fm__sys_writev(fd, clipped, k);
}

static void no_faults(void)
{
    chunk = SIZE_MAX;
    fake_calls = fake_at = 0;
}

#endif
